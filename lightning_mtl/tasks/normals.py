"""Surface normal estimation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_mtl.functional.unit_vectors import unit_vectors
from lightning_mtl.losses.dense import CosineDistance
from lightning_mtl.metrics import MeanAngle, MedianAngle, TaskMetrics, WithinAngle
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.supervised import DenseTask, in_float32


class SurfaceNormals(DenseTask):
    """Predict the direction of the surface at every pixel.

    The loss is one minus the cosine of the angle, the mean over the labelled pixels. Metrics over all labelled pixels
    of the data set: ``mean_angle`` and ``median_angle`` in degrees, and ``within_11_25``, ``within_22_5``,
    ``within_30``, the shares of pixels less than 11.25, 22.5 and 30 degrees off. ``predict`` gives unit vectors.

    Args:
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: vectors of any length ``(B, 3, H, W)``.
        - target: unit vectors ``(B, 3, H, W)``, x right, y up, z towards the viewer; zero where unlabelled.

    Example:
        >>> task = SurfaceNormals()
        >>> task.predict(torch.tensor([0.0, 0.0, 5.0]).view(1, 3, 1, 1)).flatten()
        tensor([0., 0., 1.])

    References:
        Shikun Liu, Edward Johns, Andrew J. Davison. *End-to-End Multi-Task Learning with Attention*. CVPR, 2019.
        https://arxiv.org/abs/1803.10704
    """

    out_channels = 3

    def __init__(self, head: nn.Module | HeadCallable | None = None, loss_weight: float = 1.0) -> None:
        super().__init__(head, loss_weight)
        self.criterion = CosineDistance()
        self.metrics = TaskMetrics(
            {
                "mean_angle": MeanAngle(),
                "median_angle": MedianAngle(),
                "within_11_25": WithinAngle(11.25),
                "within_22_5": WithinAngle(22.5),
                "within_30": WithinAngle(30.0),
            },
            shared=[["mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30"]],
        )

    def predict(self, prediction: Tensor) -> Tensor:
        """Return unit vectors ``(B, 3, H, W)``; zero vectors stay zero."""
        return unit_vectors(in_float32(prediction))

    def render(self, value: Tensor) -> Tensor:
        """Draw unit vectors ``(B, 3, H, W)`` as ``(n + 1) / 2``, unlabelled pixels in black.

        Returns:
            Images ``(B, 3, H, W)``, uint8.
        """
        value = value.detach().float()
        known = torch.isfinite(value).all(1, keepdim=True) & (value != 0).any(1, keepdim=True)
        colours = (127.5 * (value.nan_to_num() + 1)).round().clamp(0, 255).to(torch.uint8)
        return torch.where(known, colours, torch.zeros_like(colours))
