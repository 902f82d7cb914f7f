"""CORN: ordinal regression with conditional probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.losses.classification.ordinal import OrdinalLoss


class CORN(OrdinalLoss):
    r"""Conditional ordinal regression for neural networks (Shi et al., Pattern Analysis and Applications 2023).

    Logit k models :math:`P(y > r_k \mid y > r_{k-1})`, so question k is asked only of the samples
    :math:`S_k = \{i : y_i > r_{k-1}\}` and :math:`P(y > r_k) = \prod_{j \le k} \sigma(z_j)` decreases in k without any
    constraint on the weights.

    .. math::
        L = -\frac{1}{\sum_k |S_k|} \sum_k \sum_{i \in S_k}
            \log \sigma(z_{ik}) [y_i > r_k] + \log(1 - \sigma(z_{ik})) [y_i \le r_k]

    Args:
        num_classes: Number of ranks K, at least 2.
        ignore_index: Label of unlabelled samples; no rank.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction: logits ``(B, K - 1)``.
        - target: integers ``(B,)`` in ``0 .. K-1`` or ``ignore_index``.

    Raises:
        ValueError: If an argument is out of range, the shapes do not fit or a label is no rank.

    Note:
        A unit is a question that was asked, so a sample of rank r counts ``min(r + 1, K - 1)`` times, as in the paper.

    Example:
        >>> loss = CORN(num_classes=3)
        >>> loss.labelled(torch.tensor([0, 2]))  # the second question is not asked of rank 0
        tensor([[ True, False],
                [ True,  True]])
        >>> loss(torch.zeros(2, 2), torch.tensor([0, 2]))
        tensor(0.6931)

    References:
        Xintong Shi, Wenzhi Cao, Sebastian Raschka. *Deep neural networks for rank-consistent ordinal regression based
        on conditional probabilities*. Pattern Analysis and Applications 26, 2023. https://arxiv.org/abs/2111.08851
        Authors' code: https://github.com/Raschka-research-group/corn-ordinal-neuralnet, MIT.
    """

    def labelled(self, target: Tensor) -> Tensor:
        """Return which questions are asked of which sample, ``(B, K - 1)``."""
        ranks = torch.arange(self.num_classes - 1, device=target.device)
        target = target.unsqueeze(1)
        return (target != self.ignore_index) & (target >= ranks)

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the cross entropy of every question."""
        return self._questions(torch.where(labelled, prediction, torch.zeros_like(prediction)), target)
