"""Metrics of next-token prediction."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.token_losses import token_losses
from lightning_mtl.metrics.base import ExactMetric, nan_unless


class TokenMetric(ExactMetric):
    """Counts that the metrics of next-token prediction share; they can be joined in one group.

    Args:
        ignore_index: Label of tokens that do not count.

    Shape:
        - prediction: logits ``(B, L, V)``.
        - target: the token after every input, ``(B, L)`` int64.
    """

    tokens: Tensor
    correct: Tensor
    surprise: Tensor
    sequences: Tensor
    exact: Tensor

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        for name in ("tokens", "correct", "surprise", "sequences", "exact"):
            self.add_sum(name)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        labelled = target != self.ignore_index
        right = (prediction.detach().argmax(dim=-1) == target) & labelled
        losses = token_losses(type(self).__name__, prediction.detach(), target, labelled, "target")
        present = labelled.any(dim=1)
        self.tokens += labelled.sum()
        self.correct += right.sum()
        self.surprise += losses.to(self.surprise.dtype).sum()
        self.sequences += present.sum()
        self.exact += ((right == labelled).all(dim=1) & present).sum()


class TokenAccuracy(TokenMetric):
    """Share of the labelled tokens that are the most likely ones. NaN without labels.

    Args:
        ignore_index: Label of tokens that do not count.

    Shape:
        - prediction: logits ``(B, L, V)``.
        - target: ``(B, L)`` int64.

    Example:
        >>> import torch
        >>> metric = TokenAccuracy()
        >>> metric.update(torch.eye(3).unsqueeze(0), torch.tensor([[0, 1, 1]]))
        >>> metric.compute()
        tensor(0.6667)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """Return the accuracy."""
        return nan_unless(self.tokens > 0, self.correct / self.tokens)


class TokenPerplexity(TokenMetric):
    """Exponential of the mean cross entropy of the labelled tokens. NaN without labels.

    Args:
        ignore_index: Label of tokens that do not count.

    Shape:
        - prediction: logits ``(B, L, V)``.
        - target: ``(B, L)`` int64.

    Example:
        >>> import torch
        >>> metric = TokenPerplexity()
        >>> metric.update(torch.zeros(1, 2, 5), torch.tensor([[0, 3]]))
        >>> metric.compute()
        tensor(5.)
    """

    higher_is_better = False
    plot_lower_bound = 1.0

    def compute(self) -> Tensor:
        """Return the perplexity."""
        return nan_unless(self.tokens > 0, (self.surprise / self.tokens).exp())


class SequenceExactMatch(TokenMetric):
    """Share of the rows all of whose labelled tokens are the most likely ones. NaN without labels.

    The prediction at a token was made with the true tokens before it. Where a row has one labelled run with its end
    token, that is a match exactly when greedy decoding from the prompt gives the reference: up to the first wrong token
    both read the same.

    Args:
        ignore_index: Label of tokens that do not count.

    Shape:
        - prediction: logits ``(B, L, V)``.
        - target: ``(B, L)`` int64.

    Example:
        >>> import torch
        >>> metric = SequenceExactMatch()
        >>> metric.update(torch.eye(2).expand(2, 2, 2), torch.tensor([[0, 1], [0, 0]]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """Return the share of exact matches."""
        return nan_unless(self.sequences > 0, self.exact / self.sequences)
