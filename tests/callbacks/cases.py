"""Every callback with small arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch.callbacks import Callback

from lightning_mtl.callbacks import PredictionPanels, ResultsTable


@dataclass(frozen=True)
class Case:
    """A callback; a watcher changes nothing about the training."""

    id: str
    build: Callable[[], Callback]


WATCHERS = [
    Case("results_table", lambda: ResultsTable(show=False)),
    Case("prediction_panels", lambda: PredictionPanels(num_samples=4)),
]
