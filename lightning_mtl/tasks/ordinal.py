"""Ordinal classification of samples: classes with an order."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassCohenKappa

from lightning_mtl.losses.classification import CORAL, CORN
from lightning_mtl.metrics import LabelledAccuracy, LabelledMAE, TaskMetrics
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.supervised import SampleTask, in_float32


class OrdinalClassification(SampleTask):
    r"""Choose one of several ranks, such as an age group or a number of stars, for a sample.

    K ranks are told apart by K - 1 binary questions "is the rank above :math:`r_k`?"; the predicted rank is the number
    of questions whose probability exceeds one half. Metrics: ``mae`` in ranks, ``accuracy``, and ``qwk``, Cohen's kappa
    with quadratic weights.

    Args:
        num_classes: Number of ranks K, at least 2.
        kind: ``"coral"``: the head gives one score, to which K - 1 learned thresholds are added, so the questions share
            all weights. ``"corn"``: the head gives K - 1 logits of conditional probabilities.
        ignore_index: Label of unlabelled samples.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, K - 1)``.
        - target: integers ``(B,)`` in ``0 .. K-1``.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        The thresholds of CORAL start where zero scores make all ranks equally likely, and belong to the task, not to
        its head. A unit of the CORN loss is a question that was asked, see :class:`~lightning_mtl.losses.CORN`.

    Example:
        >>> task = OrdinalClassification(num_classes=4)
        >>> task.predict(torch.tensor([[2.0, 1.0, -1.0]]))
        tensor([2])

    References:
        Wenzhi Cao, Vahid Mirjalili, Sebastian Raschka. *Rank consistent ordinal regression for neural networks with
        application to age estimation*. Pattern Recognition Letters 140, 2020. https://arxiv.org/abs/1901.07884
        Xintong Shi, Wenzhi Cao, Sebastian Raschka. *Deep neural networks for rank-consistent ordinal regression based
        on conditional probabilities*. Pattern Analysis and Applications 26, 2023. https://arxiv.org/abs/2111.08851
    """

    thresholds: nn.Parameter | None

    def __init__(
        self,
        num_classes: int,
        kind: Literal["coral", "corn"] = "coral",
        ignore_index: int = -100,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        if kind not in ("coral", "corn"):
            raise ValueError(f"{type(self).__name__}: kind must be 'coral' or 'corn', got {kind!r}.")
        self.kind = kind
        self.ignore_index = ignore_index
        if kind == "coral":
            self.criterion = CORAL(num_classes, ignore_index)
            self.out_channels = 1
            share_above = 1 - torch.arange(1, num_classes) / num_classes
            self.thresholds = nn.Parameter(share_above.logit())
        else:
            self.criterion = CORN(num_classes, ignore_index)
            self.out_channels = num_classes - 1
            self.thresholds = None
        self.metrics = TaskMetrics(
            {
                "mae": LabelledMAE(),
                "accuracy": LabelledAccuracy(ignore_index),
                "qwk": MulticlassCohenKappa(num_classes, weights="quadratic", validate_args=False),
            }
        )

    def forward(self, features: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Return the logits of the K - 1 questions.

        Args:
            features: What the encoder gave.
            size: Not used.
        """
        raw: Tensor = super().forward(features)
        return raw if self.thresholds is None else raw + self.thresholds

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the rank of every sample, ``(B,)``."""
        above = in_float32(prediction).sigmoid()
        if self.kind == "corn":
            above = above.cumprod(1)
        return (above > 0.5).sum(1)

    def update_metrics(self, prediction: Any, target: Any) -> None:
        """Add a batch to ``metrics``; unlabelled samples are left out."""
        labelled = target != self.ignore_index
        self.metrics.update(self.predict(prediction)[labelled], target[labelled])
