"""The contract of gradient balancing: task gradients in, one update out."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import math
from abc import ABCMeta, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypedDict, cast, get_args, get_type_hints

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_mtl.balancers.base import Balancer, Recompute, is_distributed, put, take
from lightning_mtl.balancers.engines import (
    Accumulator,
    Engines,
    FeatureGradients,
    FlatStore,
    SubsetGradients,
    TaskGradients,
    TaskGraph,
)
from lightning_mtl.balancers.engines.base import seeds
from lightning_mtl.balancers.engines.graph import REENTRANT, weighted_pass
from lightning_mtl.functional.gradients import (
    conflict_share,
    flat_tensors,
    gramian_cosines,
    gramian_norms,
    inject,
    redirect,
)

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_LARGE_STATE = 1 << 20  # numbers; larger states are not copied every step, the host looks at the gradients instead


class GradientOptions(TypedDict, total=False):
    """Options that all gradient methods have in common.

    Attributes:
        tasks: Task names; None binds them at the first call.
        at: Where the tasks' gradients are compared. ``"parameters"`` (default) is exact, with one pass of the shared
            part a task; ``"features"`` takes the gradients at the features, with one pass in all.
        head_gradients: What a task's own parameters receive: the gradient of their ``"own"`` loss (default), or that
            gradient times the task's weight (``"weighted"``). A parameter of several tasks receives the sum.
        every_n_steps: Compute new weights in every n-th call and reuse them in between; 1 by default.
        parameters: Which shared parameters the weights look at: ``"all"`` (default), ``"last"`` (the last weight matrix
            or kernel in the order of registration), or shell patterns of parameter names such as ``layer4.*``.
            The update always covers all of them.
        engine: How the gradients at parameters are computed: one pass a task (``"sequential"``), all tasks in one
            vectorized pass (``"batched"``), or without most weight gradients (``"mixed"``). ``"auto"`` (default)
            chooses by cost; all give the same numbers up to rounding.
        store_dtype: Type in which gradients at parameters are kept: as the ``"parameters"`` (default), or
            ``"bfloat16"``, which halves the memory and costs accuracy.
        on_nonfinite: What a task gradient with NaN or infinity does when no gradient scaler is at work: ``"raise"``
            (default) stops and names the task, ``"drop"`` leaves the task out of this step.
        balance: What is balanced under gradient accumulation: every ``"micro_batch"`` for itself (default), or the
            ``"accumulated"`` gradients of an optimizer step, which needs the Trainer and ``at="parameters"``.
    """

    tasks: Sequence[str] | None
    at: Literal["parameters", "features"]
    head_gradients: Literal["own", "weighted"]
    every_n_steps: int
    parameters: Literal["all", "last"] | Sequence[str]
    engine: Literal["auto", "sequential", "batched", "mixed"]
    store_dtype: Literal["parameters", "bfloat16"]
    on_nonfinite: Literal["raise", "drop"]
    balance: Literal["micro_batch", "accumulated"]


_DEFAULTS: GradientOptions = {
    "tasks": None,
    "at": "parameters",
    "head_gradients": "own",
    "every_n_steps": 1,
    "parameters": "all",
    "engine": "auto",
    "store_dtype": "parameters",
    "on_nonfinite": "raise",
    "balance": "micro_batch",
}


class _BindsWhenBuilt(ABCMeta):
    """Binds a balancer to ``tasks=`` once its whole constructor has run, so that its state may depend on arguments."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        balancer = super().__call__(*args, **kwargs)
        balancer.bind(balancer._tasks_to_bind)
        return balancer


