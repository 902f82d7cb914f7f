"""Classification of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mtl.losses.classification import BinaryCrossEntropy, CrossEntropy
from lightning_mtl.metrics import (
    LabelledAccuracy,
    LabelledMulticlassF1,
    LabelledMultilabelF1,
    MeanAUROC,
    TaskMetrics,
)
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.supervised import SampleTask, in_float32


class MulticlassClassification(SampleTask):
    """Choose one of several classes for a sample.

    Softmax cross entropy; metrics ``accuracy`` and ``f1`` (macro over the classes that occur). ``predict`` gives
    probabilities.

    Args:
        num_classes: Number of classes, at least 2.
        label_smoothing: Share of the target spread evenly over all classes, in ``[0, 1)``.
        ignore_index: Label of unlabelled samples.
        class_weights: One non-negative factor per class on the loss.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, C)``.
        - target: integers ``(B,)``.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        With ``class_weights`` the loss is divided by the number of labelled samples, not by the sum of their weights.

    Example:
        >>> task = MulticlassClassification(num_classes=3)
        >>> task.loss(torch.zeros(2, 3), torch.tensor([2, -100]))
        tensor(1.0986)
    """

    def __init__(
        self,
        num_classes: int,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        class_weights: Sequence[float] | None = None,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        self.out_channels = num_classes
        self.criterion = CrossEntropy(num_classes, ignore_index, label_smoothing, class_weights)
        self.metrics = TaskMetrics(
            {"accuracy": LabelledAccuracy(ignore_index), "f1": LabelledMulticlassF1(num_classes, ignore_index)}
        )

    def predict(self, prediction: Tensor) -> Tensor:
        """Return class probabilities ``(B, C)``."""
        return in_float32(prediction).softmax(1)


class MultilabelClassification(SampleTask):
    """Answer several yes-or-no questions about a sample; some answers may be unknown.

    Sigmoid cross entropy, the mean over the known entries; metrics ``accuracy`` over entries, ``f1`` and ``auroc``
    averaged over labels. ``predict`` gives probabilities.

    Args:
        num_labels: Number of labels.
        ignore_index: Target of unknown entries; NaN marks them as well.
        pos_weight: Factor of the positive entries in the loss.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, L)``.
        - target: 0, 1 or unknown, ``(B, L)``, of any dtype.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> task = MultilabelClassification(num_labels=2)
        >>> task.num_labelled(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))
        tensor(3)
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int = -100,
        pos_weight: float = 1.0,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        if num_labels < 1:
            raise ValueError(f"{type(self).__name__}: num_labels must be at least 1, got {num_labels}.")
        self.out_channels = num_labels
        self.ignore_index = ignore_index
        self.criterion = BinaryCrossEntropy(ignore_index, pos_weight)
        self.metrics = TaskMetrics(
            {
                "accuracy": LabelledAccuracy(ignore_index),
                "f1": LabelledMultilabelF1(num_labels, ignore_index),
                "auroc": MeanAUROC(num_labels, ignore_index),
            }
        )

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the probability of every label, ``(B, L)``."""
        return in_float32(prediction).sigmoid()

    def update_metrics(self, prediction: Any, target: Any) -> None:
        """Add a batch to ``metrics``; unknown entries are left out."""
        known = self.criterion.labelled(target)
        classes = torch.where(known, target, torch.full_like(target, self.ignore_index, dtype=torch.float32)).long()
        self.metrics.update(self.predict(prediction).view(-1, self.out_channels), classes.view(-1, self.out_channels))


class BinaryClassification(MultilabelClassification):
    """Answer one yes-or-no question about a sample.

    Sigmoid cross entropy; metrics ``accuracy``, ``f1`` of the positive class and ``auroc``. ``predict`` gives the
    probability of the positive class.

    Args:
        ignore_index: Label of unlabelled samples; NaN marks them as well.
        pos_weight: Factor of the positive samples in the loss.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, 1)``.
        - target: 0, 1 or unlabelled, ``(B,)`` or ``(B, 1)``, of any dtype.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> task = BinaryClassification()
        >>> task.loss(torch.zeros(2, 1), torch.tensor([1, 0]))
        tensor(0.6931)
    """

    def __init__(
        self,
        ignore_index: int = -100,
        pos_weight: float = 1.0,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(1, ignore_index, pos_weight, head, loss_weight)

    def loss(self, prediction: Any, target: Any) -> Tensor:
        """Return the mean loss over the labelled samples, exactly zero without any.

        Raises:
            ValueError: If the shapes do not fit or a label is neither 0, 1 nor missing.
        """
        return super().loss(prediction, target.unsqueeze(1) if target.ndim == 1 else target)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the probability of the positive class, ``(B,)``."""
        return super().predict(prediction).squeeze(1)
