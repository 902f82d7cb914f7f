"""Cross entropy of the first and the last token of an answer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from lightning_mtl.losses.base import LabelledLoss, Reduction


class SpanCrossEntropy(LabelledLoss):
    r"""Mean cross entropy of where an answer begins and where it ends in a text.

    .. math:: L = \frac{1}{N} \sum_i \tfrac12 \left(-\log \mathrm{softmax}(a_i)_{s_i}
        -\log \mathrm{softmax}(b_i)_{e_i}\right)

    over the :math:`N` answered questions, with logits :math:`a_i` of the first and :math:`b_i` of the last token over
    all tokens of the text, and the answer's first and last token :math:`s_i \le e_i`.

    Args:
        ignore_index: Target of questions without an answer, in both places.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction: logits ``(B, L, 2)``.
        - target: first and last token ``(B, 2)``, integers in ``0 .. L-1``, or ``ignore_index`` twice.

    Raises:
        ValueError: If the shapes do not fit or a target is no span of the text.

    Example:
        >>> import torch
        >>> loss = SpanCrossEntropy()
        >>> loss(torch.zeros(2, 4, 2), torch.tensor([[1, 2], [-100, -100]]))
        tensor(1.3863)

    References:
        Devlin, Chang, Lee, Toutanova. *BERT: Pre-training of Deep Bidirectional Transformers for Language
        Understanding*. NAACL 2019. https://arxiv.org/abs/1810.04805, Sec. 4.2.
    """

    def __init__(self, ignore_index: int = -100, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if ignore_index >= 0:
            raise ValueError(f"SpanCrossEntropy: ignore_index must be negative, got {ignore_index}.")
        self.ignore_index = ignore_index
        self._length = 0

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless prediction is ``(B, L, 2)`` and target integers ``(B, 2)``."""
        name = type(self).__name__
        if target.ndim != 2 or target.shape[1] != 2 or target.is_floating_point():
            raise ValueError(f"{name}: target must be integers (B, 2), got {tuple(target.shape)} of {target.dtype}.")
        if prediction.ndim != 3 or prediction.shape[1] < 1 or prediction.shape[::2] != target.shape:
            raise ValueError(
                f"{name}: prediction must be ({len(target)}, L, 2) for a target of shape {tuple(target.shape)}, got "
                f"{tuple(prediction.shape)}; give the head two output channels a token."
            )
        self._length = prediction.shape[1]

    def check_values(self, target: Tensor) -> None:
        """Raise ValueError if a target is no span of the text."""
        missing = target == self.ignore_index
        wrong = ((target < 0) | (target >= self._length)) & ~missing
        self._refuse(wrong, target, f"tokens 0..{self._length - 1} of the text or {self.ignore_index}")
        half = missing.any(1, keepdim=True) & ~missing
        self._refuse(half, target, f"{self.ignore_index} in both places or in none")
        self._refuse((target[:, 1:] < target[:, :1]).expand_as(target), target, "spans whose first token is not last")

    def labelled(self, target: Tensor) -> Tensor:
        """Return which questions are answered."""
        return (target != self.ignore_index).all(1)

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the loss of every question."""
        losses = F.cross_entropy(prediction, target.long(), ignore_index=self.ignore_index, reduction="none")
        return losses.mean(1)