class GradientBalancer(Balancer, metaclass=_BindsWhenBuilt):
    r"""A balancer that looks at the gradient of every task and returns a scalar whose gradient is its update.

    In one call the losses are differentiated with :func:`torch.autograd.grad`, the method finds its update
    :math:`\hat g` for the shared parameters, and a scalar is returned whose value is :math:`\sum_k w_k L_k` and whose
    backward hands :math:`\hat g` to the shared parameters and every task's own gradients to its own parameters. There
    is no further pass through the network. Parameters that are not shared are found by walking the autograd graph.

    Methods derive from :class:`GradientWeighting`, which sees the Gramian of the gradients, or from
    :class:`GradientAggregation`, which sees the gradients themselves. Their constructors end in
    ``**options: Unpack[GradientOptions]`` and begin with ``super().__init__(**options)``.

    With several processes the gradient of a task is the mean over the processes of the gradients of the losses given
    to the call, and all processes compute the same weights. All of them must have the same tasks in a call.

    Shared parameters that no loss reaches get a gradient of zero; those that do not require a gradient are left alone.
    A loss that depends on nothing shared is an error, unless it is exactly zero (no labels for this task here).

    Args:
        options: See :class:`GradientOptions`.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If an option has another value than those listed, or two of them exclude each other.

    Note:
        Hooks that ``parameter.register_hook`` installed fire once, on the update. Hooks on intermediate results fire in
        every pass, as these are computed several times.
    """

    needs: ClassVar[Literal["losses", "gradients", "second_pass"]] = "gradients"

    compares_at: ClassVar[tuple[str, ...]] = ("parameters", "features")
    """Values of ``at`` for which the method is defined."""

    needs_matrix: ClassVar[bool] = False
    """Whether the method needs the gradients themselves, not only their Gramian."""

    reused_weights: Tensor
    scaler: Any = None
    """Gradient scaler of float16 training (``torch.amp.GradScaler``); set by :meth:`attach`, or by hand."""

    def __init__(self, **options: Unpack[GradientOptions]) -> None:
        super().__init__()
        name = type(self).__name__
        if unknown := sorted(set(options) - set(_DEFAULTS)):
            raise TypeError(f"{name}: unknown options {unknown}; known are {sorted(_DEFAULTS)}.")
        given = cast(GradientOptions, {**_DEFAULTS, **options})
        self._tasks_to_bind = given["tasks"]
        self.at = given["at"]
        self.head_gradients = given["head_gradients"]
        self.every_n_steps = given["every_n_steps"]
        self.parameters_compared = given["parameters"]
        self.engine = given["engine"]
        self.store_dtype = given["store_dtype"]
        self.on_nonfinite = given["on_nonfinite"]
        self.balance = given["balance"]
        for option, hint in get_type_hints(GradientOptions).items():
            choices = get_args(hint)
            if choices and all(isinstance(choice, str) for choice in choices) and given[option] not in choices:  # type: ignore[literal-required]
                raise ValueError(f"{name}: {option} must be one of {list(choices)}, got {given[option]!r}.")  # type: ignore[literal-required]
        if self.at not in self.compares_at:
            raise ValueError(f"{name}: at must be one of {list(self.compares_at)}, got {self.at!r}.")
        if not self.every_n_steps >= 1:
            raise ValueError(f"{name}: every_n_steps must be at least 1, got {self.every_n_steps}.")
        if isinstance(self.parameters_compared, str) and self.parameters_compared not in ("all", "last"):
            raise ValueError(
                f'{name}: parameters must be "all", "last" or a list of name patterns, got '
                f"{self.parameters_compared!r}; write [{self.parameters_compared!r}] for one pattern."
            )
        if self.at == "features" and self.parameters_compared != "all":
            raise ValueError(f'{name}: parameters={self.parameters_compared!r} has no meaning with at="features".')
        if self.balance == "accumulated" and (
            self.at == "features" or self.every_n_steps > 1 or self.parameters_compared != "all"
        ):
            raise ValueError(
                f'{name}: balance="accumulated" goes with at="parameters", every_n_steps=1 and parameters="all" only.'
            )
        self._last = _Last()
        self._watched: list[tuple[str, nn.Parameter]] = []
        self._pending: tuple[Tensor, tuple[str, ...], int] | None = None
        self._fresh: set[str] = set()
        dtype = torch.bfloat16 if self.store_dtype == "bfloat16" else None
        self._engines = Engines(self.engine, dtype)
        self._subset_store = FlatStore(dtype)
        self._accumulator = Accumulator(dtype)
        self._loop = _Loop(None)
        self._sharded = False
        self._reported = False

    # ------------------------------------------------------------------ state
    def bind(self, tasks: Sequence[str] | None) -> None:
        """Fix the task names and create the state; see :meth:`Balancer.bind`."""
        first = tasks is not None and not self.task_names
        super().bind(tasks)
        if first and self.every_n_steps > 1:
            device = self._anchor.device
            self.register_buffer("reused_weights", torch.zeros(len(self.task_names), device=device))

    def reset(self) -> None:
        """Forget everything learned or remembered; the tasks stay bound."""
        super().reset()
        self._last = _Last()
        self._pending = None
        self._fresh = set()
        self._accumulator.clear()

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is no tensor."""
        return {**super().get_extra_state(), "fresh": sorted(self._fresh)}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`get_extra_state` returned."""
        super().set_extra_state(state)
        self._fresh = set(state.get("fresh", ()))

    # ------------------------------------------------------------------ introductions
    def watch(self, encoder: nn.Module) -> None:
        """Meet the network whose parameters are shared, before its first forward pass.

        Makes the names of its parameters known to ``parameters=``, and keeps ``torch.compile`` from compiling backward
        passes that run only once (donated buffers).

        Args:
            encoder: The shared network.
        """
        self._watched = list(encoder.named_parameters())
        _keep_backward_repeatable()

    def attach(self, trainer: Trainer) -> None:
        """Take the Trainer's gradient scaler and check that its strategy can work with this method.

        Raises:
            MisconfigurationException: If the strategy shards parameters and ``at="parameters"``.
        """
        super().attach(trainer)
        _keep_backward_repeatable()
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._loop = _Loop(trainer)
        from lightning.fabric.utilities.exceptions import MisconfigurationException
        from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy

        self._sharded = isinstance(trainer.strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy)
        if self._sharded and self.at == "parameters":
            raise MisconfigurationException(
                f"{type(self).__name__}: {type(trainer.strategy).__name__} shards parameters and their gradients, "
                'so the gradients of single tasks cannot be compared at the parameters; set at="features", or use '
                'strategy="ddp".'
            )

    # ------------------------------------------------------------------ the call
    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        self._raise_pending()
        if not torch.is_grad_enabled():
            raise ValueError(
                f"{type(self).__name__}: gradients are switched off; call it in training_step, not under no_grad."
            )
        names = tuple(losses)
        device = next(iter(losses.values())).device
        self._check_precision(device)
        leaves = [parameter for parameter in shared or () if parameter.requires_grad]
        found = [tensor for tensor in flat_tensors(features) if tensor.requires_grad]
        self._check_given(shared, features, leaves, found)
        with torch.no_grad(), _autocast_off(device):
            scale = self._loss_scale(device)
            graph = TaskGraph(names, list(losses.values()), leaves, found if self.at == "features" else ())
            self._check_reach(graph)
            if self.steps % self.every_n_steps and self._fresh.issuperset(names):
                return self._reuse(graph, found, scale)
            if self.balance == "accumulated":
                return self._accumulate(graph, scale)
            gradients = self._differentiate(graph, found, scale)
            values = _values(graph.losses)
            return self._balance(
                _Step(names, values, values, gradients, graph.heads, scale, scale, self._passing(graph))
            )

    @abstractmethod
    def _update(
        self, gradients: TaskGradients, gramian: Tensor, losses: Tensor, rows: list[int], unit: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the weights of the losses and the update at the gradients' targets, in units of the gradients."""

    def _differentiate(self, graph: TaskGraph, features: list[Tensor], scale: Tensor | None) -> TaskGradients:
        if self.at == "features":
            return FeatureGradients(graph, features, scale)
        if self.parameters_compared != "all":
            return SubsetGradients(graph, self._compared(graph.shared), scale, self._subset_store)
        gradients = self._engines.gradients(graph, scale, self.needs_matrix)
        if not self._reported:
            self._reported = True
            from lightning.pytorch.utilities import rank_zero_info

            rank_zero_info(
                f"{type(self).__name__} computes the gradients of {len(graph.names)} tasks by {self.engine_report}."
            )
        return gradients

    def _compared(self, shared: Sequence[Tensor]) -> list[Tensor]:
        """Return the shared parameters that the Gramian looks at."""
        name = type(self).__name__
        if self.parameters_compared == "last":
            weights = [leaf for leaf in shared if leaf.ndim >= 2]
            if not weights:
                raise ValueError(
                    f'{name}: parameters="last" needs a shared weight with two or more dimensions, got none.'
                )
            return weights[-1:]
        if not self._watched:
            raise ValueError(
                f"{name}: parameters={list(self.parameters_compared)} needs the names of the shared parameters; call "
                "balancer.watch(encoder) once before training."
            )
        known = {id(leaf) for leaf in shared}
        names = {label: leaf for label, leaf in self._watched if id(leaf) in known}
        chosen: dict[int, Tensor] = {}
        for pattern in self.parameters_compared:
            matching = fnmatch.filter(names, pattern)
            if not matching:
                raise ValueError(f"{name}: parameters has no match for {pattern!r}; the names are {list(names)}.")
            chosen |= {id(names[label]): names[label] for label in matching}
        return list(chosen.values())

    def _balance(self, step: _Step) -> Tensor:
        """Find weights and update, and return the scalar that carries them."""
        names, gradients = step.names, step.gradients
        gram, means = self._exchange(gradients.gramian_share(), step.means)
        if step.unit is not None:
            gram = gram / step.unit.to(gram.dtype) ** 2
        self._last.gramian, self._last.tasks = gram, names
        rows = self._index(names)
        if step.passing is None and not self._looks_at_once(gram.device):
            return self._balance_on_device(step, gram, means, rows)
        factor = None if step.scale is None else 1 / step.scale
        good = [math.isfinite(square) for square in gram.diagonal().tolist()]
        kept = [task for task, fine in enumerate(good) if fine]
        if len(kept) == len(names):
            weights, update = self._update(gradients, gram, means, rows, step.unit)
            return self._finish(step, weights, update, factor)
        if step.scale is not None:  # an overflow: let the scaler see it and skip the step
            weights = torch.ones_like(means)
            return self._finish(step, weights, gradients.combine(weights), torch.full_like(step.scale, torch.nan))
        dropped = [task for task, fine in enumerate(good) if not fine]
        if self.on_nonfinite == "raise":
            raise NonFiniteGradientError(_nonfinite(type(self).__name__, [names[task] for task in dropped], self.steps))
        gradients.drop(dropped)
        weights = torch.zeros_like(means)
        update = gradients.combine(weights)
        if kept:
            some = _Kept(gradients, kept, len(names))
            part, update = self._update(
                some, gram[kept][:, kept], means[kept], [rows[task] for task in kept], step.unit
            )
            weights[kept] = part.to(weights.dtype)
        finite = torch.tensor(good, device=step.values.device)
        values = torch.where(finite, step.values, torch.zeros_like(step.values))
        return self._finish(dataclasses.replace(step, values=values), weights, update, factor)

    def _balance_on_device(self, step: _Step, gram: Tensor, means: Tensor, rows: list[int]) -> Tensor:
        """Balance without the host looking at the gradients: what is not finite is masked on the device."""
        finite = gram.diagonal().isfinite()
        fine = finite.all()
        before = {name: buffer.clone() for name, buffer in self.named_buffers()}
        safe = torch.where(fine, gram, torch.eye(len(gram), dtype=gram.dtype, device=gram.device))
        losses = torch.where(fine, means, torch.ones_like(means))
        weights, update = self._update(step.gradients, safe, losses, rows, step.unit)
        for name, buffer in self.named_buffers():
            if name in before and before[name].shape == buffer.shape:
                buffer.copy_(torch.where(fine, buffer, before[name]))
        if step.scale is not None:
            factor = torch.where(fine, 1 / step.scale, torch.full_like(step.scale, torch.nan))
            return self._finish(step, weights, update, factor)
        self._pending = (finite, step.names, self.steps)
        return self._finish(step, weights, update, None, fine)

    def _finish(
        self, step: _Step, weights: Tensor, update: list[Tensor], factor: Tensor | None, keep: Tensor | None = None
    ) -> Tensor:
        self._remember_weights(step.names, weights)
        if self.every_n_steps > 1:
            put(self.reused_weights, self._index(step.names), weights.detach())
            self._fresh = set(step.names)
        if step.passing is not None:
            return self._redirected(step, weights, update, factor)
        leaves, grads = self._head_update(step.leaves, step.gradients.heads, weights)
        value = (weights.to(step.values.dtype) * step.values).sum()
        return inject(value, [*step.gradients.targets, *leaves], [*update, *grads], factor, keep)

    def _accumulate(self, graph: TaskGraph, scale: Tensor | None) -> Tensor:
        """Add the gradients of a micro-batch; balance their sum in the last one before the optimizer's step."""
        row_of = {name: row for row, name in enumerate(self.task_names)}
        count, last = self._loop.window(type(self).__name__)
        weighted = self.head_gradients == "weighted"
        heads = self._accumulator.add(graph, scale, row_of, weighted)
        values = _values(graph.losses)
        if not last:
            before = [self._weights.get(name, values.new_ones(())) for name in graph.names]
            leaves, grads = self._head_update(graph.heads, heads, torch.ones_like(values))
            if weighted:  # handed out with the weights that the last micro-batch finds
                grads = [torch.zeros_like(gradient) for gradient in grads]
            leaves, grads = [*leaves, graph.shared[0]], [*grads, torch.zeros_like(graph.shared[0])]
            total = (torch.stack(before).to(values.dtype) * values).sum()
            return inject(total, leaves, grads, None if scale is None else 1 / scale)
        names, gradients, sums, leaves_of = self._accumulator.finish(row_of)
        if not weighted:
            mine = {name: (leaves, part) for name, leaves, part in zip(graph.names, graph.heads, heads, strict=True)}
            leaves_of = [mine.get(name, ([], []))[0] for name in names]
            gradients.heads = [mine.get(name, ([], []))[1] for name in names]
        unit = values.new_full((), count) if scale is None else scale * count
        means = sums / count
        return self._balance(_Step(tuple(names), means, means, gradients, leaves_of, scale, unit))

    def _reuse(self, graph: TaskGraph, features: list[Tensor], scale: Tensor | None) -> Tensor:
        """Apply the weights of an earlier call: one pass of the shared part."""
        weights = take(self.reused_weights, self._index(graph.names))
        if self.at == "features":
            gradients = FeatureGradients(graph, features, scale)
            targets, update = gradients.targets, gradients.combine(weights)
            if (passing := self._passing(graph)) is not None:
                if (ratio := self._reuse_ratio(update, scale)) is not None:
                    weights, update = weights * ratio, list(torch._foreach_mul(update, ratio))
                self._remember_weights(graph.names, weights)
                values = _values(graph.losses)
                step = _Step(graph.names, values, values, gradients, graph.heads, scale, scale, passing)
                return self._redirected(step, weights, update, None if scale is None else 1 / scale)
            leaves, grads = self._head_update(graph.heads, gradients.heads, weights)
        else:
            targets, leaves = graph.shared, graph.own_leaves
            starts = seeds(graph, scale)
            weighted = [weight * start for weight, start in zip(weights.unbind(), starts, strict=True)]
            if self.head_gradients == "weighted":
                found = weighted_pass(graph, weighted, [*targets, *leaves])
                update, grads = found[: len(targets)], found[len(targets) :]
            else:
                update, grads = weighted_pass(graph, weighted, targets), weighted_pass(graph, starts, leaves)
        if (ratio := self._reuse_ratio(update, scale)) is not None:
            weights, update = weights * ratio, list(torch._foreach_mul(update, ratio))
            if self.head_gradients == "weighted":
                grads = [gradient * ratio for gradient in grads]
        self._remember_weights(graph.names, weights)
        values = _values(graph.losses)
        factor = None if scale is None else 1 / scale
        total = (weights.to(values.dtype) * values).sum()
        return inject(total, [*targets, *leaves], [*update, *grads], factor)

    def _reuse_ratio(self, update: list[Tensor], scale: Tensor | None) -> Tensor | None:
        """Return by what a step with reused weights is multiplied, None for one; the update is this process's own."""
        return None

    def _head_update(
        self, leaves_of: list[list[Tensor]], heads: list[list[Tensor]], weights: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Return the tasks' own leaves, each once, and what they receive."""
        leaves: dict[int, Tensor] = {}
        sums: dict[int, Tensor] = {}
        for task_leaves, gradients, weight in zip(leaves_of, heads, weights.unbind(), strict=True):
            if self.head_gradients == "weighted" and gradients:
                gradients = list(torch._foreach_mul(gradients, weight))
            for leaf, gradient in zip(task_leaves, gradients, strict=True):
                key = id(leaf)
                leaves[key] = leaf
                sums[key] = sums[key] + gradient if key in sums else gradient
        return list(leaves.values()), [sums[key] for key in leaves]

    def _passing(self, graph: TaskGraph) -> TaskGraph | None:
        """Return the graph if the heads must take part in the backward pass themselves: sharded parameters need it."""
        return graph if self.at == "features" and (self._sharded or graph.sharded) else None

    def _redirected(self, step: _Step, weights: Tensor, update: list[Tensor], factor: Tensor | None) -> Tensor:
        """Return a scalar whose backward passes the heads in the ordinary way and the features with the update."""
        if step.passing is None or not isinstance(step.gradients, FeatureGradients):
            raise RuntimeError("only gradients at features can be redirected.")
        gradients = step.gradients
        coefficients = weights if self.head_gradients == "weighted" else torch.ones_like(weights)
        live = [
            task
            for task, loss in enumerate(step.passing.losses)
            if loss.requires_grad and task not in gradients.dropped
        ]
        with torch.enable_grad():
            terms = [step.passing.losses[task] * coefficients[task].to(step.values.dtype) for task in live]
            total = torch.stack(terms).sum()
        value = (weights.to(step.values.dtype) * step.values).sum()
        replace = len(gradients.edges) == 1
        if not replace:  # one level may lie under another, and passes on what comes from there
            update = gradients.combine(weights - coefficients)
        return redirect(value, total, gradients.edges, update, factor, replace)

    def _exchange(self, gram: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Sum the parts of the Gramian over the processes, and average the losses, in one message."""
        if not is_distributed():
            return gram, values
        dtype = torch.promote_types(gram.dtype, values.dtype)
        packed = torch.cat([gram.flatten().to(dtype), values.to(dtype) / dist.get_world_size()])
        dist.all_reduce(packed)
        return packed[: gram.numel()].view_as(gram).to(gram.dtype), packed[gram.numel() :].to(values.dtype)

    # ------------------------------------------------------------------ checks
    def _check_given(
        self,
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        leaves: list[nn.Parameter],
        found: list[Tensor],
    ) -> None:
        name = type(self).__name__
        if self.at == "features":
            if not found:
                got = "none" if features is None else "none that requires a gradient"
                raise ValueError(
                    f'{name}: at="features" needs the features of the shared part, got {got}; call '
                    "balancer(losses, features=features) with the tensors that the heads received."
                )
            return
        if any(hasattr(leaf, "device_mesh") for leaf in leaves):
            raise ValueError(
                f"{name}: the shared parameters are sharded over devices (DTensor), so the gradients of single tasks "
                'cannot be compared there; set at="features".'
            )
        if not leaves:
            got = "none" if shared is None else "none that requires a gradient"
            raise ValueError(
                f"{name}: needs the parameters that the tasks share, got {got}; call "
                "balancer(losses, shared=encoder.parameters())."
            )

    def _check_reach(self, graph: TaskGraph) -> None:
        if graph.around:
            names = [repr(graph.names[task]) for task in sorted(graph.around)]
            raise ValueError(
                f"{type(self).__name__}: the loss of {', '.join(names)} reaches shared parameters by a way around the "
                "features; give all features that heads read, or leave those parameters out of shared."
            )
        for task, name in enumerate(graph.names):
            if not graph.reaches_shared(task) and float(graph.losses[task].detach()) != 0.0:
                if graph.reentrant:
                    raise RuntimeError(REENTRANT)
                what = "the features" if self.at == "features" else "any shared parameter"
                raise ValueError(
                    f"{type(self).__name__}: the loss of task {name!r} does not depend on {what}; pass what its head "
                    "reads, without detach(), or leave the task out of the balancer."
                )

    def _check_precision(self, device: torch.device) -> None:
        kind = device.type
        if self.scaler is None and torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16:
            raise RuntimeError(
                f"{type(self).__name__}: float16 autocast is active and no gradient scaler is known, so small task "
                "gradients would be lost; call balancer.attach(trainer), or set balancer.scaler to the GradScaler."
            )

    def _loss_scale(self, device: torch.device) -> Tensor | None:
        if self.scaler is None or not self.scaler.is_enabled():
            return None
        return cast(Tensor, self.scaler.scale(torch.ones((), device=device)))

    def _looks_at_once(self, device: torch.device) -> bool:
        """Whether the host checks the gradients in this step, rather than at the start of the next."""
        if device.type == "cpu" or self.on_nonfinite == "drop":
            return True
        return sum(buffer.numel() for buffer in self.buffers()) > _LARGE_STATE

    def _raise_pending(self) -> None:
        if self._pending is None:
            return
        finite, names, step = self._pending
        self._pending = None
        bad = [name for name, good in zip(names, finite.tolist(), strict=True) if not good]
        if bad:
            raise NonFiniteGradientError(_nonfinite(type(self).__name__, bad, step))

    # ------------------------------------------------------------------ what others read
    @property
    def engine_report(self) -> str:
        """Which engine computed the gradients at the parameters in the last step, and why."""
        return self._engines.report

    @property
    def last_gramian(self) -> Tensor | None:
        """Gramian of the task gradients in the last step that computed it, detached; rows as in ``last_tasks``."""
        return self._last.gramian

    @property
    def last_tasks(self) -> tuple[str, ...]:
        """Names of the tasks of that step."""
        return self._last.tasks

    @property
    def norms(self) -> dict[str, Tensor]:
        """Task name -> norm of its gradient in the last step that computed it."""
        if self.last_gramian is None:
            return {}
        return dict(zip(self.last_tasks, gramian_norms(self.last_gramian).unbind(), strict=True))

    @property
    def cosines(self) -> dict[tuple[str, str], Tensor]:
        """Pair of task names -> cosine between their gradients in the last step that computed it."""
        if self.last_gramian is None:
            return {}
        cosines = gramian_cosines(self.last_gramian)
        names = self.last_tasks
        return {(a, b): cosines[i, j] for i, a in enumerate(names) for j, b in enumerate(names) if i < j}

    @property
    def conflict_share(self) -> Tensor | None:
        """Share of task pairs whose gradients pointed against each other in the last step that computed them."""
        return None if self.last_gramian is None else conflict_share(self.last_gramian)


class NonFiniteGradientError(RuntimeError):
    """The gradient of a task holds NaN or infinity."""


class GradientWeighting(GradientBalancer):
    r"""A gradient method whose update is a weighted sum of the task gradients.

    .. math:: \hat g = \sum_k w_k g_k, \qquad w = w(G, L), \quad G_{ij} = g_i^\top g_j

    Subclasses implement :meth:`compute_weights`; it sees no gradient but their Gramian, so its cost does not depend on
    the size of the network.
    """

    weight_degree: float | None = 0
    """How the weights react to all gradients times c: 0 not at all, -1 as ``1/c``; None if by no power of c."""

    @abstractmethod
    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the present tasks, and update the state.

        Called without gradients and without autocast. Values are finite. Random numbers come from
        :meth:`~lightning_mtl.balancers.Balancer.generator`. State lies in buffers only: these are put back where a step
        turns out not to be finite after the fact (accelerators), or the gradient scaler skips it.

        Args:
            gramian: Inner products of the present tasks' gradients, shape ``(k, k)``, at least float32, alike on all
                processes, free of any loss scale.
            losses: Values of their losses, shape ``(k,)``, at least float32, mean over the processes.
            rows: Their rows in the state.

        Returns:
            Weights, shape ``(k,)``.
        """

    def _update(
        self, gradients: TaskGradients, gramian: Tensor, losses: Tensor, rows: list[int], unit: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        weights = self.compute_weights(gramian, losses, rows).detach().to(gramian.dtype)
        return weights, gradients.combine(weights)


class GradientAggregation(GradientBalancer):
    """A gradient method that needs the gradients themselves, one row a task.

    Subclasses implement :meth:`aggregate`. The losses enter the returned value with weight one. Memory is ``K × P``
    numbers, and with several processes each of them holds the whole averaged matrix.
    """

    compares_at: ClassVar[tuple[str, ...]] = ("parameters",)
    needs_matrix: ClassVar[bool] = True

    def __init__(self, **options: Unpack[GradientOptions]) -> None:
        name = type(self).__name__
        if options.get("head_gradients", "own") != "own":
            raise ValueError(f'{name}: has no weights, so head_gradients must be "own", got "weighted".')
        if options.get("every_n_steps", 1) != 1:
            raise ValueError(f"{name}: has no weights to reuse, so every_n_steps must be 1.")
        if options.get("parameters", "all") != "all":
            raise ValueError(f'{name}: has no weights for other parameters, so parameters must be "all".')
        if options.get("engine", "auto") == "mixed":
            raise ValueError(f'{name}: needs the matrix of gradients, which engine="mixed" never builds; use "auto".')
        super().__init__(**options)

    @abstractmethod
    def aggregate(self, matrix: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the update, and update the state.

        Called without gradients and without autocast, with finite values. The matrix is overwritten in the next step.

        Args:
            matrix: Gradients of the present tasks, shape ``(k, P)``, alike on all processes, free of any loss scale;
                in the parameters' dtype.
            losses: Values of their losses, shape ``(k,)``, at least float32, mean over the processes.
            rows: Their rows in the state.

        Returns:
            The update, shape ``(P,)``.
        """

    def _update(
        self, gradients: TaskGradients, gramian: Tensor, losses: Tensor, rows: list[int], unit: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        matrix = gradients.matrix()
        if unit is not None:
            matrix = matrix / unit.to(matrix.dtype)
        vector = self.aggregate(matrix, losses, rows).detach()
        if unit is not None:
            vector = vector * unit.to(vector.dtype)
        return torch.ones_like(losses), gradients.split(vector)


@dataclasses.dataclass
class _Last:
    """What the last step leaves to be read."""

    gramian: Tensor | None = None
    tasks: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Step:
    """What a step has before weights are found."""

    names: tuple[str, ...]
    values: Tensor
    """Losses of which the returned scalar's value is the weighted sum."""
    means: Tensor
    """Losses that the method sees, still those of this process."""
    gradients: TaskGradients
    leaves: list[list[Tensor]]
    """Each task's own leaves."""
    scale: Tensor | None
    """Loss scale of the gradients."""
    unit: Tensor | None
    """What the gradients must be divided by to be those of the mean losses; None is one."""
    passing: TaskGraph | None = None
    """The graph, if the heads take part in the backward pass themselves."""


class _Loop:
    """The Trainer's place in its accumulation window; never copied or saved with a model."""

    def __init__(self, trainer: Trainer | None) -> None:
        self._trainer = trainer

    def __deepcopy__(self, memo: dict[int, Any]) -> _Loop:
        return _Loop(None)

    def __getstate__(self) -> dict[str, Any]:
        return {"_trainer": None}

    def window(self, owner: str) -> tuple[int, bool]:
        """Return the number of micro-batches of an optimizer step, and whether this is the last."""
        if self._trainer is None:
            raise ValueError(
                f'{owner}: balance="accumulated" needs to know when the optimizer steps; call '
                "balancer.attach(trainer), or sum the losses of the micro-batches yourself."
            )
        loop = self._trainer.fit_loop.epoch_loop
        return self._trainer.accumulate_grad_batches, not loop._should_accumulate()


def _values(losses: Sequence[Tensor]) -> Tensor:
    """Return the values of the losses, at least float32."""
    stacked = torch.stack([loss.detach() for loss in losses])
    return stacked.to(torch.promote_types(stacked.dtype, torch.float32))


class _Kept(TaskGradients):
    """Some of the tasks of other gradients."""

    def __init__(self, whole: TaskGradients, kept: list[int], count: int) -> None:
        self.whole, self.kept, self.count = whole, kept, count

    def gramian_share(self) -> Tensor:
        return self.whole.gramian_share()[self.kept][:, self.kept]

    def combine(self, weights: Tensor) -> list[Tensor]:
        full = weights.new_zeros(self.count)
        full[self.kept] = weights
        return self.whole.combine(full)

    def drop(self, tasks: Sequence[int]) -> None:
        self.whole.drop([self.kept[task] for task in tasks])

    def matrix(self) -> Tensor:
        return self.whole.matrix()[self.kept]

    def split(self, vector: Tensor) -> list[Tensor]:
        return self.whole.split(vector)


def _nonfinite(owner: str, tasks: Sequence[str], step: int) -> str:
    return (
        f"{owner}: the gradient of {', '.join(map(repr, tasks))} is not finite at step {step}; lower the learning "
        'rate, look at that loss, or set on_nonfinite="drop" to leave such a task out of the step.'
    )


@contextlib.contextmanager
def _autocast_off(device: torch.device) -> Iterator[None]:
    if torch.is_autocast_enabled(device.type):
        with torch.autocast(device.type, enabled=False):
            yield
    else:
        yield


def _keep_backward_repeatable() -> None:
    """Have ``torch.compile`` compile backward passes that can run more than once on the same graph."""
    import torch._functorch.config as config

    if getattr(config, "donated_buffer", False):
        config.donated_buffer = False
