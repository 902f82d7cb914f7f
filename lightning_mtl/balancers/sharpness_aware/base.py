"""The contract of sharpness-aware balancing: gradients at the parameters and at perturbed ones, one update out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_mtl.balancers.base import Balancer, Recompute, is_distributed
from lightning_mtl.balancers.engines.store import row_views

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


class SharpnessAware(Balancer):
    r"""A balancer that evaluates the losses a second time, at parameters moved to where they are larger.

    The move has length :math:`\rho` along the gradient :math:`g` at the weights :math:`w`:

    .. math:: \epsilon = \rho\, \frac{T^2 g}{\lVert T g \rVert}, \qquad
        T = 1 \text{ (plain)}, \quad T = |w| + \eta \text{ (adaptive)}

    A call needs ``recompute``, which evaluates the losses of the same batch again, with the same dropout masks and
    without moving running statistics. :class:`~lightning_mtl.MultiTaskModule` gives one; an own loop makes one with
    :func:`lightning_mtl.functional.second_pass.second_pass`. With several processes the gradient is averaged before
    the parameters are moved, so that they move alike. Under a loss scale it is unscaled first.

    Parameters are moved in place and put back by a copy, so they are the same bits afterwards, and a graph built before
    the call can still be passed backwards.

    Note:
        With gradient accumulation every micro-batch perturbs along its own gradient.
    """

    needs: ClassVar[Literal["losses", "gradients", "second_pass"]] = "second_pass"
    scaler: Any = None
    """Gradient scaler of float16 training (``torch.amp.GradScaler``); set by :meth:`attach`, or by hand."""

    def __init__(self) -> None:
        super().__init__()
        self._known: list[nn.Parameter] = []
        self._sharpness: dict[str, Tensor] = {}

    def attach(self, trainer: Trainer) -> None:
        """Take the Trainer's gradient scaler and the order of the parameters, and check its strategy.

        Raises:
            MisconfigurationException: If the strategy shards parameters.
        """
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

        super().attach(trainer)
        if isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy):
            raise MisconfigurationException(
                f"{type(self).__name__}: {type(trainer.strategy).__name__} shards parameters, so they cannot be "
                'perturbed as a whole; use strategy="ddp".'
            )
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._known = list(trainer.lightning_module.parameters())

    def reset(self) -> None:
        """Forget everything learned or remembered; the tasks stay bound."""
        super().reset()
        self._sharpness = {}

    @property
    def sharpness(self) -> dict[str, Tensor]:
        """Task name -> its loss at the perturbed parameters less its loss, in the last step."""
        return dict(self._sharpness)

    # ------------------------------------------------------------------ checks
    def _recompute_of(self, recompute: Recompute | None) -> Recompute:
        name = type(self).__name__
        if not torch.is_grad_enabled():
            raise ValueError(f"{name}: gradients are switched off; call it in training_step, not under no_grad.")
        if recompute is None:
            raise ValueError(
                f"{name}: needs recompute, a function that evaluates the losses of the same batch again; pass "
                "recompute=lambda tasks=None: {...}, wrapped in functional.second_pass where the network has dropout "
                "or running statistics, or use MultiTaskModule."
            )
        return recompute

    def _check_precision(self, device: torch.device) -> None:
        kind = device.type
        if self.scaler is None and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
            raise RuntimeError(
                f"{type(self).__name__}: float16 autocast is active and no gradient scaler is known, so small "
                "gradients would be lost; call balancer.attach(trainer), or set balancer.scaler to the GradScaler."
            )

    def _loss_scale(self, device: torch.device) -> Tensor | None:
        if self.scaler is None or not self.scaler.is_enabled():
            return None
        return cast(Tensor, self.scaler.scale(torch.ones((), device=device)))

    # ------------------------------------------------------------------ the second evaluation
    def _again(self, recompute: Recompute, tasks: Iterable[str]) -> dict[str, Tensor]:
        wanted = list(tasks)
        with torch.enable_grad():
            losses = recompute(wanted)
        if missing := [task for task in wanted if task not in losses]:
            raise ValueError(f"{type(self).__name__}: recompute must return the losses of {wanted}, {missing} missing.")
        return {task: losses[task] for task in wanted}

    def _alike(self, groups: list[list[Tensor]], device: torch.device) -> list[list[Tensor]]:
        """Return the leaves of every task so that all processes hold the same ones in the same order.

        A process without labels for a task does not find what only that task uses in its own graph.
        """
        if not is_distributed():
            return groups
        row_of = {id(parameter): row for row, parameter in enumerate(self._known)}
        foreign = not all(id(leaf) in row_of for group in groups for leaf in group)
        sizes = [[len(group), sum(leaf.numel() for leaf in group)] for group in groups]
        low = torch.tensor([[-int(foreign), 0], *sizes], dtype=torch.int64, device=device)
        high = low.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        if bool(low[0, 0] == 0):
            member = torch.zeros(len(groups), len(self._known), dtype=torch.uint8)
            for task, group in enumerate(groups):
                member[task, [row_of[id(leaf)] for leaf in group]] = 1
            member = member.to(device)
            dist.all_reduce(member, dist.ReduceOp.MAX)
            return [[self._known[row] for row in found.nonzero().flatten().tolist()] for found in member.cpu()]
        dist.all_reduce(high, dist.ReduceOp.MAX)
        if bool((low[1:] != high[1:]).any()):
            raise ValueError(
                f"{type(self).__name__}: the tasks' own parameters differ between the processes, and their order is "
                "not known; call balancer.attach(trainer), or give every loss its parameters on all processes."
            )
        return groups


class ParameterGroup:
    """Tensors that are perturbed together, seen as one vector.

    Args:
        tensors: Leaves on one device.
        dtype: Type of the vector, as wide as the widest tensor.
    """

    def __init__(self, tensors: Sequence[Tensor], dtype: torch.dtype) -> None:
        self.tensors = list(tensors)
        self.dtype = dtype
        self.size = sum(tensor.numel() for tensor in tensors)
        self.weights = self.pack([tensor.detach() for tensor in tensors])
        """A copy of the tensors' values at the time of construction."""

    def pack(self, values: Sequence[Tensor | None]) -> Tensor:
        """Return tensors of these shapes as a vector; None is zero."""
        if not self.tensors:
            return torch.zeros(0, dtype=self.dtype)
        vector = torch.zeros(self.size, dtype=self.dtype, device=self.tensors[0].device)
        pairs = [(view, value) for view, value in zip(self.unpack(vector), values, strict=True) if value is not None]
        if pairs:
            torch._foreach_copy_([view for view, _ in pairs], [value for _, value in pairs])
        return vector

    def unpack(self, vector: Tensor) -> list[Tensor]:
        """Return views of a vector in the shapes of the tensors."""
        return row_views(vector, self.tensors)

    def as_gradients(self, vector: Tensor) -> list[Tensor]:
        """Return a vector as one tensor of the right type for each of the tensors."""
        return [view.to(leaf.dtype) for view, leaf in zip(self.unpack(vector), self.tensors, strict=True)]

    def put(self, vector: Tensor) -> None:
        """Write a vector into the tensors, without marking them as changed."""
        if self.tensors:
            torch._foreach_copy_([tensor.data for tensor in self.tensors], self.unpack(vector))


