"""A small stream of tasks, and plain LightningModules to learn it."""

from __future__ import annotations

import importlib
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.data import TaskStream, TextureCrops


def make_stream(**options: Any) -> TaskStream:
    """Three tasks of two classes, 12 batches of 6 in two epochs each."""
    source = TextureCrops(num_classes=6, num_train=20, num_test=6, size=4)
    options = {"num_tasks": 3, "epochs_per_task": 2, "plain": True, "batch_size": 6, **options}
    return TaskStream(source, **options)


def make_network(norm: bool = True) -> nn.Module:
    layers = [nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12) if norm else nn.LayerNorm(12), nn.ReLU()]
    return nn.Sequential(*layers)


def plain_class(package: str = "lightning.pytorch") -> Any:
    """A module as users write it, for one of the two packages of Lightning."""
    parent = importlib.import_module(package).LightningModule

    class Plain(parent):  # type: ignore[misc, valid-type]
        def __init__(self, norm: bool = True, momentum: float = 0.0, dropout: float = 0.0) -> None:
            super().__init__()
            self.body = make_network(norm)
            self.dropout = nn.Dropout(dropout)
            self.head = nn.Linear(12, 6)
            self.momentum = momentum
            self.losses: list[float] = []
            self.sizes: list[int] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.dropout(self.body(x)))

        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("train_loss", loss)
            self.losses.append(float(loss.detach()))
            self.sizes.append(len(batch[1]))
            return loss

        def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
            self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.05, momentum=self.momentum)

    return Plain


Plain = plain_class()


class Manual(pl.LightningModule):
    """Optimizes by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.body, self.head = make_network(), nn.Linear(12, 6)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))

    def loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.sizes.append(len(batch[1]))
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch))
        optimizer.step()

    def validation_step(self, batch: tuple[Tensor, Tensor]) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.05)
