"""What callbacks of continual learning share: which task is trained, and where their numbers go."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import nn

CurrentTask = Callable[[Any], int]


class StreamCallback(Callback):
    """A callback that knows the tasks of a stream.

    The current task is ``current_task(trainer)`` if that function is given, otherwise the attribute ``current_task`` of
    the Trainer's data module, otherwise the number of fits that this callback has been through: loops that call
    ``fit`` once for every task need nothing else than one callback object.

    Args:
        current_task: Callable from the Trainer to the number of the task that is trained.
    """

    def __init__(self, current_task: CurrentTask | None = None) -> None:
        super().__init__()
        self.current_task = current_task
        self._fits = 0
        self._task: int | None = None
        self._task_epoch = 0  # epoch in which the task began
        self._ended: int | None = None  # task whose end has been seen
        self._fitting = False

    def task_of(self, trainer: pl.Trainer) -> int:
        """Return the number of the task that is trained now."""
        if self.current_task is not None:
            return int(self.current_task(trainer))
        return int(getattr(_datamodule(trainer), "current_task", self._fits))

    def knows_tasks(self, trainer: pl.Trainer) -> bool:
        """Return whether it is known where tasks begin within a fit."""
        return self.current_task is not None or hasattr(_datamodule(trainer), "current_task")

    def first_epoch_of_task(self, trainer: pl.Trainer) -> bool:
        """Return whether this is the first epoch of the task that is trained."""
        return trainer.current_epoch == self._task_epoch

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look whether another task begins."""
        task = self.task_of(trainer)
        if task != self._task:
            self._end_task(trainer, pl_module)
            self._task = task
            self._task_epoch = trainer.current_epoch
            self.on_task_start(trainer, pl_module, task)
        self._ended = None
        self._fitting = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End the last task."""
        self._end_task(trainer, pl_module)

    def _end_task(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self._task is not None and self._ended != self._task:
            self._ended = self._task
            self.on_task_end(trainer, module, self._task)

    def on_task_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, task: int) -> None:
        """Act before a task is trained.

        Args:
            trainer: The Trainer.
            pl_module: The module, as it came out of the previous task.
            task: Number of the task.
        """

    def on_task_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, task: int) -> None:
        """Act after a task was trained: when another one begins, or training ends.

        Args:
            trainer: The Trainer.
            pl_module: The module.
            task: Number of the task.
        """

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Count the fits."""
        self._fits += self._fitting
        self._fitting = False

    def state_dict(self) -> dict[str, Any]:
        """Return where the stream stands."""
        return {"fits": self._fits, "task": self._task, "task_epoch": self._task_epoch, "ended": self._ended}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        self._fits = state_dict["fits"]
        self._task = state_dict["task"]
        self._task_epoch = state_dict["task_epoch"]
        self._ended = state_dict["ended"]


def datamodule_ability(trainer: pl.Trainer, name: str) -> Any:
    """Return an attribute of the Trainer's data module, None where it has none."""
    return getattr(_datamodule(trainer), name, None)


def _datamodule(trainer: pl.Trainer) -> Any:
    return getattr(trainer, "datamodule", None)


def publish_numbers(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Give numbers to the loggers and to ``trainer.callback_metrics``, at any hook."""
    trainer.callback_metrics.update({name: torch.tensor(float(value)) for name, value in values.items()})
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=int(trainer.fit_loop.epoch_loop._batches_that_stepped))


def refuse_sharded(owner: str, module: nn.Module, wrapped: nn.Module | None) -> None:
    """Raise MisconfigurationException if the parameters are sharded over processes."""
    sharded = any(hasattr(child, "_fsdp_wrapped_module") for child in (wrapped or module).modules())
    sharded |= any(hasattr(parameter, "placements") or hasattr(parameter, "ds_id") for parameter in module.parameters())
    if sharded:
        raise MisconfigurationException(
            f"{owner}: the parameters are sharded over processes, so their groups cannot be read; use strategy='ddp'."
        )