@contextlib.contextmanager
def moved(groups: Sequence[ParameterGroup], steps: Sequence[Tensor]) -> Iterator[None]:
    """Add a vector to the tensors of every group inside the context, and put the old values back on leaving.

    Args:
        groups: Disjoint groups.
        steps: What to add to each.
    """
    try:
        for group, step in zip(groups, steps, strict=True):
            group.put(group.weights + step)
        torch.clear_autocast_cache()  # holds half-precision copies of the parameters as they were
        yield
    finally:
        for group in groups:
            group.put(group.weights)
        torch.clear_autocast_cache()


def perturbations(
    groups: Sequence[tuple[Tensor, Tensor, float]], adaptive: bool, eta: float = 0.0, joint: bool = False
) -> list[Tensor]:
    r"""Return how far each group of parameters is moved; see :class:`SharpnessAware`.

    Args:
        groups: For every group its gradient and its weights, vectors of one length, and the radius.
        adaptive: Whether the move is in proportion to the squared size of each weight.
        eta: Added to the size of the weights in adaptive mode.
        joint: Whether all groups are divided by their common norm instead of each by its own.

    Note:
        The norm is taken of entries divided by the largest one, so nothing is added to it and the result does not
        depend on the scale of the gradients. A zero gradient gives a zero move.

    Example:
        >>> perturbations([(torch.tensor([3e-20, 4e-20]), torch.ones(2), 0.5)], adaptive=False)
        [tensor([0.3000, 0.4000])]
    """
    scales = [weights.abs().add_(eta) if adaptive else None for _, weights, _ in groups]
    scaled = [
        gradient if scale is None else gradient * scale for (gradient, _, _), scale in zip(groups, scales, strict=True)
    ]
    peaks = [
        vector.abs().amax() if vector.numel() else torch.zeros((), dtype=vector.dtype, device=vector.device)
        for vector in scaled
    ]
    if joint:
        peak = torch.stack([value.to(peaks[0].device) for value in peaks]).amax()
        peaks = [peak.to(value.device) for value in peaks]
    units = [
        vector / torch.where(peak > 0, peak, torch.ones_like(peak)) for vector, peak in zip(scaled, peaks, strict=True)
    ]
    norms = [torch.linalg.vector_norm(unit) for unit in units]
    if joint:
        norm = torch.linalg.vector_norm(torch.stack([value.to(norms[0].device) for value in norms]))
        norms = [norm.to(value.device) for value in norms]
    moves = []
    for (_, _, radius), scale, unit, norm in zip(groups, scales, units, norms, strict=True):
        unit = unit * (radius / torch.where(norm > 0, norm, torch.ones_like(norm)))
        moves.append(unit if scale is None else unit * scale)
    return moves


def check_radius(owner: str, argument: str, value: float) -> None:
    """Raise unless a radius is a finite number that is not negative.

    Raises:
        ValueError: If it is not.
    """
    if not 0 <= value < float("inf"):
        raise ValueError(f"{owner}: {argument} must not be negative and be finite, got {value}.")
