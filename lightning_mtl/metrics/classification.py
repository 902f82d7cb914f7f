"""Metrics of classes that may be missing."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MulticlassF1Score, MultilabelF1Score
from torchmetrics.utilities import dim_zero_cat

from lightning_mtl.functional.ranks import average_ranks
from lightning_mtl.metrics.base import ExactMetric, mean_or_nan, nan_unless


class LabelledAccuracy(ExactMetric):
    """Share of the labelled units that are predicted right, over the whole data set.

    Args:
        ignore_index: Target of unlabelled units.

    Shape:
        - prediction: class ids ``(B, ...)``; class scores ``(B, C, ...)``; or, in the shape of the target,
          probabilities of the positive class, cut at 0.5.
        - target: integers ``(B, ...)``.

    Note:
        NaN without labels, where torchmetrics gives 0.

    Example:
        >>> metric = LabelledAccuracy()
        >>> metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 0, -100]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    right: Tensor
    labelled: Tensor

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.add_sum("right", dtype=torch.int64)
        self.add_sum("labelled", dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if prediction.ndim == target.ndim + 1:
            prediction = prediction.argmax(1)
        elif prediction.is_floating_point():
            prediction = prediction > 0.5
        labelled = target != self.ignore_index
        self.right += ((prediction == target) & labelled).sum()
        self.labelled += labelled.sum()

    def compute(self) -> Tensor:
        """Return the accuracy."""
        return nan_unless(self.labelled > 0, self.right / self.labelled)


class LabelledMulticlassF1(MulticlassF1Score):
    """Macro F1 of torchmetrics over the classes that occur, but NaN instead of 0 without labels.

    Args:
        num_classes: Number of classes.
        ignore_index: Target of unlabelled units.

    Shape:
        - prediction: class ids ``(B, ...)`` or scores ``(B, C, ...)``.
        - target: integers ``(B, ...)``.

    Example:
        >>> metric = LabelledMulticlassF1(num_classes=3)
        >>> metric.update(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))
        >>> metric.compute()
        tensor(0.6667)
    """

    def __init__(self, num_classes: int, ignore_index: int = -100) -> None:
        super().__init__(num_classes, average="macro", ignore_index=ignore_index, validate_args=False)

    def compute(self) -> Tensor:
        """Return the F1 score."""
        return nan_unless(_any_seen(self), super().compute())


class LabelledMultilabelF1(MultilabelF1Score):
    """Macro F1 of torchmetrics over labels; one label makes it the binary F1. NaN instead of 0 without labels.

    Args:
        num_labels: Number of labels.
        ignore_index: Target of missing entries.

    Shape:
        - prediction: probabilities ``(B, L)``.
        - target: 0, 1 or ``ignore_index``, ``(B, L)``.

    Example:
        >>> metric = LabelledMultilabelF1(num_labels=1)
        >>> metric.update(torch.tensor([[0.9], [0.8], [0.1]]), torch.tensor([[1], [0], [0]]))
        >>> metric.compute()
        tensor(0.6667)
    """

    def __init__(self, num_labels: int, ignore_index: int = -100) -> None:
        super().__init__(num_labels, average="macro", ignore_index=ignore_index, validate_args=False)

    def compute(self) -> Tensor:
        """Return the F1 score."""
        return nan_unless(_any_seen(self), super().compute())


class MeanAUROC(ExactMetric):
    r"""Area under the receiver operating characteristic, averaged over the labels that have both classes.

    The exact area, from the ranks of the scores: the chance that a positive scores above a negative, ties counting
    half.

    Args:
        num_labels: Number of labels L.
        ignore_index: Target of missing entries.

    Shape:
        - prediction: scores ``(B, L)``.
        - target: 0, 1 or ``ignore_index``, ``(B, L)``.

    Note:
        Keeps all scores. Labels with a single class are left out, and the value is NaN if no label has both;
        torchmetrics counts them as 0 and warns.

    Example:
        >>> metric = MeanAUROC(num_labels=1)
        >>> metric.update(torch.tensor([[0.1], [0.4], [0.3], [0.8]]), torch.tensor([[0], [0], [1], [1]]))
        >>> metric.compute()
        tensor(0.7500)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    prediction: list[Tensor]
    target: list[Tensor]

    def __init__(self, num_labels: int, ignore_index: int = -100) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.ignore_index = ignore_index
        self.add_state("prediction", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        # Flat and float32, so that a process without any batch can contribute an empty tensor of the same kind.
        self.prediction.append(prediction.detach().float().flatten())
        self.target.append(target.float().flatten())

    def compute(self) -> Tensor:
        """Return the mean area."""
        areas = []
        if len(self.prediction) > 0:
            prediction = dim_zero_cat(self.prediction).view(-1, self.num_labels).cpu()
            target = dim_zero_cat(self.target).view(-1, self.num_labels).cpu()
            for scores, classes in zip(prediction.T, target.T, strict=True):
                labelled = classes != self.ignore_index
                positive = classes[labelled] == 1
                positives, negatives = int(positive.sum()), int((~positive).sum())
                if positives and negatives:
                    ranks = average_ranks(scores[labelled])
                    below = ranks[positive].sum() - positives * (positives + 1) / 2
                    areas.append(below / (positives * negatives))
        return mean_or_nan(areas, self.device)


def _any_seen(metric: Metric) -> Tensor:
    """Return whether a metric made of hits and misses has counted anything."""
    counts = torch.stack([torch.as_tensor(metric.metric_state[name]).sum() for name in ("tp", "fp", "tn", "fn")])
    return counts.sum() > 0
