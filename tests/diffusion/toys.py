"""A small diffusion model for the tests."""

from __future__ import annotations

import functools
from typing import Any

import torch

from lightning_mtl.data import GaussianRingDataModule
from lightning_mtl.diffusion import DiffusionTaskModule
from lightning_mtl.nn import MLPDenoiser, NoiseSchedule

SGD = functools.partial(torch.optim.SGD, lr=0.05)


def make_diffusion(seed: int = 0, **arguments: Any) -> DiffusionTaskModule:
    torch.manual_seed(seed)
    num_classes = arguments.pop("num_classes", 0)
    denoiser = MLPDenoiser(hidden=[8], num_frequencies=3, num_steps=20, num_classes=num_classes)
    return DiffusionTaskModule(
        denoiser,
        NoiseSchedule(20, beta_end=0.2),
        **{"num_clusters": 3, "optimizer": SGD, "ema_decay": 0.9, **arguments},
    )


def make_data(**options: Any) -> GaussianRingDataModule:
    return GaussianRingDataModule(**{"num_train": 64, "num_val": 40, "num_test": 10, "batch_size": 8, **options})
