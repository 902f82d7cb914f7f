"""Tagging: a class for every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_mtl.losses.classification import CrossEntropy
from lightning_mtl.metrics import LabelledAccuracy, LabelledMulticlassF1, TaggedEntityF1, TaskMetrics
from lightning_mtl.metrics.tagging import has_entities
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.tasks.base import HeadCallable, nothing_to_draw
from lightning_mtl.tasks.supervised import SupervisedTask


class TokenClassification(SupervisedTask):
    """Choose a class for every token: parts of speech, named entities.

    Softmax cross entropy, the mean over the labelled tokens; metrics ``accuracy`` over tokens, ``f1`` (macro over the
    classes that occur), and with labels in BIO form ``entity_f1``, see
    :class:`~lightning_mtl.metrics.TaggedEntityF1`. ``predict`` gives class ids.

    Args:
        num_classes: Number of classes, at least 2.
        labels: Names of the classes, for ``entity_f1`` and for readers.
        ignore_index: Label of tokens that do not count: special tokens, further pieces of a word, padding.
        label_smoothing: Share of the target spread evenly over all classes, in ``[0, 1)``.
        class_weights: One non-negative factor per class on the loss.
        head: A head, or a callable that builds one from the encoder's features; None takes a linear layer on every
            token.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, L, C)``.
        - target: integers ``(B, L)``.

    Raises:
        ValueError: If an argument is out of range, or the features are no tokens.

    Example:
        >>> import torch
        >>> task = TokenClassification(num_classes=3, labels=["O", "B-PER", "I-PER"])
        >>> task.loss(torch.zeros(1, 4, 3), torch.tensor([[-100, 1, 2, -100]]))
        tensor(1.0986)
    """

    def __init__(
        self,
        num_classes: int,
        labels: Sequence[str] | None = None,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        if labels is not None and len(labels) != num_classes:
            raise ValueError(f"TokenClassification: labels must be {num_classes} names, got {list(labels)}.")
        self.out_channels = num_classes
        self.labels = None if labels is None else tuple(labels)
        self.criterion = CrossEntropy(num_classes, ignore_index, label_smoothing, class_weights)
        metrics: dict[str, Metric] = {
            "accuracy": LabelledAccuracy(ignore_index),
            "f1": LabelledMulticlassF1(num_classes, ignore_index),
        }
        if labels is not None and has_entities(labels):
            metrics["entity_f1"] = TaggedEntityF1(labels, ignore_index)
        self.metrics = TaskMetrics(metrics)

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return a linear layer on every token."""
        from lightning_mtl.nn import TokenHead

        return TokenHead(spec, out_channels)

    def loss(self, prediction: Any, target: Any) -> Tensor:
        """Return the mean loss over the labelled tokens, exactly zero without any.

        Raises:
            ValueError: If the shapes do not fit or a label is out of range.
        """
        return super().loss(prediction.movedim(-1, 1), target)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the class of every token, ``(B, L)``."""
        return prediction.argmax(-1)

    def render(self, value: Any) -> Tensor:
        """Return no picture."""
        return nothing_to_draw()
