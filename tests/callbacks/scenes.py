"""Small images with a target a task, and a module to predict them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_mtl import MultiTaskModule
from lightning_mtl.nn import FeatureSpec
from lightning_mtl.tasks import Edges, Regression, SemanticSegmentation, Task


class Images(Dataset[Any]):
    """Noise, its bright pixels as classes and edges, and its mean."""

    def __init__(self, length: int = 8, size: tuple[int, int] = (16, 24), channels: int = 3) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(length, channels, *size, generator=generator)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        image = self.images[index]
        bright = image[:1] > 0
        return image, {"segmentation": bright[0].long(), "edges": bright.float(), "mean": image.mean().view(1)}


class TinyEncoder(nn.Module):
    """One convolution, with everything that a watcher could disturb: running statistics and dropout."""

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)
        )
        self.feature_spec = FeatureSpec("maps", (8,), (2,))

    def forward(self, inputs: Tensor) -> list[Tensor]:
        return [self.layers(inputs)]


def make_tasks() -> dict[str, Task]:
    return {"segmentation": SemanticSegmentation(num_classes=2), "edges": Edges(), "mean": Regression()}


def make_module(channels: int = 3, **arguments: Any) -> MultiTaskModule:
    torch.manual_seed(0)
    return MultiTaskModule(TinyEncoder(channels), **({"tasks": make_tasks()} | arguments))


def make_loader(batch_size: int = 3, shuffle: bool = False, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(Images(**arguments), batch_size=batch_size, shuffle=shuffle)
