"""Small problems that tests train on."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_mtl import MultiTaskModule
from lightning_mtl.nn import MLPEncoder
from lightning_mtl.tasks import MulticlassClassification, Regression, Task


class Table(Dataset[Any]):
    """Rows of one input and one target a task, all functions of the same eight numbers."""

    def __init__(self, rows: int = 64, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.inputs = torch.randn(rows, 8, generator=generator, dtype=dtype)
        self.targets: dict[str, Tensor] = {
            "size": self.inputs[:, :2].sum(1, keepdim=True),
            "kind": (self.inputs[:, 2:5]).argmax(1),
            "age": 3 * self.inputs[:, 5:6].tanh(),
        }

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inputs[index], {name: target[index] for name, target in self.targets.items()}

    def batch(self, rows: slice = slice(None)) -> tuple[Tensor, dict[str, Tensor]]:
        return self.inputs[rows], {name: target[rows] for name, target in self.targets.items()}


def make_tasks() -> dict[str, Task]:
    return {"size": Regression(), "kind": MulticlassClassification(num_classes=3), "age": Regression()}


def make_module(seed: int = 0, tasks: Mapping[str, Task] | None = None, **arguments: Any) -> MultiTaskModule:
    torch.manual_seed(seed)
    return MultiTaskModule(MLPEncoder(8, [16]), dict(tasks or make_tasks()), **arguments)


def loader(table: Table | None = None, batch_size: int = 8) -> DataLoader[Any]:
    return DataLoader(table or Table(), batch_size=batch_size)


_SCRATCH = tempfile.mkdtemp(prefix="lightning_mtl_tests_")  # what callbacks write does not go to the working folder
atexit.register(shutil.rmtree, _SCRATCH, ignore_errors=True)


def make_trainer(**arguments: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "default_root_dir": _SCRATCH,
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
    }
    return pl.Trainer(**(defaults | arguments))
