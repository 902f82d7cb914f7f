"""What the configurations of the benchmark's tests name."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_mtl.balancers import EqualWeighting
from lightning_mtl.data import MultiTaskDataModule
from lightning_mtl.nn import FeatureSpec
from tests.toys import Table

PAUSE = "BENCHMARK_TOY_PAUSE"
CRASH = "BENCHMARK_TOY_CRASH"


class ChosenTargets(Dataset[Any]):
    """Rows of a table with the targets of some tasks."""

    def __init__(self, rows: int, seed: int, tasks: Sequence[str]) -> None:
        self.table = Table(rows, seed)
        self.tasks = tasks
        self.pause = float(os.environ.get(PAUSE, 0))

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> Any:
        time.sleep(self.pause)
        inputs, targets = self.table[index]
        return inputs, {name: targets[name] for name in self.tasks}


class Tables(MultiTaskDataModule):
    """Three splits of a table.

    Args:
        tasks: Targets to give.
        val_split: Does nothing here.
        batch_size: Rows of a batch.
        seed: Of the order.
    """

    def __init__(
        self,
        tasks: Sequence[str] = ("size", "kind", "age"),
        val_split: str = "holdout",
        *,
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=0, seed=seed)
        self.tasks = tuple(tasks)

    def make_dataset(self, split: str) -> Dataset[Any]:
        return ChosenTargets(24, {"train": 1, "val": 2, "test": 3}[split], self.tasks)


class NoisyEncoder(nn.Sequential):
    """Draws from the global generator in every step."""

    feature_spec = FeatureSpec("vector", (16,))

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.3))


class Crashing(EqualWeighting):
    """Fails as long as the environment says so."""

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        if os.environ.get(CRASH):
            raise RuntimeError("the crash of a test")
        return super().compute_weights(losses, rows)
