"""Pixels without a label in real frames count for nothing: no loss, no gradient, no metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import default_collate

from lightning_mtl.data import CamVidDataModule, NYUv2DataModule
from lightning_mtl.tasks import DenseRegression, Depth, Edges, SemanticSegmentation, SurfaceNormals, Task

INDOORS: dict[str, Callable[[], Task]] = {
    "segmentation": lambda: SemanticSegmentation(13),
    "depth": Depth,
    "normals": SurfaceNormals,
    "edges": Edges,
}
SETS: dict[str, tuple[Callable[..., Any], dict[str, Callable[[], Task]]]] = {
    "nyuv2": (NYUv2DataModule, INDOORS),
    "nyuv2_mtan": (NYUv2DataModule, INDOORS),
    "camvid": (
        CamVidDataModule,
        {"segmentation": lambda: SemanticSegmentation(11), "edges": Edges, "distance": DenseRegression},
    ),
}


def unlabelled(target: Tensor, ignored: float) -> Tensor:
    """Pixels (B, 1, H, W) that hold the ignore value in all channels."""
    missing = target.isnan() if math.isnan(ignored) else target == ignored
    return missing[:, None] if target.ndim == 3 else missing.all(1, keepdim=True)


@pytest.mark.parametrize("name", SETS)
def test_ignored_regions_of_real_frames_change_neither_losses_nor_metrics(
    name: str, real_data: Callable[[str], Path]
) -> None:
    build, tasks = SETS[name]
    data = build(real_data(name), tasks=tuple(tasks), size=(96, 128), num_workers=0, batch_size=2)
    data.setup("fit")
    _, targets = default_collate([data.datasets["train"][i] for i in (0, 5)])
    generator = torch.Generator().manual_seed(0)
    seen = 0
    for task_name, make in tasks.items():
        task, target = make(), targets[task_name]
        void = unlabelled(target, data.ignore_values[task_name])
        seen += int(void.sum())
        prediction = torch.randn((2, task.out_channels, 96, 128), generator=generator).requires_grad_()
        loss = task.loss(prediction, target)
        (gradient,) = torch.autograd.grad(loss, prediction)
        assert (gradient.masked_select(void) == 0).all(), task_name
        other = torch.where(void, torch.full_like(prediction, 50.0), prediction).detach()
        torch.testing.assert_close(task.loss(other, target), loss.detach())
        assert task.num_labelled(target) == (~void).sum()
        if task_name == "edges":  # thinning looks at the neighbours of a pixel
            continue
        values = []
        for shown in (prediction.detach(), other):
            task.metrics.reset()
            task.update_metrics(shown, target)
            values.append(task.metrics.compute())
        torch.testing.assert_close(values[0], values[1])
    assert seen > 100
