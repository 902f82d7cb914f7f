"""Regression of pixels."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_mtl.losses.regression import AbsoluteError, Huber, SquaredError
from lightning_mtl.metrics import LabelledMAE, LabelledRMSE, TaskMetrics
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.colours import colour_map
from lightning_mtl.tasks.supervised import DenseTask, in_float32

_LOSSES = {"l1": AbsoluteError, "mse": SquaredError, "huber": Huber}


class DenseRegression(DenseTask):
    """Predict one or several numbers for every pixel; NaN marks numbers that are missing.

    For maps without a task of their own: a distance to a boundary, a keypoint heat map, shading, curvature. The loss is
    the mean over the known entries, as are the metrics ``mae`` and ``rmse``.

    Args:
        num_outputs: Numbers per pixel.
        loss: Absolute error, squared error, or Huber's loss with delta 1.
        value_range: Numbers drawn at the two ends of the colour map; None takes those of each image.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction, target: ``(B, num_outputs, H, W)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> task = DenseRegression()
        >>> task.loss(torch.zeros(1, 1, 1, 2), torch.tensor([[[[3.0, float("nan")]]]]))
        tensor(3.)
    """

    def __init__(
        self,
        num_outputs: int = 1,
        loss: Literal["l1", "mse", "huber"] = "l1",
        value_range: tuple[float, float] | None = None,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        name = type(self).__name__
        if num_outputs < 1:
            raise ValueError(f"{name}: num_outputs must be at least 1, got {num_outputs}.")
        if loss not in _LOSSES:
            raise ValueError(f"{name}: loss must be one of {list(_LOSSES)}, got {loss!r}.")
        if value_range is not None and not value_range[0] < value_range[1]:
            raise ValueError(f"{name}: value_range must be in ascending order, got {tuple(value_range)}.")
        self.out_channels = num_outputs
        self.value_range = value_range
        self.criterion = _LOSSES[loss]()
        self.metrics = TaskMetrics({"mae": LabelledMAE(), "rmse": LabelledRMSE()}, shared=[["mae", "rmse"]])

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the numbers, ``(B, num_outputs, H, W)``."""
        return in_float32(prediction)

    def render(self, value: Tensor) -> Tensor:
        """Draw the first of the numbers ``(B, num_outputs, H, W)``: low is dark, unlabelled pixels are black.

        Returns:
            Images ``(B, 3, H, W)``, uint8.
        """
        value = value.detach()[:, :1].float()
        known = torch.isfinite(value)
        if self.value_range is None:
            low = torch.where(known, value, torch.full_like(value, torch.inf)).amin((1, 2, 3), keepdim=True)
            high = torch.where(known, value, torch.full_like(value, -torch.inf)).amax((1, 2, 3), keepdim=True)
        else:
            low, high = (value.new_tensor(end) for end in self.value_range)
        share = (value - low) / (high - low).clamp_min(torch.finfo(value.dtype).tiny)
        index = (255 * share.nan_to_num(0, 0, 0).clamp(0, 1)).round().long()
        colours = colour_map("viridis").to(value.device)[index.squeeze(1)].movedim(-1, 1)
        return torch.where(known, colours, torch.zeros_like(colours))
