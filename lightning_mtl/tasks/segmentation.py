"""Semantic segmentation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from lightning_mtl.losses.classification import CrossEntropy
from lightning_mtl.metrics import LabelledAccuracy, TaskMetrics
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.colours import class_colours
from lightning_mtl.tasks.supervised import DenseTask


class SemanticSegmentation(DenseTask):
    """Choose one of several classes for every pixel.

    Softmax cross entropy, the mean over the labelled pixels. Metrics: ``miou``, the intersection over union of each
    class over the whole data set, averaged over the classes that occur in targets or predictions; and
    ``pixel_accuracy``. ``predict`` gives class ids.

    Args:
        num_classes: Number of classes, at least 2.
        ignore_index: Label of unlabelled pixels.
        class_names: Names of the classes, for :meth:`class_iou`.
        class_weights: One non-negative factor per class on the loss.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, C, H, W)``.
        - target: integers ``(B, H, W)``.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        With ``class_weights`` the loss is divided by the number of labelled pixels, not by the sum of their weights.

    Example:
        >>> task = SemanticSegmentation(num_classes=3)
        >>> task.predict(torch.eye(3).view(1, 3, 1, 3))
        tensor([[[0, 1, 2]]])

    References:
        Mark Everingham, S. M. Ali Eslami, Luc Van Gool, Christopher K. I. Williams, John Winn, Andrew Zisserman. *The
        Pascal Visual Object Classes Challenge: A Retrospective*. IJCV 111, 2015.
        https://doi.org/10.1007/s11263-014-0733-5: the measure of segmentation.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = 255,
        class_names: Sequence[str] | None = None,
        class_weights: Sequence[float] | None = None,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        if class_names is not None and len(set(class_names)) != num_classes:
            raise ValueError(
                f"{type(self).__name__}: class_names must be {num_classes} different names, got {list(class_names)}."
            )
        self.out_channels = num_classes
        self.ignore_index = ignore_index
        self.class_names = [str(i) for i in range(num_classes)] if class_names is None else list(class_names)
        self.criterion = CrossEntropy(num_classes, ignore_index, class_weights=class_weights)
        self.metrics = TaskMetrics(
            {
                "miou": MulticlassJaccardIndex(num_classes, ignore_index=ignore_index, validate_args=False),
                "pixel_accuracy": LabelledAccuracy(ignore_index),
            }
        )

    def predict(self, prediction: Tensor) -> Tensor:
        """Return class ids ``(B, H, W)``."""
        return prediction.argmax(1)

    def class_iou(self) -> dict[str, float]:
        """Return the intersection over union of every class since the metrics were reset; NaN for absent classes.

        With several processes it is over all of them, and is then called on all of them together.
        """
        metric: Any = self.metrics["miou"]
        with metric.sync_context():
            counts = metric.confmat.double()
        hits = counts.diagonal()
        iou = hits / (counts.sum(0) + counts.sum(1) - hits)
        return dict(zip(self.class_names, iou.tolist(), strict=True))

    def render(self, value: Tensor) -> Tensor:
        """Draw class ids ``(B, H, W)`` in fixed colours, ignored pixels in black.

        Returns:
            Images ``(B, 3, H, W)``, uint8.
        """
        colours = class_colours(self.out_channels).to(value.device)
        known = (value >= 0) & (value < self.out_channels)
        index = torch.where(known, value, torch.full_like(value, self.out_channels, dtype=torch.int64))
        return colours[index].movedim(-1, 1)
