"""What an optimizer has that wants to know the tasks of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class TaskAwareOptimizer(Protocol):
    """An optimizer whose step depends on the tasks that the step is of.

    :class:`~lightning_mtl.MultiTaskModule` tells it; a LightningModule of one's own calls ``attach`` in
    ``on_train_start`` and ``observe_tasks`` in ``training_step``.
    """

    def attach(self, trainer: Any) -> None:
        """Meet the Trainer when the training starts."""

    def observe_tasks(self, tasks: Sequence[str], begins: bool) -> None:
        """Be told the tasks that carry labels in the batch under way, on any process.

        Args:
            tasks: Their names.
            begins: Whether the batch is the first of an optimizer's step, as all are without accumulation.
        """

    def values_to_log(self) -> dict[str, float]:
        """Return name -> value for the log."""
