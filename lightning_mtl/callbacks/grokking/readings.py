"""What the detector reads off a Trainer: monitored metrics, the step, the norm of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_mtl.callbacks.grokking.curves import Curves


@dataclass(frozen=True)
class MetricPair:
    """Names of a training and a validation metric, perhaps with ``{task}`` in them."""

    train: str
    val: str

    @property
    def per_task(self) -> bool:
        """Whether there is one pair for each task."""
        return "{task}" in self.train

    def first_train(self, trainer: pl.Trainer, curves: Mapping[str, Curves]) -> None:
        """Take the first finite value of the training metrics as reference."""
        self._keep_reference(trainer, curves, self.train, "train_reference")

    def untrained_val(self, trainer: pl.Trainer, curves: Mapping[str, Curves]) -> None:
        """Take the validation metrics of a sanity check as reference, unless there is one."""
        self._keep_reference(trainer, curves, self.val, "val_reference")

    def _keep_reference(self, trainer: pl.Trainer, curves: Mapping[str, Curves], metric: str, name: str) -> None:
        missing = {task: found for task, found in curves.items() if math.isnan(getattr(found, name))}
        available = trainer.callback_metrics if missing else {}
        for task, found in missing.items():
            value = number(available.get(metric.format(task=task)))
            if value is not None and math.isfinite(value):
                setattr(found, name, value)

    def record(self, trainer: pl.Trainer, curves: Mapping[str, Curves], step: int) -> None:
        """Add a check to all curves, with the mean over the processes."""
        rows = [
            [*self._values(trainer, task), _known(found.train_reference), _known(found.val_reference)]
            for task, found in curves.items()
        ]
        for found, row in zip(curves.values(), _mean_over_processes(trainer, rows), strict=True):
            train, val, train_reference, val_reference = row
            found.train_reference = math.nan if train_reference is None else train_reference
            found.val_reference = math.nan if val_reference is None else val_reference
            found.record(step, train, val)

    def correct_train(self, trainer: pl.Trainer, curves: Mapping[str, Curves]) -> bool:
        """Put the training metric of the epoch in the last check; return whether that changed it."""
        rows = [self._values(trainer, task)[:1] for task in curves]
        changed = False
        for found, row in zip(curves.values(), _mean_over_processes(trainer, rows), strict=True):
            before = (found.train[-1], found.train_reference)
            found.record(found.steps[-1], row[0], found.val[-1])
            changed |= repr(before) != repr((found.train[-1], found.train_reference))  # NaN equals itself
        return changed

    def _values(self, trainer: pl.Trainer, task: str) -> list[float | None]:
        available = trainer.callback_metrics
        return [number(available.get(metric.format(task=task))) for metric in (self.train, self.val)]

    def require(self, trainer: pl.Trainer, tasks: Sequence[str], argument: str) -> None:
        """Raise MisconfigurationException unless a metric is logged for all tasks.

        Args:
            trainer: The Trainer that knows what is logged.
            tasks: Names of the tasks.
            argument: ``"train_metric"`` or ``"val_metric"``.
        """
        metric = self.train if argument == "train_metric" else self.val
        logged = trainer.callback_metrics
        for task in tasks:
            if metric.format(task=task) not in logged:
                names = sorted(str(key) for key in logged if not str(key).startswith("grokking/"))
                raise MisconfigurationException(
                    f"GrokkingDetector: {argument} {metric.format(task=task)!r} was never logged; logged are {names}. "
                    f"Log it with self.log(), or set {argument} to one of these."
                )

    def check_references(self, curves: Mapping[str, Curves]) -> None:
        """Raise MisconfigurationException if a reference cannot be divided by."""
        for task, found in curves.items():
            for metric, reference in ((self.train, found.train_reference), (self.val, found.val_reference)):
                if reference <= 0:
                    raise MisconfigurationException(
                        "GrokkingDetector: relative thresholds need a positive first value, that of "
                        f"{metric.format(task=task)!r} is {reference}; set relative=False and give train_threshold and "
                        "val_threshold in units of the metric, or as 'change_point'."
                    )


def number(value: Any) -> float | None:
    """Return a logged value as a number."""
    return None if value is None else float(value)


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


def _mean_over_processes(trainer: pl.Trainer, rows: Sequence[Sequence[float | None]]) -> list[list[float | None]]:
    """Return the mean of every number over the processes that know it."""
    if trainer.world_size == 1:
        return [list(row) for row in rows]
    known = [[float(value is not None) for value in row] for row in rows]
    values = [[0.0 if value is None else value for value in row] for row in rows]
    table = torch.tensor([values, known], dtype=torch.float64, device=trainer.strategy.root_device)
    sums, counts = cast(Tensor, trainer.strategy.reduce(table, reduce_op="sum")).tolist()
    return [
        [total / count if count else None for total, count in zip(*pair, strict=True)]
        for pair in zip(sums, counts, strict=True)
    ]


def steps_done(trainer: pl.Trainer, module: pl.LightningModule, in_batch: bool = True) -> int:
    """Return the number of training steps done; with manual optimization, the number of batches.

    Args:
        trainer: The Trainer.
        module: The LightningModule.
        in_batch: Whether the batch that the loop is at has been trained on.
    """
    if module.automatic_optimization:
        return trainer.global_step
    return int(trainer.fit_loop.total_batch_idx) + in_batch


def logger_step(trainer: pl.Trainer) -> int:
    """Return the step under which Lightning itself logs at this moment."""
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)


def weight_norm(module: nn.Module) -> float:
    """Return the norm of all trained parameters."""
    norms = [
        torch.linalg.vector_norm(parameter.detach(), dtype=torch.promote_types(parameter.dtype, torch.float32))
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    return float(torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))) if norms else 0.0
