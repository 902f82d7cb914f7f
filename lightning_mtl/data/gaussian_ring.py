"""Gaussians on a circle: the toy problem of generative models."""

from __future__ import annotations

import math

import torch
from torch import Generator, Tensor

from lightning_mtl.data.base import Split
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.data.table import Table, TableDataModule

_STREAMS: dict[Split, int] = {"train": 0, "val": 1, "test": 2, "predict": 2}


class GaussianRingDataModule(TableDataModule):
    """Points in the plane, drawn from narrow Gaussians whose means lie on a circle at equal distances.

    Inputs are ``(B, 2)`` float32; the target ``mode`` says which Gaussian a point is from, ``(B,)`` int64, -100 without
    label. Generative models need the inputs alone, or the mode as a condition.

    Args:
        num_modes: Number of Gaussians.
        radius: Radius of the circle.
        std: Standard deviation of a Gaussian in each coordinate.
        num_train: Number of training points.
        num_val: Number of validation points.
        num_test: Number of test points, which are the prediction points too.
        batch_size: Samples per batch and process; None takes the whole training set.
        num_workers: Processes that load data. The points are in memory.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of points and order.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training points that keep this task's label.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> data = GaussianRingDataModule(num_train=500)
        >>> data.setup("fit")
        >>> points, targets = next(iter(data.train_dataloader()))
        >>> points.shape, targets["mode"].shape
        (torch.Size([250, 2]), torch.Size([250]))
    """

    def __init__(
        self,
        num_modes: int = 8,
        radius: float = 1.5,
        std: float = 0.08,
        num_train: int = 50_000,
        num_val: int = 5_000,
        num_test: int = 5_000,
        *,
        batch_size: int | None = 250,
        num_workers: int | None = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
        drop_last: bool = True,
        label_fraction: dict[str, float] | None = None,
    ) -> None:
        if num_modes < 1:
            raise ValueError(f"GaussianRingDataModule: num_modes must be at least 1, got {num_modes}.")
        if radius < 0 or std < 0:
            raise ValueError(f"GaussianRingDataModule: radius and std must not be negative, got {radius} and {std}.")
        super().__init__(
            num_train,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            seed=seed,
            drop_last=drop_last,
            label_fraction=label_fraction,
        )
        self.num_modes = num_modes
        self.radius = radius
        self.std = std
        self.lengths: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test, "predict": num_test}

    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return {"mode": -100.0}

    @property
    def means(self) -> Tensor:
        """Means of the Gaussians, ``(num_modes, 2)``."""
        angle = torch.arange(self.num_modes) * (2 * math.pi / self.num_modes)
        return self.radius * torch.stack([angle.cos(), angle.sin()], dim=1)

    def make_dataset(self, split: Split) -> Table:
        """Return the points of a split."""
        stream = Generator().manual_seed(mix_seed(self.seed, _STREAMS[split]))
        mode = torch.randint(self.num_modes, (self.lengths[split],), generator=stream)
        points = self.means[mode] + self.std * torch.randn(len(mode), 2, generator=stream)
        return Table(points, {"mode": mode})
