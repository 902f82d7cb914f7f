"""Features and targets of detection tasks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_mtl.nn import FeatureSpec
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.tasks import DetectionTask
from tests.tasks.cases import DetectionCase

SPEC = FeatureSpec("maps", (4, 6), (8, 16))
SIZE = (64, 96)
Target = list[dict[str, Tensor] | None]


class TinyMaps(nn.Module, Recorded):
    """Maps of stride 8 and 16 from two convolutions."""

    feature_spec = SPEC

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 4, 8, stride=8)
        self.coarse = nn.Conv2d(4, 6, 2, stride=2)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        fine = self.fine(inputs).relu()
        return [fine, self.coarse(fine).relu()]


def built(case: DetectionCase) -> DetectionTask:
    task = case.build()
    task.build_head(SPEC)
    return task


def features(n: int) -> list[Tensor]:
    return [torch.randn(n, c, SIZE[0] // s, SIZE[1] // s) for c, s in zip(SPEC.channels, SPEC.strides, strict=True)]


def boxes(n: int, size: tuple[int, int] = SIZE) -> Tensor:
    """n boxes inside of the image, of different areas."""
    height, width = size
    corner = torch.rand(n, 2) * torch.tensor([width, height]) * 0.5
    extent = torch.tensor([width, height]) * (0.1 + 0.4 * torch.rand(n, 2))
    return torch.cat([corner, corner + extent], 1)


def annotation(n: int, classes: int = 3, **more: Tensor) -> dict[str, Tensor]:
    return {"boxes": boxes(n), "labels": torch.randint(1, classes + 1, (n,)), **more}


def target(n: int) -> Target:
    """n images: with objects, without any, not annotated, and with a crowd, in turn."""
    kinds: list[Any] = [
        lambda: annotation(4),
        lambda: annotation(0),
        lambda: None,
        lambda: annotation(3, iscrowd=torch.tensor([0, 1, 0], dtype=torch.uint8)),
    ]
    return [kinds[i % 4]() for i in range(n)]
