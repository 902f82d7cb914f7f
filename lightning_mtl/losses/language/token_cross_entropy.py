"""Next-token cross entropy, averaged over tokens or over samples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_mtl.functional.token_losses import check_token_shapes, token_losses
from lightning_mtl.losses.base import LabelledLoss, Reduction

Average = Literal["tokens", "samples"]


class TokenCrossEntropy(LabelledLoss):
    r"""Cross entropy of the next token, the loss of language models.

    .. math::
        L_{\mathrm{tokens}} = \frac{\sum_{j,k} \ell_{jk}}{\sum_j T_j}, \qquad
        L_{\mathrm{samples}} = \frac{1}{S} \sum_j (1 - P_j)^\gamma \frac{1}{T_j} \sum_k \ell_{jk}

    with the cross entropy :math:`\ell_{jk}` of token k of sample j, its :math:`T_j` labelled tokens, the S samples that
    have any, and the mean probability :math:`P_j` of a sample's labelled tokens. Computed in float32 on the rows of
    labelled tokens alone.

    Args:
        average: Whether every token has the same share in the mean, or every sample.
        gamma: Focus on samples that are not learnt yet; 0 is plain cross entropy. Only with ``average="samples"``.
        ignore_index: Label of tokens that do not count.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction: logits ``(B, L, V)``.
        - target: ``(B, L)`` int64, the token after every input, so shifted already. Units are tokens or rows.

    Raises:
        ValueError: If an argument is out of range, the shapes do not fit or a label is no token.

    Note:
        The factor of a sample carries a gradient, as in the focal loss of detectors. A packed row counts as one sample.

    Example:
        >>> import torch
        >>> loss = TokenCrossEntropy()
        >>> loss(torch.zeros(1, 3, 2), torch.tensor([[0, 1, -100]]))
        tensor(0.6931)

    References:
        Liu, Chen, Liao, Gong, Wang, Lei, Liang, Chen, Shen, Zhou, Yu, Li. *MFTCoder: Boosting Code LLMs with Multitask
        Fine-Tuning*. KDD 2024. https://arxiv.org/abs/2311.02303
    """

    def __init__(
        self,
        average: Average = "tokens",
        gamma: float = 0.0,
        ignore_index: int = -100,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        if average not in ("tokens", "samples"):
            raise ValueError(f"TokenCrossEntropy: average must be 'tokens' or 'samples', got {average!r}.")
        if not gamma >= 0:
            raise ValueError(f"TokenCrossEntropy: gamma must not be negative, got {gamma}.")
        if gamma and average == "tokens":
            raise ValueError(f"TokenCrossEntropy: gamma must be 0 with average='tokens', got {gamma}; take 'samples'.")
        self.average = average
        self.gamma = gamma
        self.ignore_index = ignore_index

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless prediction is ``(B, L, V)`` and target integers ``(B, L)``."""
        check_token_shapes(type(self).__name__, prediction, target)

    def as_scored(self, prediction: Tensor) -> Tensor:
        """Return the prediction as it is: only the labelled rows are turned into float32."""
        return prediction

    def labelled(self, target: Tensor) -> Tensor:
        """Return which tokens, or which rows, have a label."""
        tokens = target != self.ignore_index
        return tokens if self.average == "tokens" else tokens.any(dim=1)

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the loss of every token, or of every row."""
        tokens = target != self.ignore_index
        values = token_losses(type(self).__name__, prediction, target, tokens, "target")
        if self.average == "tokens":
            return values
        count = tokens.sum(dim=1).clamp(min=1)
        means = values.sum(dim=1) / count
        if self.gamma:
            probability = torch.where(tokens, (-values).exp(), 0.0).sum(dim=1) / count
            means = (1 - probability).clamp(min=0) ** self.gamma * means
        return means
