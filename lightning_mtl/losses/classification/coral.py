"""CORAL: rank-consistent ordinal regression."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.losses.classification.ordinal import OrdinalLoss


class CORAL(OrdinalLoss):
    r"""Consistent rank logits (Cao et al., Pattern Recognition Letters 2020).

    .. math::
        L = -\frac{1}{N} \sum_i \sum_{k=1}^{K-1}
            \log \sigma(z_{ik}) [y_i > r_k] + \log(1-\sigma(z_{ik})) [y_i \le r_k]

    with :math:`z_{ik} = w^\top x_i + b_k`: the questions share the weights and differ by a bias, which is what makes
    the probabilities :math:`P(y > r_k)` decrease in k at the optimum (Theorem 1). The head must have that form; the
    loss scores any logits.

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
        The importance weights of the questions, Eq. 4, are one. A unit is a sample, so its K - 1 terms are summed.

    Example:
        >>> CORAL(num_classes=3)(torch.zeros(1, 2), torch.tensor([1]))
        tensor(1.3863)

    References:
        Wenzhi Cao, Vahid Mirjalili, Sebastian Raschka. *Rank consistent ordinal regression for neural networks with
        application to age estimation*. Pattern Recognition Letters 140, 2020. https://arxiv.org/abs/1901.07884, Eq. 4.
        Authors' code: https://github.com/Raschka-research-group/coral-cnn, MIT.
    """

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the target is not ``ignore_index``, ``(B,)``."""
        return target != self.ignore_index

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the summed cross entropy of the questions of every sample."""
        prediction = torch.where(labelled.unsqueeze(1), prediction, torch.zeros_like(prediction))
        return self._questions(prediction, target).sum(1)
