"""What every balancer is: task losses in, one scalar out, whose gradient is the update."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

Recompute = Callable[..., dict[str, Tensor]]
"""Evaluates the task losses of the same batch again, at the parameters as they are now.

Called with no argument it returns every task's loss; called with an iterable of task names, those tasks' losses only.
"""


class Balancer(nn.Module, Recorded, ABC):
    """Turns the losses of several tasks into one scalar whose gradient is the update that the method wants.

    Called in ``training_step``; whatever it returns is an ordinary loss for Lightning: the distributed reducer, the
    gradient scaler, accumulation and clipping see nothing unusual. The scalar's *value* is the weighted sum of the
    losses, so that a monitored loss means something.

    A balancer is **bound** to its task names once, either by ``tasks=``, by the module that owns it, or at the first
    call. The order of the names in later calls does not matter, and tasks may be absent from a call.

    Everything it remembers is in ``state_dict()``: buffers of :meth:`_create_state`, :attr:`steps` and :attr:`epochs`.
    Floating-point state stays at float32 or wider when the model is turned to half precision.
    """

    needs: ClassVar[Literal["losses", "gradients", "second_pass"]] = "losses"
    """What a call must be given: the losses, also the shared parameters or features, or also ``recompute``."""

    needs_losses_after_step: ClassVar[bool] = False
    """Whether :meth:`after_step` wants the losses of the same batch after the optimizer's step."""

    needs_validation_losses: ClassVar[bool] = False
    """Whether :meth:`observe_validation` wants losses on validation data during training."""

    update_interval: int = 1
    """Optimizer steps between two calls of :meth:`observe_validation`."""

    learns_parameters: ClassVar[bool] = False
    """Whether it has parameters that the user's optimizer must hold, so that it cannot wait to be bound by a call."""

    seed: int = 0
    _anchor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.task_names: tuple[str, ...] = ()
        self.steps = 0
        """Number of calls."""
        self.epochs = 0
        """Number of :meth:`end_epoch` calls."""
        self._weights: dict[str, Tensor] = {}
        # remembers the device to which an unbound balancer was moved
        self.register_buffer("_anchor", torch.zeros(()), persistent=False)

    # ------------------------------------------------------------------ tasks and state
    def bind(self, tasks: Sequence[str] | None) -> None:
        """Fix the task names and create the state; a second call with the same names does nothing.

        Args:
            tasks: Names in the order of the state's rows. None does nothing.

        Raises:
            ValueError: If names repeat, or other names were bound before.
        """
        if tasks is None:
            return
        names = tuple(tasks)
        if self.task_names:
            if set(names) != set(self.task_names):
                raise ValueError(
                    f"{type(self).__name__}: bound to the tasks {list(self.task_names)}, got {list(names)}; "
                    "make a new balancer for other tasks."
                )
            return
        if not names or len(set(names)) != len(names):
            raise ValueError(f"{type(self).__name__}: task names must be distinct and at least one, got {list(names)}.")
        self.task_names = names
        self._create_state(len(names))
        self.to(self._anchor.device)

    def _create_state(self, num_tasks: int) -> None:
        """Register buffers and parameters with one entry a task, at their start values."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Balancer:
        def keep_precision(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            if tensor.dtype in (torch.float32, torch.float64) and moved.dtype in (torch.float16, torch.bfloat16):
                return tensor.to(moved.device)
            return moved

        super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]
        return self

    def reset(self) -> None:
        """Forget everything learned or remembered; the tasks stay bound, and parameters keep their identity."""
        self.steps = self.epochs = 0
        self._weights = {}
        if self.task_names:
            fresh = type(self).__new__(type(self))
            fresh.__init__(**self._recorded_arguments)  # type: ignore[misc]
            fresh.bind(self.task_names)
            super().load_state_dict(fresh.state_dict())

    def get_extra_state(self) -> dict[str, Any]:
        """Return what is no tensor: the task names and the numbers of steps and epochs."""
        return {"tasks": list(self.task_names), "steps": self.steps, "epochs": self.epochs}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`get_extra_state` returned."""
        self.steps, self.epochs = int(state["steps"]), int(state["epochs"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        extra = state_dict.get(prefix + "_extra_state")
        if extra and extra["tasks"]:
            self.bind(extra["tasks"])
            if list(self.task_names) != list(extra["tasks"]):
                raise ValueError(
                    f"{type(self).__name__}: the state to load has the tasks in the order {list(extra['tasks'])}, this "
                    f"balancer is bound to {list(self.task_names)}; bind it in the order of the state."
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def generator(self) -> torch.Generator:
        """Return a CPU generator that depends on the seed and the step alone, and so is alike on every process."""
        return torch.Generator().manual_seed((self.seed * 1_000_003 + self.steps) % (2**63))

    # ------------------------------------------------------------------ the call
    def forward(
        self,
        losses: Mapping[str, Tensor],
        *,
        shared: Iterable[nn.Parameter] | None = None,
        features: Any = None,
        recompute: Recompute | None = None,
    ) -> Tensor:
        """Return the scalar whose gradient is the update.

        Args:
            losses: Task name -> scalar loss with a graph. Tasks may be absent.
            shared: The parameters that the tasks share; needed by gradient methods.
            features: What the shared part gave to the heads, any nesting of tensors; needed with ``at="features"``.
            recompute: Evaluates the losses again; needed by methods with a second pass.

        Raises:
            TypeError: If ``losses`` is no mapping of scalar tensors.
            ValueError: If it is empty or has an unknown task, if something that the method needs is missing, or if a
                balancer with parameters to learn was not bound before.
        """
        names = self._names_of(losses)
        if not self.task_names:
            if self.learns_parameters:
                raise ValueError(
                    f"{type(self).__name__}: has parameters to learn, so the tasks must be known before the optimizer "
                    f"is built; pass tasks={list(names)} to the constructor."
                )
            self.bind(names)
        if (device := losses[names[0]].device) != self._anchor.device:
            self.to(device)
        present = [name for name in self.task_names if name in losses]
        total = self._combine({name: losses[name] for name in present}, shared, features, recompute)
        self.steps += 1
        return total

    @abstractmethod
    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        """Do the method's work; ``losses`` holds the present tasks in the order of the binding."""

    def _names_of(self, losses: Mapping[str, Tensor]) -> tuple[str, ...]:
        cls = type(self).__name__
        if not isinstance(losses, Mapping):
            raise TypeError(
                f"{cls}: losses must be a mapping task name -> scalar tensor, got {type(losses).__name__}; "
                'call it as balancer({"seg": loss_seg, "depth": loss_depth}).'
            )
        if not losses:
            raise ValueError(f"{cls}: losses must hold at least one task, got none.")
        if self.task_names and (unknown := set(losses) - set(self.task_names)):
            raise ValueError(f"{cls}: unknown tasks {sorted(unknown)}; it is bound to {list(self.task_names)}.")
        for name, loss in losses.items():
            if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.ndim > 0:
                got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise TypeError(f"{cls}: the loss of task {name!r} must be a scalar tensor, got {got}; take its mean.")
        return tuple(losses)

    def _index(self, names: Iterable[str]) -> list[int]:
        """Return the rows of these tasks in the state."""
        return [self.task_names.index(name) for name in names]

    def _per_task(self, argument: str, values: Mapping[str, float] | None, default: float) -> Tensor:
        """Return the entries of a constructor argument in the order of the binding, a float32 tensor ``(K,)``."""
        if values is None:
            return torch.full((len(self.task_names),), default)
        if set(values) != set(self.task_names):
            raise ValueError(
                f"{type(self).__name__}: {argument} must have one entry for each of the tasks "
                f"{list(self.task_names)}, got {list(values)}."
            )
        return torch.tensor([float(values[name]) for name in self.task_names])

    # ------------------------------------------------------------------ hooks for whoever runs the loop
    def watch(self, encoder: nn.Module) -> None:
        """Meet the shared network before its first forward pass; gradient methods learn its layers and their names."""

    def attach(self, trainer: Trainer) -> None:
        """Meet the Trainer before training; gradient methods read its gradient scaler and check its strategy.

        Raises:
            MisconfigurationException: If the method needs validation losses and no callback of the Trainer feeds them.
        """
        callbacks = getattr(trainer, "callbacks", [])
        if self.needs_validation_losses and not any(getattr(c, "feeds_validation_losses", False) for c in callbacks):
            from lightning.fabric.utilities.exceptions import MisconfigurationException

            raise MisconfigurationException(
                f"{type(self).__name__}: needs validation losses during training; add the callback "
                "lightning_mtl.callbacks.ValidationLosses to the Trainer."
            )

    def observe_labels(self, counts: Mapping[str, float]) -> None:
        """Take task name -> number of labels, on all processes together, that the next call's losses are means over."""

    def observe_validation(self, losses: Mapping[str, Tensor]) -> None:
        """Take the losses of one batch of validation data for every task; see :attr:`needs_validation_losses`."""

    def after_step(self, losses: Mapping[str, Tensor]) -> None:
        """Take the losses of the same batch after the optimizer's step; see :attr:`needs_losses_after_step`."""

    def end_epoch(self) -> None:
        """Be told that a training epoch ended; methods that act once an epoch extend this."""
        self.epochs += 1

    # ------------------------------------------------------------------ what others read
    @property
    def weights(self) -> dict[str, Tensor]:
        """Task name -> weight of its loss in the last step, detached scalars."""
        return dict(self._weights)

    def _remember_weights(self, names: Iterable[str], weights: Tensor) -> None:
        self._weights = dict(zip(names, weights.detach().unbind(), strict=True))


def is_distributed() -> bool:
    """Return whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of a detached tensor over all processes; the tensor itself when there is one process."""
    if not is_distributed():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / dist.get_world_size()


def take(state: Tensor, rows: list[int]) -> Tensor:
    """Return a copy of these rows of a state, without the copy to the device that indexing by a list needs.

    Args:
        state: One entry a task, in the order of the binding.
        rows: Rows in ascending order.
    """
    if len(rows) == len(state):
        return state.clone()
    parts = state.unbind()
    return torch.stack([parts[row] for row in rows])


def put(state: Tensor, rows: list[int], values: Tensor) -> None:
    """Write these rows of a state in place; the counterpart of :func:`take`.

    Args:
        state: One entry a task, in the order of the binding.
        rows: Rows in ascending order.
        values: One entry a row, of any floating dtype.
    """
    with torch.no_grad():
        if len(rows) == len(state):
            state.copy_(values)
            return
        parts = list(state.unbind())
        for row, value in zip(rows, values.to(state.dtype).unbind(), strict=True):
            parts[row] = value
        state.copy_(torch.stack(parts))
