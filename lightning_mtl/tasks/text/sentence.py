"""Classification and regression of sentences and pairs of sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn
from torchmetrics import Metric

from lightning_mtl.metrics import (
    LabelledAccuracy,
    LabelledBinaryF1,
    LabelledMatthews,
    LabelledMulticlassF1,
    TaskMetrics,
)
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.classification import MulticlassClassification
from lightning_mtl.tasks.regression import Regression
from lightning_mtl.tasks.text.base import TextTask

ClassMetric = Literal["accuracy", "f1", "binary_f1", "matthews"]


class TextClassification(TextTask, MulticlassClassification):
    """Choose one of several classes for a sentence or a pair of sentences.

    :class:`~lightning_mtl.tasks.MulticlassClassification` with the metrics of text benchmarks, and a default head that
    reads the first token of encoders that give all of them. The metrics of GLUE: ``accuracy`` for SST-2, MNLI, QNLI,
    RTE and WNLI, ``accuracy`` and ``binary_f1`` for MRPC and QQP, ``matthews`` for CoLA.

    Args:
        num_classes: Number of classes, at least 2.
        metrics: Which metrics: ``"accuracy"``; ``"f1"``, the mean over the classes that occur; ``"binary_f1"``, F1 of
            class 1; ``"matthews"``, the correlation.
        label_smoothing: Share of the target spread evenly over all classes, in ``[0, 1)``.
        ignore_index: Label of unlabelled texts.
        class_weights: One non-negative factor per class on the loss.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, C)``.
        - target: integers ``(B,)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> task = TextClassification(num_classes=2, metrics=["matthews"])
        >>> list(task.metrics)
        ['matthews']

    References:
        Wang, Singh, Michael, Hill, Levy, Bowman. *GLUE: A Multi-Task Benchmark and Analysis Platform for Natural
        Language Understanding*. ICLR 2019. https://arxiv.org/abs/1804.07461
    """

    def __init__(
        self,
        num_classes: int,
        metrics: Sequence[ClassMetric] = ("accuracy", "f1"),
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        class_weights: Sequence[float] | None = None,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(num_classes, label_smoothing, ignore_index, class_weights, head, loss_weight)
        known: dict[str, Metric] = {
            "accuracy": LabelledAccuracy(ignore_index),
            "f1": LabelledMulticlassF1(num_classes, ignore_index),
            "binary_f1": LabelledBinaryF1(ignore_index=ignore_index),
            "matthews": LabelledMatthews(num_classes, ignore_index),
        }
        unknown = [name for name in metrics if name not in known]
        if unknown or not metrics:
            raise ValueError(f"TextClassification: metrics must be some of {list(known)}, got {list(metrics)}.")
        self.metrics = TaskMetrics({name: known[name] for name in metrics})


class TextRegression(TextTask, Regression):
    """Predict a number for a sentence or a pair of sentences, such as their similarity; NaN marks missing ones.

    :class:`~lightning_mtl.tasks.Regression` with a default head that reads the first token of encoders that give all
    of them. ``pearson`` and ``spearman`` are those of STS-B in GLUE.

    Args:
        num_outputs: Numbers per text.
        loss: Squared error, absolute error, or Huber's loss with delta 1.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: ``(B, num_outputs)``.
        - target: ``(B, num_outputs)``, or ``(B,)`` for one output.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> sorted(TextRegression().metrics)
        ['mae', 'pearson', 'r2', 'rmse', 'spearman']
    """
