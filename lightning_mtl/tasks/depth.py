"""Depth estimation."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.losses.base import LabelledLoss
from lightning_mtl.losses.dense import BerHu, SILog
from lightning_mtl.losses.regression import AbsoluteError
from lightning_mtl.metrics import DepthAbsError, DepthRelError, DepthRMSE, DepthWithin, TaskMetrics
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.colours import colour_map
from lightning_mtl.tasks.supervised import DenseTask, in_float32

_LARGEST_LOG_DEPTH = 20.0


class Depth(DenseTask):
    """Predict the depth of every pixel, or its inverse.

    Metrics over all labelled pixels: ``abs_error``, ``rel_error``, ``rmse`` and ``delta1``, ``delta2``, ``delta3``, the
    shares right up to a factor of 1.25, 1.25 squared and cubed; all in the representation of the target.

    Args:
        loss: ``"l1"``, ``"silog"`` (scale-invariant logarithmic, with the factor 0.5) or ``"berhu"``.
        representation: What the target holds, ``"metres"`` or ``"inverse"`` (inverse depth or disparity, as in the
            Cityscapes benchmark of MTAN). The two are trained and judged alike; it decides which end is drawn bright.
        activation: What turns the output of the head into depth: ``"identity"``, as the multi-task benchmarks do,
            ``"softplus"``, or ``"exp"``, so that the head gives the logarithm. None takes ``"exp"`` for ``"silog"``,
            which needs positive predictions, and ``"identity"`` otherwise.
        max_value: Depth (or inverse depth) drawn at the end of the colour map; None takes the largest of each image.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: output of the head ``(B, 1, H, W)``.
        - target: ``(B, 1, H, W)``; pixels that are not positive and finite are unlabelled.

    Raises:
        ValueError: If an argument is out of range, or ``loss="silog"`` meets ``activation="identity"``.

    Note:
        A unit of the loss is a pixel, but an image for ``"silog"``, which is not a mean over pixels. The head's output
        is limited to plus or minus 20 before ``"exp"``.

    Example:
        >>> task = Depth()
        >>> task.loss(torch.full((1, 1, 1, 2), 2.0), torch.tensor([[[[5.0, 0.0]]]]))
        tensor(3.)

    References:
        David Eigen, Christian Puhrsch, Rob Fergus. *Depth Map Prediction from a Single Image using a Multi-Scale Deep
        Network*. NeurIPS, 2014. https://arxiv.org/abs/1406.2283
        Shikun Liu, Edward Johns, Andrew J. Davison. *End-to-End Multi-Task Learning with Attention*. CVPR, 2019.
        https://arxiv.org/abs/1803.10704
    """

    out_channels = 1

    def __init__(
        self,
        loss: Literal["l1", "silog", "berhu"] = "l1",
        representation: Literal["metres", "inverse"] = "metres",
        activation: Literal["identity", "softplus", "exp"] | None = None,
        max_value: float | None = None,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        name = type(self).__name__
        if loss not in ("l1", "silog", "berhu"):
            raise ValueError(f"{name}: loss must be 'l1', 'silog' or 'berhu', got {loss!r}.")
        if representation not in ("metres", "inverse"):
            raise ValueError(f"{name}: representation must be 'metres' or 'inverse', got {representation!r}.")
        if activation not in (None, "identity", "softplus", "exp"):
            raise ValueError(f"{name}: activation must be 'identity', 'softplus' or 'exp', got {activation!r}.")
        if loss == "silog" and activation == "identity":
            raise ValueError(f"{name}: activation must be 'softplus' or 'exp' for loss='silog', got 'identity'.")
        if max_value is not None and max_value <= 0:
            raise ValueError(f"{name}: max_value must be positive, got {max_value}.")
        self.representation = representation
        self.activation = activation or ("exp" if loss == "silog" else "identity")
        self.max_value = max_value
        criteria: dict[str, LabelledLoss] = {
            "l1": AbsoluteError("nonpositive"),
            "silog": SILog(),
            "berhu": BerHu("nonpositive"),
        }
        self.criterion = criteria[loss]
        self.metrics = TaskMetrics(
            {
                "abs_error": DepthAbsError(),
                "rel_error": DepthRelError(),
                "rmse": DepthRMSE(),
                "delta1": DepthWithin(1),
                "delta2": DepthWithin(2),
                "delta3": DepthWithin(3),
            },
            shared=[["abs_error", "rel_error", "rmse", "delta1", "delta2", "delta3"]],
        )

    def loss(self, prediction: Any, target: Any) -> Tensor:
        """Return the mean loss over the labelled pixels (images for ``"silog"``), exactly zero without any.

        Raises:
            ValueError: If the shapes differ.
        """
        return super().loss(self.predict(prediction), target)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the depth, or inverse depth, ``(B, 1, H, W)`` in the unit of the target."""
        prediction = in_float32(prediction)
        if self.activation == "softplus":
            return F.softplus(prediction)
        if self.activation == "exp":
            return prediction.clamp(-_LARGEST_LOG_DEPTH, _LARGEST_LOG_DEPTH).exp()
        return prediction

    def render(self, value: Tensor) -> Tensor:
        """Draw depths ``(B, 1, H, W)``: near is bright, unlabelled pixels are black.

        Returns:
            Images ``(B, 3, H, W)``, uint8.
        """
        value = value.detach().float()
        known = torch.isfinite(value) & (value > 0)
        value = torch.where(known, value, torch.zeros_like(value))
        largest = value.amax((1, 2, 3), keepdim=True) if self.max_value is None else value.new_tensor(self.max_value)
        share = (value / largest.clamp_min(torch.finfo(value.dtype).tiny)).clamp(0, 1)
        index = (255 * (share if self.representation == "inverse" else 1 - share)).round().long()
        colours = colour_map("magma").to(value.device)[index.squeeze(1)].movedim(-1, 1)
        return torch.where(known, colours, torch.zeros_like(colours))
