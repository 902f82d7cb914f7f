"""Metrics of answers that are spans of a text."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from lightning_mtl.metrics.base import ExactMetric, nan_unless


class SpanMetric(ExactMetric):
    """Counts that the metrics of spans share.

    Args:
        ignore_index: Target of questions without an answer, in both places.

    Shape:
        - prediction: first and last token of the predicted answer, ``(B, 2)`` integers.
        - target: the same of the right answer.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    total: Tensor
    answered: Tensor

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.add_sum("total")
        self.add_sum("answered", dtype=torch.int64)

    @abstractmethod
    def score(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the score of every question, ``(B,)``."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        answered = (target != self.ignore_index).all(-1)
        score = self.score(prediction.to(torch.int64), target.to(torch.int64)).to(self.total.dtype)
        self.total += torch.where(answered, score, 0).sum()
        self.answered += answered.sum()

    def compute(self) -> Tensor:
        """Return the mean score."""
        return nan_unless(self.answered > 0, self.total / self.answered)


class SpanExactMatch(SpanMetric):
    """Share of the answered questions whose first and last token are both right, NaN without any.

    Args:
        ignore_index: Target of questions without an answer, in both places.

    Shape:
        - prediction: first and last token of the predicted answer, ``(B, 2)`` integers.
        - target: the same of the right answer.

    Example:
        >>> metric = SpanExactMatch()
        >>> metric.update(torch.tensor([[3, 5], [2, 2]]), torch.tensor([[3, 5], [2, 4]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def score(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return 1 for equal spans, 0 otherwise."""
        return (prediction == target).all(-1)


class SpanF1(SpanMetric):
    """F1 of the tokens in the predicted answer against those in the right one, a mean over the answered questions.

    Tokens are compared by their place in the text. SQuAD's script compares the words of normalised answers, for which
    the text is needed; see :class:`~lightning_mtl.metrics.TokenF1`. NaN without answered questions.

    Args:
        ignore_index: Target of questions without an answer, in both places.

    Shape:
        - prediction: first and last token of the predicted answer, ``(B, 2)`` integers.
        - target: the same of the right answer.

    Example:
        >>> metric = SpanF1()
        >>> metric.update(torch.tensor([[3, 5], [2, 2]]), torch.tensor([[3, 5], [3, 4]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def score(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return twice the number of common tokens over the lengths of both."""
        first, last = torch.maximum(prediction[:, 0], target[:, 0]), torch.minimum(prediction[:, 1], target[:, 1])
        lengths = [(span[:, 1] - span[:, 0] + 1).clamp(min=0) for span in (prediction, target)]
        return 2 * (last - first + 1).clamp(min=0) / (lengths[0] + lengths[1]).clamp(min=1)
