"""Sharpness-aware minimisation of the sum of the losses."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mtl.balancers.base import Recompute, mean_over_ranks
from lightning_mtl.balancers.engines.base import seeds
from lightning_mtl.balancers.engines.graph import TaskGraph, differentiate
from lightning_mtl.balancers.gradient_weighting.base import NonFiniteGradientError, _autocast_off
from lightning_mtl.balancers.sharpness_aware.base import (
    ParameterGroup,
    SharpnessAware,
    check_radius,
    moved,
    perturbations,
)
from lightning_mtl.functional.gradients import inject, tensor_hooks_off


class SAM(SharpnessAware):
    r"""Sum the losses with weight one each, and take the gradient where the sum is largest nearby (Foret, ICLR 2021).

    .. math:: \nabla L(w + \epsilon), \qquad L = \sum_k L_k, \qquad
        \epsilon = \rho\, \frac{T^2 \nabla L(w)}{\lVert T \nabla L(w) \rVert}

    over all parameters that some loss depends on, shared or not, with :math:`T = 1`, or :math:`T = |w| + \eta` in the
    adaptive form (ASAM, Kwon et al.), which does not depend on the scale of the weights. One further forward and
    backward pass a step. For methods that treat tasks one by one see :class:`FlatRegions`. No state.

    Args:
        tasks: Task names; None binds them at the first call.
        rho: Radius :math:`\rho`. Foret et al. use 0.05; the adaptive form needs about ten times as much.
        adaptive: Whether to take the adaptive form.
        eta: :math:`\eta` of the adaptive form. Kwon et al. use 0.01.

    Shape:
        - losses: ``(K,)``; weights are one each.

    Raises:
        ValueError: If an argument is out of range, or ``recompute`` is missing in a call.
        NonFiniteGradientError: If a gradient is not finite and no gradient scaler is at work.

    Note:
        The adaptive form treats all parameters alike, as Kwon et al. write it; their code takes :math:`T = 1` for
        biases. Nothing is added to the norm.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0], requires_grad=True)
        >>> def losses(tasks=None):
        ...     return {"a": x.square().sum()}
        >>> SAM(rho=0.5)(losses(), recompute=losses).backward()
        >>> x.grad  # 2 (x + rho)
        tensor([3.])

    References:
        Foret, Kleiner, Mobahi, Neyshabur. *Sharpness-Aware Minimization for Efficiently Improving Generalization*. ICLR
        2021. https://arxiv.org/abs/2010.01412, Alg. 1.
        Kwon, Kim, Park, Choi. *ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
        Networks*. ICML 2021. https://arxiv.org/abs/2102.11600, Alg. 1.
    """

    def __init__(
        self, tasks: Sequence[str] | None = None, rho: float = 0.05, adaptive: bool = False, eta: float = 0.01
    ) -> None:
        super().__init__()
        check_radius("SAM", "rho", rho)
        check_radius("SAM", "eta", eta)
        self.rho = rho
        self.adaptive = adaptive
        self.eta = eta
        self.bind(tasks)

    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        recompute = self._recompute_of(recompute)
        names = tuple(losses)
        device = losses[names[0]].device
        self._check_precision(device)
        with torch.no_grad(), _autocast_off(device):
            scale = self._loss_scale(device)
            graph = TaskGraph(names, list(losses.values()), ())
            leaves = self._alike([graph.own_leaves], device)[0]
            if not leaves:
                raise ValueError("SAM: no loss depends on a parameter; pass losses with their graph.")
            dtype = torch.float32
            for leaf in leaves:
                dtype = torch.promote_types(dtype, leaf.dtype)
            group = ParameterGroup(leaves, dtype)
            gradient = mean_over_ranks(self._gradient(group, graph, scale))
            values = torch.stack([loss.detach().to(dtype) for loss in losses.values()])
            self._remember_weights(names, torch.ones_like(values))
            if self._overflowed(gradient, scale, losses, ""):
                return self._skip(group, values)
            steps = perturbations([(gradient, group.weights, self.rho)], self.adaptive, self.eta)
        with moved([group], steps):
            again = self._again(recompute, names)
            with torch.no_grad(), _autocast_off(device):
                found = self._gradient(group, TaskGraph(names, list(again.values()), ()), scale)
        with torch.no_grad(), _autocast_off(device):
            rises = torch.stack([loss.detach().to(dtype) for loss in again.values()]) - values
            flags = (~found.isfinite().all()).to(dtype).unsqueeze(0)
            rises, bad = torch.split(mean_over_ranks(torch.cat([rises, flags])), [len(names), 1])
            self._sharpness = dict(zip(names, rises.unbind(), strict=True))
            if self._overflowed(torch.where(bad > 0, torch.nan, bad), scale, again, " at the perturbed parameters"):
                return self._skip(group, values)
            return inject(values.sum(), leaves, group.as_gradients(found))

    def _gradient(self, group: ParameterGroup, graph: TaskGraph, scale: Tensor | None) -> Tensor:
        """Return the gradient of the sum of the losses, without the loss scale."""
        live = [row for row, root in enumerate(graph.roots) if root is not None]
        starts = seeds(graph, scale)
        with tensor_hooks_off(group.tensors):
            found = differentiate([graph.losses[row] for row in live], group.tensors, [starts[row] for row in live])
        vector = group.pack(found)
        return vector if scale is None else vector / scale.to(vector.dtype)

    def _overflowed(self, gradient: Tensor, scale: Tensor | None, losses: dict[str, Tensor], where: str) -> bool:
        """Return whether the scaler has to skip the step; raise where there is none."""
        if bool(gradient.isfinite().all()):
            return False
        if scale is None:
            bad = [name for name, loss in losses.items() if not bool(loss.isfinite())] or list(losses)
            raise NonFiniteGradientError(
                f"SAM: the gradient{where} of {', '.join(map(repr, bad))} is not finite at step {self.steps}; lower "
                "rho or the learning rate, or look at that loss."
            )
        return True

    @staticmethod
    def _skip(group: ParameterGroup, values: Tensor) -> Tensor:
        nothing = [torch.full_like(leaf, torch.nan) for leaf in group.tensors]
        return inject(values.sum(), group.tensors, nothing)
