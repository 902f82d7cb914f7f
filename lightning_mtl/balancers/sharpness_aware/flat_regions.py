"""Task-based flat regions: any gradient method made sharpness-aware, task by task."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from lightning_mtl.balancers.base import Balancer, Recompute, mean_over_ranks
from lightning_mtl.balancers.engines import Engines, FlatStore, TaskGradients, TaskGraph
from lightning_mtl.balancers.engines.graph import differentiate, filled
from lightning_mtl.balancers.gradient_weighting.base import GradientBalancer, NonFiniteGradientError, _autocast_off
from lightning_mtl.balancers.sharpness_aware.base import (
    ParameterGroup,
    SharpnessAware,
    check_radius,
    moved,
    perturbations,
)
from lightning_mtl.functional.gradients import (
    combine_rows,
    conflict_share,
    gramian,
    gramian_cosines,
    gramian_norms,
    inject,
    tensor_hooks_off,
)

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_WANTED = {
    "at": "parameters",
    "head_gradients": "own",
    "every_n_steps": 1,
    "parameters_compared": "all",
    "store_dtype": "parameters",
    "balance": "micro_batch",
}
_OPTION_OF = {"parameters_compared": "parameters"}


class FlatRegions(SharpnessAware):
    r"""Make a gradient method seek regions that are flat for every task by itself (Phan et al., 2022).

    Every task :math:`i` perturbs the shared parameters :math:`s` and its own ones :math:`h_i` along its own gradients
    :math:`g_i, a_i`, and gives its gradients :math:`G_i, A_i` there. With :math:`T = |w|` (adaptive) or :math:`T = 1`,

    .. math::
        \epsilon^s_i = \rho_s \frac{T^2 g_i}{\lVert T g_i \rVert}, \quad
        \epsilon^h_i = \rho_h \frac{T^2 a_i}{\lVert T a_i \rVert}, \quad
        (G_i, A_i) = \nabla L_i(s + \epsilon^s_i, h_i + \epsilon^h_i), \quad f_i = G_i - g_i

    The shared update is :math:`\mathcal A(g_1, \dots, g_K) + \mathcal A'(f_1, \dots, f_K)` with the wrapped method
    :math:`\mathcal A` and an independent copy of it, whose state is its own, for the flat gradients :math:`f_i`; the
    update of :math:`h_i` is :math:`A_i`. A step costs K + 1 forward passes and 2 K backward passes.

    A task whose :math:`g_i` is exactly zero is left out of the first aggregation, one whose :math:`f_i` is zero of the
    second. Parameters of several tasks that were not given as shared are treated as shared. Methods that look at loss
    values see the plain losses twice, in the ``"direct"`` form the perturbed ones.

    State: that of the wrapped method, twice.

    Args:
        balancer: Gradient method to wrap, with its tasks if they are to be bound. Its ``engine`` and ``on_nonfinite``
            are obeyed; its other options must have their defaults, apart from its own arguments.
        rho_shared: Radius :math:`\rho_s` of the shared parameters. 2.0 in the authors' scripts for NYUv2, CityScapes
            and CelebA (adaptive); without ``adaptive`` take about 0.05.
        rho_head: Radius :math:`\rho_h`; None takes ``rho_shared``.
        adaptive: Whether a weight moves in proportion to its squared size. Weights at zero (fresh biases, a
            LoRA matrix before its first step) then stay where they are.
        aggregate: ``"decomposed"`` (the paper): losses' and flat gradients are aggregated apart and added.
            ``"direct"``: :math:`\mathcal A(G_1, \dots, G_K)`, for comparison.
        norm_scope: Whether the norms of shared and own gradients are ``"separate"`` (the paper, and the scripts above),
            or ``"joint"`` (the authors' Multi-MNIST script).

    Shape:
        - losses: ``(K,)``; :attr:`weights` are those of the aggregation of the loss gradients.

    Raises:
        TypeError: If ``balancer`` is no gradient balancer.
        ValueError: If a radius is negative, an option of the wrapped balancer cannot be used here, or ``recompute`` is
            missing in a call.
        NonFiniteGradientError: If a gradient is not finite, unless a gradient scaler is at work or the wrapped
            balancer drops such tasks.

    Note:
        The authors' code adds 1e-12 to the norms; nothing is added here, so the result does not depend on the scale of
        the losses. Their Multi-MNIST script lets the perturbed passes move the running statistics of batch
        normalisation, their NYUv2 script does not; ``MultiTaskModule`` does not. With a linear method such as
        ``LinearScalarization`` both forms of ``aggregate`` agree.

    Example:
        >>> import torch
        >>> from lightning_mtl.balancers.gradient_weighting.mgda import MGDA
        >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> def losses(tasks=None):
        ...     return {"a": x[0] ** 2, "b": x[1] ** 2}
        >>> balancer = FlatRegions(MGDA(), rho_shared=0.1, adaptive=False)
        >>> balancer(losses(), shared=[x], recompute=losses).backward()
        >>> {task: round(float(rise), 2) for task, rise in balancer.sharpness.items()}
        {'a': 0.21, 'b': 0.41}

    References:
        Phan, Tran, Tran, Ho, Phung, Le. *Improving Multi-task Learning via Seeking Task-based Flat Regions*. 2022,
        Alg. 1, Eq. 7, 11, 14-16. https://arxiv.org/abs/2211.13723 (ICCV 2025 as *Beyond Losses Reweighting*).
        Authors' code: https://github.com/VietHoang1512/FS-MTL, no licence.
    """

    def __init__(
        self,
        balancer: GradientBalancer,
        rho_shared: float = 2.0,
        rho_head: float | None = None,
        adaptive: bool = True,
        aggregate: Literal["decomposed", "direct"] = "decomposed",
        norm_scope: Literal["separate", "joint"] = "separate",
    ) -> None:
        super().__init__()
        _check_wrapped(balancer)
        check_radius("FlatRegions", "rho_shared", rho_shared)
        check_radius("FlatRegions", "rho_head", rho_shared if rho_head is None else rho_head)
        if aggregate not in ("decomposed", "direct"):
            raise ValueError(f"FlatRegions: aggregate must be 'decomposed' or 'direct', got {aggregate!r}.")
        if norm_scope not in ("separate", "joint"):
            raise ValueError(f"FlatRegions: norm_scope must be 'separate' or 'joint', got {norm_scope!r}.")
        self.rho_shared = rho_shared
        self.rho_head = rho_shared if rho_head is None else rho_head
        self.adaptive = adaptive
        self.aggregate = aggregate
        self.norm_scope = norm_scope
        self.balancer = balancer
        """The wrapped balancer; it aggregates the loss gradients, or the perturbed ones in the direct form."""
        self.flat_balancer = copy.deepcopy(balancer) if aggregate == "decomposed" else None
        """The copy that aggregates the flat gradients; None in the direct form."""
        if self.flat_balancer is not None:
            self.flat_balancer.seed = balancer.seed + 1  # its random numbers are not those of the first
        self.last_gramian: Tensor | None = None
        """Gramian of the loss gradients in the last step, detached; rows as in ``last_tasks``."""
        self.last_tasks: tuple[str, ...] = ()
        self._flat_gramian: Tensor | None = None
        self._mixed_products: Tensor | None = None
        self._flat_weights: dict[str, Tensor] = {}
        self._engines: Engines | None = None
        self._store = FlatStore()
        self.bind(balancer.task_names or None)

    # ------------------------------------------------------------------ state and introductions
    def _wrapped(self) -> list[GradientBalancer]:
        return [self.balancer] if self.flat_balancer is None else [self.balancer, self.flat_balancer]

    def _create_state(self, num_tasks: int) -> None:
        for balancer in self._wrapped():
            balancer.bind(self.task_names)

    def reset(self) -> None:
        """Forget everything learned or remembered; the tasks stay bound."""
        self.steps = self.epochs = 0
        self._weights, self._flat_weights, self._sharpness = {}, {}, {}
        self.last_gramian = self._flat_gramian = self._mixed_products = None
        self.last_tasks = ()
        for balancer in self._wrapped():
            balancer.reset()

    def watch(self, encoder: nn.Module) -> None:
        """Meet the shared network before its first forward pass."""
        self.balancer.watch(encoder)

    def attach(self, trainer: Trainer) -> None:
        """Meet the Trainer; see :meth:`SharpnessAware.attach`."""
        super().attach(trainer)
        self.balancer.attach(trainer)

    def end_epoch(self) -> None:
        """Be told that a training epoch ended."""
        super().end_epoch()
        for balancer in self._wrapped():
            balancer.end_epoch()

    # ------------------------------------------------------------------ what others read
    @property
    def flat_weights(self) -> dict[str, Tensor]:
        """Task name -> weight of its flat gradient in the last step; empty in the direct form."""
        return dict(self._flat_weights)

    @property
    def norms(self) -> dict[str, Tensor]:
        """Task name -> norm of its loss gradient in the last step."""
        return self._by_task(self.last_gramian)

    @property
    def flat_norms(self) -> dict[str, Tensor]:
        """Task name -> norm of its flat gradient in the last step."""
        return self._by_task(self._flat_gramian)

    @property
    def flat_cosines(self) -> dict[str, Tensor]:
        """Task name -> cosine between its loss gradient and its flat gradient in the last step; 0 where one is zero."""
        if self.last_gramian is None or self._flat_gramian is None or self._mixed_products is None:
            return {}
        scale = gramian_norms(self.last_gramian) * gramian_norms(self._flat_gramian)
        cosines = self._mixed_products / torch.where(scale > 0, scale, torch.ones_like(scale))
        return dict(zip(self.last_tasks, cosines.clamp(-1, 1).unbind(), strict=True))

    @property
    def cosines(self) -> dict[tuple[str, str], Tensor]:
        """Pair of task names -> cosine between their loss gradients in the last step."""
        if self.last_gramian is None:
            return {}
        cosines = gramian_cosines(self.last_gramian)
        names = self.last_tasks
        return {(a, b): cosines[i, j] for i, a in enumerate(names) for j, b in enumerate(names) if i < j}

    @property
    def conflict_share(self) -> Tensor | None:
        """Share of task pairs whose loss gradients pointed against each other in the last step."""
        return None if self.last_gramian is None else conflict_share(self.last_gramian)

    def _by_task(self, gram: Tensor | None) -> dict[str, Tensor]:
        if gram is None:
            return {}
        return dict(zip(self.last_tasks, gramian_norms(gram).unbind(), strict=True))

    # ------------------------------------------------------------------ the call
    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        recompute = self._recompute_of(recompute)
        leaves: list[Tensor] = [parameter for parameter in shared or () if parameter.requires_grad]
        if not leaves:
            got = "none" if shared is None else "none that requires a gradient"
            raise ValueError(
                f"FlatRegions: needs the parameters that the tasks share, got {got}; call balancer(losses, "
                "shared=encoder.parameters(), recompute=...)."
            )
        names = tuple(losses)
        device = losses[names[0]].device
        self._check_precision(device)
        with torch.no_grad(), _autocast_off(device):
            scale = self._loss_scale(device)
            graph, own = self._sorted(names, list(losses.values()), leaves, device)
            dtype = torch.float32
            for leaf in (*graph.shared, *(leaf for group in own for leaf in group)):
                dtype = torch.promote_types(dtype, leaf.dtype)
            trunk, heads = ParameterGroup(graph.shared, dtype), [ParameterGroup(group, dtype) for group in own]
            plain, at_heads = self._loss_gradients(graph, heads, scale, dtype)
            values = torch.stack([loss.detach().to(dtype) for loss in losses.values()])
            gram = gramian(plain)
            fine = gram.diagonal().isfinite() & torch.stack([vector.isfinite().all() for vector in at_heads])
            kept = self._kept(names, fine, scale, "the gradient")
            if not any(kept) and scale is not None:
                return self._skip(trunk, heads, values)
            self.last_gramian, self.last_tasks = gram, names
            moving = (gram.diagonal() > 0) | torch.stack([vector.any() for vector in at_heads])
            moves: list[bool] = (moving & torch.tensor(kept, device=device)).tolist()
            rows = self._store.rows(len(names), graph.shared)
            rises, flags, own_gradients = torch.zeros_like(values), torch.zeros_like(values), []
        for task, name in enumerate(names):
            if not moves[task]:  # nothing to perturb along, or dropped; the same on all processes
                with torch.no_grad():
                    rows.write(task, [None] * len(graph.shared))
                    own_gradients.append(torch.zeros_like(at_heads[task]))
                continue
            with torch.no_grad():
                steps = perturbations(
                    [
                        (plain[task].to(dtype), trunk.weights, self.rho_shared),
                        (at_heads[task], heads[task].weights, self.rho_head),
                    ],
                    self.adaptive,
                    joint=self.norm_scope == "joint",
                )
            with moved([trunk, heads[task]], steps):
                loss = self._again(recompute, [name])[name]
                with torch.no_grad(), _autocast_off(device):
                    found = self._gradients_of(loss, trunk, heads[task], scale)
            with torch.no_grad():
                rows.write(task, found[: len(graph.shared)])
                own_gradients.append(heads[task].pack(found[len(graph.shared) :]))
                rises[task] = loss.detach().to(dtype) - values[task]
                flags[task] = (~own_gradients[-1].isfinite().all()).to(dtype)
            del loss, found
        with torch.no_grad(), _autocast_off(device):
            perturbed = rows.averaged()
            if scale is not None:
                perturbed = perturbed / scale.to(dtype)
                own_gradients = [vector / scale.to(dtype) for vector in own_gradients]
            means, rises, flags = mean_over_ranks(torch.stack([values, rises, flags])).unbind()
            fine = perturbed.isfinite().all(1) & (flags == 0)
            still = self._kept(names, fine, scale, "the gradient at the perturbed parameters", among=kept)
            if not any(still) and scale is not None:
                return self._skip(trunk, heads, values)
            self._sharpness = dict(zip(names, rises.unbind(), strict=True))
            weights, update = self._aggregate(names, plain, perturbed, gram, means, rises, still)
            values = torch.where(torch.tensor(still, device=device), values, torch.zeros_like(values))
            grads = trunk.as_gradients(update)
            for task, group in enumerate(heads):
                vector = own_gradients[task] if still[task] else torch.zeros_like(own_gradients[task])
                grads += group.as_gradients(vector)
            tensors = [*trunk.tensors, *(leaf for group in heads for leaf in group.tensors)]
            self._remember_weights(names, weights)
            return inject((weights.to(dtype) * values).sum(), tensors, grads)

    def _sorted(
        self, names: tuple[str, ...], losses: list[Tensor], leaves: list[Tensor], device: torch.device
    ) -> tuple[TaskGraph, list[list[Tensor]]]:
        """Return the graph, in which what belongs to several tasks is shared, and what each task has for itself."""
        graph = TaskGraph(names, losses, leaves)
        for task, name in enumerate(names):
            if not graph.reaches_shared(task) and float(losses[task].detach()) != 0.0:
                raise ValueError(
                    f"FlatRegions: the loss of task {name!r} does not depend on any shared parameter; pass what its "
                    "head reads, without detach(), or leave the task out of the balancer."
                )
        own = self._alike(graph.heads, device)
        owners: dict[int, int] = {}
        for group in own:
            for leaf in group:
                owners[id(leaf)] = owners.get(id(leaf), 0) + 1
        common = {id(leaf): leaf for group in own for leaf in group if owners[id(leaf)] > 1}
        if not common:
            return graph, own
        graph = TaskGraph(names, losses, [*leaves, *common.values()])
        return graph, [[leaf for leaf in group if id(leaf) not in common] for group in own]

    def _loss_gradients(
        self, graph: TaskGraph, heads: list[ParameterGroup], scale: Tensor | None, dtype: torch.dtype
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the tasks' gradients, averaged and unscaled: the matrix at what is shared, vectors at the rest."""
        wide = dtype if any(leaf.dtype.itemsize < 4 for leaf in graph.shared) else None
        if self._engines is None or self._engines.dtype != wide:
            self._engines, self._store = Engines(self.balancer.engine, wide), FlatStore(dtype)
        if self._store.dtype != dtype:
            self._store = FlatStore(dtype)
        gradients = self._engines.gradients(graph, scale, matrix=True)
        matrix = gradients.matrix()
        vectors = []
        for leaves, found, group in zip(graph.heads, gradients.heads, heads, strict=True):
            by_leaf: dict[int, Tensor] = {id(leaf): part for leaf, part in zip(leaves, found, strict=True)}
            vectors.append(group.pack([by_leaf.get(id(leaf)) for leaf in group.tensors]))
        joined = mean_over_ranks(torch.cat(vectors)) if any(len(vector) for vector in vectors) else None
        if joined is not None:
            vectors = list(torch.split(joined, [len(vector) for vector in vectors]))
        if scale is None:
            return matrix, vectors
        return matrix / scale.to(matrix.dtype), [vector / scale.to(dtype) for vector in vectors]

    @staticmethod
    def _gradients_of(loss: Tensor, trunk: ParameterGroup, head: ParameterGroup, scale: Tensor | None) -> list[Tensor]:
        leaves = [*trunk.tensors, *head.tensors]
        if not loss.requires_grad:
            return [torch.zeros_like(leaf) for leaf in leaves]
        start = torch.ones_like(loss) if scale is None else scale.to(loss.dtype)
        with tensor_hooks_off(leaves):
            return filled(differentiate([loss], leaves, [start]), leaves)

    def _kept(
        self, names: Sequence[str], fine: Tensor, scale: Tensor | None, what: str, among: Sequence[bool] | None = None
    ) -> list[bool]:
        """Return which tasks go on; none of them where the scaler has to skip the step."""
        before = [True] * len(names) if among is None else list(among)
        good: list[bool] = fine.tolist()
        bad = [name for name, here, is_fine in zip(names, before, good, strict=True) if here and not is_fine]
        if not bad:
            return before
        if scale is not None:
            return [False] * len(names)
        if self.balancer.on_nonfinite == "raise":
            raise NonFiniteGradientError(
                f"FlatRegions: {what} of {', '.join(map(repr, bad))} is not finite at step {self.steps}; lower the "
                'radius or the learning rate, look at that loss, or set on_nonfinite="drop" in the wrapped balancer.'
            )
        return [here and is_fine for here, is_fine in zip(before, good, strict=True)]

    @staticmethod
    def _skip(trunk: ParameterGroup, heads: list[ParameterGroup], values: Tensor) -> Tensor:
        """Return a scalar whose gradients make the scaler skip the step."""
        tensors = [*trunk.tensors, *(leaf for group in heads for leaf in group.tensors)]
        return inject(values.sum(), tensors, [torch.full_like(tensor, torch.nan) for tensor in tensors])

    # ------------------------------------------------------------------ the aggregations
    def _aggregate(
        self,
        names: tuple[str, ...],
        plain: Tensor,
        perturbed: Tensor,
        gram: Tensor,
        means: Tensor,
        rises: Tensor,
        kept: list[bool],
    ) -> tuple[Tensor, Tensor]:
        """Return the weights of the losses and the shared update, a vector."""
        # the perturbed gradients are needed no more in the decomposed form, and their memory is
        flat = perturbed - plain if self.flat_balancer is None else perturbed.sub_(plain)
        self._mixed_products = torch.stack([torch.dot(g.to(f.dtype), f) for g, f in zip(plain, flat, strict=True)])
        self._flat_gramian = gramian(flat)
        if self.flat_balancer is None:
            return _apply(self.balancer, names, perturbed, gramian(perturbed), means + rises, kept)
        weights, update = _apply(self.balancer, names, plain, gram, means, kept)
        flat_weights, flat_update = _apply(self.flat_balancer, names, flat, self._flat_gramian, means, kept)
        self._flat_weights = dict(zip(names, flat_weights.unbind(), strict=True))
        return weights, update.to(flat_update.dtype) + flat_update


class _Rows(TaskGradients):
    """Gradients that are given as the rows of a matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self._matrix = matrix
        self.targets, self.heads = [], [[] for _ in matrix]

    def gramian_share(self) -> Tensor:
        return gramian(self._matrix)

    def combine(self, weights: Tensor) -> list[Tensor]:
        return [combine_rows(weights, self._matrix)]

    def drop(self, tasks: Sequence[int]) -> None:
        self._matrix[list(tasks)] = 0

    def matrix(self) -> Tensor:
        return self._matrix

    def split(self, vector: Tensor) -> list[Tensor]:
        return [vector]


def _apply(
    balancer: GradientBalancer, names: tuple[str, ...], matrix: Tensor, gram: Tensor, losses: Tensor, kept: list[bool]
) -> tuple[Tensor, Tensor]:
    """Aggregate the rows that are not zero; return the weights of all tasks and the update."""
    weights = torch.zeros_like(losses)
    norms = gram.diagonal().tolist()
    rows = [row for row, norm in enumerate(norms) if kept[row] and norm > 0]
    update = matrix.new_zeros(matrix.shape[1])
    if rows:
        all_of_them = len(rows) == len(names)
        part = matrix if all_of_them else matrix[rows]
        some = gram if all_of_them else gram[rows][:, rows]
        found, (update,) = balancer._update(
            _Rows(part), some, losses[rows], balancer._index(names[row] for row in rows), None
        )
        weights[rows] = found.detach().to(weights.dtype)
    balancer._last.gramian, balancer._last.tasks = gram, names
    balancer._remember_weights(names, weights)
    balancer.steps += 1
    return weights, update


def _check_wrapped(balancer: Balancer) -> None:
    if not isinstance(balancer, GradientBalancer) or type(balancer)._combine is not GradientBalancer._combine:
        raise TypeError(
            "FlatRegions: balancer must aggregate task gradients, as LinearScalarization (equal weights), MGDA, "
            "PCGrad, CAGrad, IMTLG, NashMTL, FairGrad and other gradient balancers do, got "
            f"{type(balancer).__name__}."
        )
    for attribute, wanted in _WANTED.items():
        if (found := getattr(balancer, attribute)) != wanted:
            option = _OPTION_OF.get(attribute, attribute)
            raise ValueError(
                f"FlatRegions: the wrapped {type(balancer).__name__} must have {option}={wanted!r}, got {found!r}; "
                "leave the option out."
            )
