"""TorchJD's weightings, aggregators and scalarizers as balancers, and balancers as TorchJD weightings."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_mtl.balancers.base import Balancer, Recompute, mean_over_ranks
from lightning_mtl.balancers.engines import TaskGradients
from lightning_mtl.balancers.gradient_weighting.base import GradientBalancer, GradientOptions, GradientWeighting

Weights = Callable[[Tensor], Tensor]


def _library(owner: str) -> Any:
    """Return the packages ``torchjd.aggregation`` and ``torchjd.scalarization``.

    Raises:
        ModuleNotFoundError: If TorchJD is not installed, or too old.
    """
    try:
        import torchjd.aggregation
        import torchjd.scalarization
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{owner}: needs `pip install lightning-mtl[torchjd]`.") from error
    return torchjd


def _built(owner: str, argument: str, given: nn.Module | Callable[[], nn.Module], kind: type, room: str) -> nn.Module:
    """Return the TorchJD object that was given, or that the given callable builds.

    Raises:
        TypeError: If it is of another kind.
    """
    built = given if isinstance(given, nn.Module) or not callable(given) else given()
    if not isinstance(built, kind):
        raise TypeError(
            f"{owner}: {argument} must be a {kind.__name__} of torchjd.{room}, or a callable that builds one, got "
            f"{type(built).__name__}."
        )
    return built


# ---------------------------------------------------------------------- state of foreign objects
_INTERNALS = frozenset(vars(nn.Module()))
_NO_STATE = object()


def _encode(value: Any, names: Mapping[int, str]) -> Any:
    """Turn a value into nested lists that a weights-only load accepts; ``_NO_STATE`` if it is no data."""
    if value is None or isinstance(value, bool | int | float | str):
        return ["value", value]
    if isinstance(value, Tensor):
        return ["tensor", value.detach().clone()]
    if isinstance(value, np.ndarray | np.generic):
        return ["array", torch.from_numpy(np.array(value))]
    if isinstance(value, torch.dtype):
        return ["dtype", str(value).removeprefix("torch.")]
    if isinstance(value, torch.device):
        return ["device", None]  # that of the balancer, wherever the state is loaded
    if isinstance(value, torch.optim.Optimizer) and type(value) is getattr(torch.optim, type(value).__name__, None):
        held = [names.get(id(leaf), "") for group in value.param_groups for leaf in group["params"]]
        return ["optimizer", [type(value).__name__, held, copy.deepcopy(value.state_dict())]]
    if isinstance(value, list | tuple | dict):
        flat = [part for pair in value.items() for part in pair] if isinstance(value, dict) else list(value)
        parts = [_encode(part, names) for part in flat]
        return _NO_STATE if any(part is _NO_STATE for part in parts) else [type(value).__name__, parts]
    return _NO_STATE


def _decode(code: Any, parameters: Mapping[str, nn.Parameter], device: torch.device) -> Any:
    kind, value = code
    if kind == "tensor":
        return value.to(device, copy=True)
    if kind == "array":
        return value.cpu().numpy().copy()
    if kind == "dtype":
        return getattr(torch, value)
    if kind == "device":
        return device
    if kind == "optimizer":
        name, held, state = value
        optimizer = getattr(torch.optim, name)([parameters[label] for label in held])
        optimizer.load_state_dict(copy.deepcopy(state))
        return optimizer
    if kind in ("list", "tuple", "dict"):
        parts = [_decode(part, parameters, device) for part in value]
        if kind == "dict":
            return dict(zip(parts[::2], parts[1::2], strict=True))
        return parts if kind == "list" else tuple(parts)
    return value


def _same(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and one.dtype == two.dtype and torch.equal(one.cpu(), two.cpu())
    if isinstance(one, list | tuple) and isinstance(two, list | tuple):
        return len(one) == len(two) and all(map(_same, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_same(one[key], two[key]) for key in one)
    return type(one) is type(two) and bool(one == two)


class _Memory:
    """What a foreign module remembers, also where it does not keep it in buffers.

    TorchJD registers buffers as None and fills them later, and keeps step numbers, keys and optimizers as attributes.
    Attributes are state if they are data and differ from what they were when the module was handed over.

    Args:
        module: The foreign module.
    """

    def __init__(self, module: nn.Module) -> None:
        self.attributes = self._attributes(module)
        self.tensors = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}

    @staticmethod
    def _attributes(module: nn.Module) -> dict[str, Any]:
        names = {id(leaf): name for name, leaf in module.named_parameters()}
        found = {}
        for place, part in module.named_modules():
            for attribute, value in vars(part).items():
                if attribute not in _INTERNALS and (code := _encode(value, names)) is not _NO_STATE:
                    found[f"{place}:{attribute}"] = code
        return found

    def changes(self, module: nn.Module) -> dict[str, Any]:
        """Return the attributes that are no longer as they were at the start."""
        return {
            key: code
            for key, code in self._attributes(module).items()
            if key not in self.attributes or not _same(code, self.attributes[key])
        }

    def restore_attributes(self, module: nn.Module, changes: Mapping[str, Any], device: torch.device) -> None:
        """Give the module these attributes, and all others as they were at the start."""
        parameters = dict(module.named_parameters())
        for key, code in {**self.attributes, **changes}.items():
            place, attribute = key.split(":")
            vars(module.get_submodule(place))[attribute] = _decode(code, parameters, device)

    def make_room(self, module: nn.Module, state: Mapping[str, Any], prefix: str, device: torch.device) -> None:
        """Create the buffers that a state holds and the module does not have yet, and clear those it does not hold."""
        for place, part in module.named_modules():
            for name, buffer in part._buffers.items():
                if name in part._non_persistent_buffers_set:
                    continue
                label = f"{place}.{name}" if place else name
                stored = state.get(prefix + label)
                if isinstance(stored, Tensor) and (buffer is None or buffer.shape != stored.shape):
                    part._buffers[name] = torch.empty_like(stored, device=device)
                elif stored is None and label not in self.tensors:
                    part._buffers[name] = None

    def reset(self, module: nn.Module, device: torch.device) -> None:
        """Make the module what it was at the start; parameters keep their identity."""
        self.make_room(module, self.tensors, "", device)
        module.load_state_dict(self.tensors)
        self.restore_attributes(module, {}, device)


@contextlib.contextmanager
def _seeded(generator: torch.Generator, device: torch.device) -> Iterator[None]:
    """Have torch's global generators start from this one's seed inside, and as they were afterwards."""
    indices = [torch.cuda.current_device() if device.index is None else device.index] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=indices):
        torch.manual_seed(generator.initial_seed())
        yield


# ---------------------------------------------------------------------- balancers
class _Wrapping(Balancer):
    """A balancer around a TorchJD object, whose state it saves and loads."""

    wrapped: nn.Module
    _memory: _Memory

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is no tensor of the state, with what the TorchJD object remembers outside of its buffers."""
        return {
            **super().get_extra_state(),
            "wrapped": self._memory.changes(self.wrapped),
            "on_cpu": self._left_on_cpu(),
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`get_extra_state` returned."""
        super().set_extra_state(state)
        self._memory.restore_attributes(self.wrapped, state.get("wrapped", {}), self._anchor.device)
        self._on_cpu = list(state.get("on_cpu", ()))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._memory.make_room(self.wrapped, state_dict, prefix + "wrapped.", self._anchor.device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    _on_cpu: Sequence[str] = ()

    def _left_on_cpu(self) -> list[str]:
        """Return the buffers that TorchJD keeps on the CPU while the balancer lies elsewhere."""
        if self._anchor.device.type == "cpu":
            return list(self._on_cpu)
        return [name for name, buffer in self.wrapped.named_buffers() if buffer.device.type == "cpu"]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Balancer:
        stay, before = self._left_on_cpu(), self._anchor.device
        super()._apply(fn, recurse)
        for name, buffer in self.wrapped.named_buffers():
            if name in stay:
                buffer.data = buffer.data.cpu()
        if self._anchor.device != before:
            changes = self._memory.changes(self.wrapped)
            self._memory.restore_attributes(self.wrapped, changes, self._anchor.device)
        return self


class _TorchJDGradients(_Wrapping, GradientBalancer):
    """What the adapters of weightings and aggregators have in common.

    Args:
        seed: Seed of what TorchJD draws.
        options: See :class:`GradientOptions`.
    """

    def __init__(self, seed: int = 0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        self.seed = seed

    def _take(self, wrapped: nn.Module, matrix: bool, has_weights: bool = True) -> None:
        """Wrap this object, which needs the matrix of gradients or not."""
        self.wrapped = wrapped
        self._memory = _Memory(wrapped)
        vars(self)["needs_matrix"] = matrix  # here a property of the object that was given, not of the class
        wanted: dict[str, Any] = {}
        if matrix:
            wanted |= {"at": "parameters", "parameters": "all"}
        if not has_weights:
            wanted |= {"head_gradients": "own", "every_n_steps": 1}
        for option, value in wanted.items():
            found = self.parameters_compared if option == "parameters" else getattr(self, option)
            if found != value:
                why = "needs the gradients themselves" if option in ("at", "parameters") else "gives no weights"
                raise ValueError(
                    f"{type(self).__name__}: {type(wrapped).__name__} {why}, so {option} must be {value!r}, got "
                    f"{found!r}."
                )

    def reset(self) -> None:
        """Forget everything learned or remembered; the tasks stay bound."""
        super().reset()
        self._memory.reset(self.wrapped, self._anchor.device)

    def _looks_at_once(self, device: torch.device) -> bool:
        return True  # state outside of buffers cannot be taken back after a gradient that is not finite

    def _matrix(self, gradients: TaskGradients, unit: Tensor | None) -> Tensor:
        matrix = gradients.matrix()
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        return matrix if unit is None else matrix / unit.to(matrix.dtype)

    def _weigh(self, weights: Weights, statistic: Tensor) -> Tensor:
        with _seeded(self.generator(), statistic.device):
            return weights(statistic).detach()


class TorchJDWeighting(_TorchJDGradients):
    r"""Use any weighting of TorchJD (``torchjd.aggregation.*Weighting``) as a balancer.

    .. math:: \hat g = \sum_k w_k g_k, \qquad w = \text{weighting}(G) \text{ or } \text{weighting}(J)

    The engines, the distributed rules and the head gradients are those of this package. Random numbers of the weighting
    depend on ``seed`` and the number of the step alone.

    State: what the weighting keeps, buffers and attributes; it can be loaded into a fresh one. TorchJD forgets its
    state when the number of tasks changes, so absent tasks reset a stateful weighting.

    Args:
        weighting: The weighting, or a callable that builds it, for instance its class; a class or a
            ``functools.partial`` of one can be written into checkpoints as a hyper-parameter.
        statistic: What the weighting is given: the ``"gramian"``, or the ``"matrix"`` of gradients. None asks the
            weighting, and takes the Gramian where it does not say.
        seed: Seed of the weighting's random numbers.
        options: See :class:`GradientOptions`.

    Raises:
        ModuleNotFoundError: If TorchJD is not installed.
        TypeError: If ``weighting`` is something else, or works on the products of two batches.

    Example:
        >>> import torch
        >>> from torchjd.aggregation import UPGradWeighting  # doctest: +SKIP
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = TorchJDWeighting(UPGradWeighting())  # doctest: +SKIP
        >>> balancer({"a": x[0], "b": 3 * x[1]}, shared=[x]).backward()  # doctest: +SKIP

    References:
        Quinton, Rey. *Jacobian Descent for Multi-Objective Optimization*. 2024. https://arxiv.org/abs/2406.16232. Code:
        https://github.com/SimplexLab/TorchJD, MIT.
    """

    def __init__(
        self,
        weighting: nn.Module | Callable[[], nn.Module],
        statistic: Literal["gramian", "matrix"] | None = None,
        seed: int = 0,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(seed, **options)
        library = _library("TorchJDWeighting").aggregation
        built = _built("TorchJDWeighting", "weighting", weighting, library.Weighting, "aggregation")
        double = tuple(
            getattr(library, name) for name in ("MoDoWeighting", "SDMGradWeighting") if hasattr(library, name)
        )
        if isinstance(built, double):
            raise TypeError(
                f"TorchJDWeighting: {type(built).__name__} works on the products of two batches' gradients, which a "
                "call does not have; use lightning_mtl.balancers.MoDo or SDMGrad."
            )
        if statistic not in (None, "gramian", "matrix"):
            raise ValueError(f"TorchJDWeighting: statistic must be 'gramian', 'matrix' or None, got {statistic!r}.")
        matrix = _reads_matrix(built) if statistic is None else statistic == "matrix"
        self._take(built, matrix)

    def _update(
        self, gradients: TaskGradients, gramian: Tensor, losses: Tensor, rows: list[int], unit: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        statistic = self._matrix(gradients, unit) if self.needs_matrix else gramian
        weights = self._weigh(self.wrapped, statistic).to(gramian.dtype)
        return weights, gradients.combine(weights)


def _reads_matrix(weighting: nn.Module) -> bool:
    """Whether a weighting is given the matrix of gradients rather than its Gramian."""
    from torchjd.aggregation import _weighting_bases as bases

    if isinstance(weighting, getattr(bases, "_MatrixWeighting", ())):
        return True
    if isinstance(weighting, getattr(bases, "_GramianWeighting", ())):
        return False
    if isinstance(weighting, getattr(bases, "_Composition", ())):
        return True  # the first function, such as compute_gramian, reads the matrix
    inner = getattr(weighting, "weighting", None)
    return _reads_matrix(inner) if isinstance(inner, bases.Weighting) else False


class TorchJDAggregator(_TorchJDGradients):
    r"""Use any aggregator of TorchJD (``torchjd.aggregation.*``) as a balancer.

    Aggregators with a ``gramian_weighting`` are given the Gramian, so nothing larger is built; other weighted ones and
    those without weights (``GradDrop``, ``TrimmedMean``, ``ConFIG``) are given the matrix of gradients, ``K × P``
    numbers. Where there are no weights, the losses enter the returned value with weight one.

    State and random numbers: as in :class:`TorchJDWeighting`.

    Args:
        aggregator: The aggregator, or a callable that builds it, for instance its class.
        seed: Seed of the aggregator's random numbers.
        options: See :class:`GradientOptions`; with the matrix ``at`` must be ``"parameters"``.

    Raises:
        ModuleNotFoundError: If TorchJD is not installed.
        TypeError: If ``aggregator`` is something else.
        ValueError: If an option cannot work with this aggregator.

    Note:
        Hooks that were registered on the aggregator itself run only where it is given the matrix and has no weights.
        TorchJD's ``NashMTL`` builds its solver in the first call and cannot be resumed from a state;
        :class:`NashMTL` of this package can.

    References:
        Quinton, Rey. *Jacobian Descent for Multi-Objective Optimization*. 2024. https://arxiv.org/abs/2406.16232. Code:
        https://github.com/SimplexLab/TorchJD, MIT.
    """

    def __init__(
        self,
        aggregator: nn.Module | Callable[[], nn.Module],
        seed: int = 0,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(seed, **options)
        library = _library("TorchJDAggregator").aggregation
        built = _built("TorchJDAggregator", "aggregator", aggregator, library.Aggregator, "aggregation")
        on_gramian = isinstance(built, library.GramianWeightedAggregator)
        self._weighted = isinstance(built, library.WeightedAggregator)
        self._take(built, not on_gramian, self._weighted)

    def _update(
        self, gradients: TaskGradients, gramian: Tensor, losses: Tensor, rows: list[int], unit: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        if not self.needs_matrix:
            weights = self._weigh(cast(nn.Module, self.wrapped.gramian_weighting), gramian).to(gramian.dtype)
            return weights, gradients.combine(weights)
        matrix = self._matrix(gradients, unit)
        if self._weighted:
            weights = self._weigh(cast(nn.Module, self.wrapped.weighting), matrix).to(gramian.dtype)
            return weights, gradients.combine(weights)
        vector = self._weigh(self.wrapped, matrix)
        return torch.ones_like(losses), gradients.split(vector if unit is None else vector * unit.to(vector.dtype))


# ---------------------------------------------------------------------- loss methods
class TorchJDScalarizer(_Wrapping):
    r"""Use any scalarizer of TorchJD (``torchjd.scalarization.*``) as a balancer.

    The scalarizer :math:`S` is evaluated once a call, at the mean of the losses over the processes; the weights are its
    partial derivatives :math:`w_k = \partial S / \partial L_k`, so the gradient is that of :math:`S` on the joined
    batch. Parameters of the scalarizer (``UW``, ``IMTLL``) receive its gradient and are learned by your optimizer;
    those that it learns itself (``FAMO.update``, after the step) are left to it, and ``DWA.step`` is called at the end
    of an epoch. Random numbers depend on ``seed`` and the number of the step alone.

    State: what the scalarizer keeps, buffers, attributes and inner optimizers; it can be loaded into a fresh one. Where
    TorchJD fixes the number of tasks, a task cannot be absent.

    Args:
        scalarizer: The scalarizer, or a callable that builds it, for instance a ``functools.partial`` of its class. Its
            entries are in the order of ``tasks``.
        tasks: Task names; None binds them at the first call.
        seed: Seed of the scalarizer's random numbers.

    Shape:
        - losses: ``(K,)``.

    Raises:
        ModuleNotFoundError: If TorchJD is not installed.
        TypeError: If ``scalarizer`` is something else.

    Note:
        The value that is returned is :math:`\sum_k w_k L_k`, not :math:`S`. Calling the scalarizer itself in several
        processes gives another gradient where :math:`S` is not linear, and weights that differ between them.

    References:
        Quinton, Rey. *Jacobian Descent for Multi-Objective Optimization*. 2024. https://arxiv.org/abs/2406.16232. Code:
        https://github.com/SimplexLab/TorchJD, MIT.
    """

    def __init__(
        self,
        scalarizer: nn.Module | Callable[[], nn.Module],
        tasks: Sequence[str] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        library = _library("TorchJDScalarizer").scalarization
        self.wrapped = _built("TorchJDScalarizer", "scalarizer", scalarizer, library.Scalarizer, "scalarization")
        self.seed = seed
        self._memory = _Memory(self.wrapped)
        itself = hasattr(self.wrapped, "update")
        if itself:  # learned in after_step; no other optimizer and no reducer is to wait for their gradients
            self.wrapped.requires_grad_(False)
        learned = any(parameter.requires_grad for parameter in self.wrapped.parameters())
        # properties of the object that was given, not of the class
        vars(self).update(needs_losses_after_step=itself, learns_parameters=learned)
        self.bind(tasks)

    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        stacked = torch.stack(list(losses.values()))
        values = stacked.detach().to(torch.promote_types(stacked.dtype, torch.float32))
        means = mean_over_ranks(values).clone().requires_grad_()
        with torch.enable_grad(), _seeded(self.generator(), values.device):
            scalar = self.wrapped(means)
        (weights,) = torch.autograd.grad(scalar, means, retain_graph=self.learns_parameters)
        self._remember_weights(losses, weights)
        total = (weights * stacked.to(values.dtype)).sum()
        if self.learns_parameters:
            total = total + (scalar - scalar.detach())
        return total

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Give the losses after the optimizer's step to a scalarizer that asks for them."""
        if self.needs_losses_after_step:
            values = torch.stack([losses[name].detach() for name in self.task_names if name in losses])
            means = mean_over_ranks(values.to(torch.promote_types(values.dtype, torch.float32)))
            self.wrapped.requires_grad_(True)
            cast(Any, self.wrapped).update(means)
            self.wrapped.requires_grad_(False)

    def end_epoch(self) -> None:
        """Tell a scalarizer that acts once an epoch that one ended."""
        super().end_epoch()
        step = getattr(self.wrapped, "step", None)
        if callable(step):
            step()

    def reset(self) -> None:
        """Forget everything learned or remembered; the tasks stay bound."""
        self.steps = self.epochs = 0
        self._weights = {}
        self._memory.reset(self.wrapped, self._anchor.device)


# ---------------------------------------------------------------------- the other way round
class _NoLosses(Tensor):
    """Stands for losses that nobody gave; using it in any way is an error that says what to do."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise ValueError(
            "as_torchjd: this balancer looks at the values of the losses; set `.losses` of the weighting to them, "
            "shape (K,), before each call."
        )


@functools.cache
def _weighting_class() -> type:
    """Define the subclass of TorchJD's weighting, which cannot exist before TorchJD is imported."""
    library = _library("as_torchjd").aggregation

    class LightningWeighting(library.Weighting):  # type: ignore[misc, name-defined]
        """Weights of a balancer or a function of the Gramian, for TorchJD's engines."""

        def __init__(self, method: GradientWeighting | Weights) -> None:
            super().__init__()
            self.method = method
            self.losses: Tensor | None = None

        def forward(self, gramian: Tensor, /) -> Tensor:
            if not isinstance(self.method, GradientWeighting):
                return self.method(gramian)
            count = len(gramian)
            if not self.method.task_names:
                self.method.bind([str(row) for row in range(count)])
            bound = len(self.method.task_names)
            if bound != count:
                raise ValueError(f"as_torchjd: the balancer is bound to {bound} tasks, got a Gramian of {count}.")
            losses = torch.zeros(0).as_subclass(_NoLosses) if self.losses is None else self.losses.to(gramian)
            wide = gramian.detach().to(torch.promote_types(gramian.dtype, torch.float32))
            with torch.no_grad():
                weights = self.method.compute_weights(wide, losses, list(range(count)))
            self.method.steps += 1
            return weights.to(gramian.dtype)

    return LightningWeighting


def as_torchjd(method: GradientWeighting | Weights) -> nn.Module:
    """Make a weighting for TorchJD's engines out of a balancer or a function of the Gramian.

    The result is a ``torchjd.aggregation.Weighting`` on the Gramian: pass it where TorchJD takes one (``autogram``), or
    wrap it in ``torchjd.aggregation.GramianWeightedAggregator`` for ``autojac``. It has the balancer's state in its own
    ``state_dict``. For methods that look at the values of the losses set its attribute ``losses`` before each call.

    Args:
        method: A :class:`GradientWeighting`, or a function from a Gramian ``(K, K)`` to weights ``(K,)`` such as those
            of ``lightning_mtl.functional``.

    Raises:
        ModuleNotFoundError: If TorchJD is not installed.
        TypeError: If ``method`` is neither.
    """
    if isinstance(method, Balancer) and not isinstance(method, GradientWeighting):
        raise TypeError(
            "as_torchjd: method must compute weights from the Gramian, as MGDA, PCGrad, UPGrad and other "
            f"GradientWeighting do, got {type(method).__name__}."
        )
    if not callable(method):
        raise TypeError(f"as_torchjd: method must be a GradientWeighting or a function, got {type(method).__name__}.")
    return cast(nn.Module, _weighting_class()(method))
