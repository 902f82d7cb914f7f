"""Callbacks that the runs of a benchmark have besides those of the recipe."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Callback


class StepTime(Callback):
    """Measure a training step: forward, balancing, backward and optimizer, without loading the batch.

    Args:
        window: Number of latest steps that are remembered; the median over them is the result.

    Raises:
        ValueError: If ``window`` is not positive.

    Note:
        A GPU is waited for before and after every step, which costs a little throughput and makes the time that of the
        step's work.
    """

    def __init__(self, window: int = 1000) -> None:
        if window < 1:
            raise ValueError(f"StepTime: window must be at least 1, got {window}.")
        self.steps = 0
        self._seconds: deque[float] = deque(maxlen=window)
        self._start = 0.0

    @property
    def seconds(self) -> float | None:
        """Median time of a step; None before the first one."""
        return statistics.median(self._seconds) if self._seconds else None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._start = _now(pl_module)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop the clock."""
        self._seconds.append(_now(pl_module) - self._start)
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the times so far."""
        return {"steps": self.steps, "seconds": list(self._seconds)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the times of a resumed run."""
        self.steps = int(state_dict["steps"])
        self._seconds.extend(state_dict["seconds"])


def _now(module: pl.LightningModule) -> float:
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)
    return time.perf_counter()


class OnlyTasks(Callback):
    """Take the targets of all other tasks out of every batch, for data modules that always give all of them.

    Args:
        tasks: Names of the tasks that stay.

    Note:
        Batches are changed in place. Both forms of a batch are known: ``(inputs, {task: target})`` and
        ``{task: (inputs, target)}``.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = frozenset(tasks)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take targets out of a training batch."""
        self._restrict(batch)

    def on_validation_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take targets out of a validation batch."""
        self._restrict(batch)

    def on_test_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Take targets out of a test batch."""
        self._restrict(batch)

    def _restrict(self, batch: Any) -> None:
        if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Mapping):
            self._keep(batch[1])
        elif isinstance(batch, dict):
            sources = [part for part in batch.values() if isinstance(part, tuple | list) and len(part) == 2]
            nested = [part[1] for part in sources if isinstance(part[1], Mapping)]
            for targets in nested:
                self._keep(targets)
            if not nested:  # one loader a task
                self._keep(batch)

    def _keep(self, targets: Any) -> None:
        for name in [name for name in targets if name not in self.tasks]:
            del targets[name]
