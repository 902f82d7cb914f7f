"""What the ordinal losses share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_mtl.losses.base import LabelledLoss, Reduction


class OrdinalLoss(LabelledLoss):
    """What the ordinal losses share: K ranks, told apart by K - 1 binary questions "is the rank above k?".

    Args:
        num_classes: Number of ranks K, at least 2.
        ignore_index: Label of unlabelled samples; no rank.
        reduction: ``"mean"`` or ``"none"``.
    """

    def __init__(self, num_classes: int, ignore_index: int = -100, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        name = type(self).__name__
        if num_classes < 2:
            raise ValueError(f"{name}: num_classes must be at least 2, got {num_classes}.")
        if 0 <= ignore_index < num_classes:
            raise ValueError(f"{name}: ignore_index must be outside 0..{num_classes - 1}, got {ignore_index}.")
        self.num_classes = num_classes
        self.ignore_index = ignore_index

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless prediction is ``(B, K - 1)`` and target integers ``(B,)``."""
        name = type(self).__name__
        if target.ndim != 1 or tuple(prediction.shape) != (len(target), self.num_classes - 1):
            raise ValueError(
                f"{name}: prediction must be (B, {self.num_classes - 1}) and target (B,), got "
                f"{tuple(prediction.shape)} and {tuple(target.shape)}; {self.num_classes} ranks take "
                f"{self.num_classes - 1} logits."
            )
        if target.is_floating_point() or target.dtype == torch.bool:
            raise ValueError(f"{name}: target must hold integers, got {target.dtype}; convert it with .long().")

    def check_values(self, target: Tensor) -> None:
        """Raise ValueError if a label is neither a rank nor ``ignore_index``."""
        wrong = (target != self.ignore_index) & ((target < 0) | (target >= self.num_classes))
        self._refuse(wrong, target, f"ranks 0..{self.num_classes - 1} or {self.ignore_index}")

    def _questions(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the cross entropy of each question, ``(B, K - 1)``."""
        ranks = torch.arange(self.num_classes - 1, device=target.device)
        above = (target.unsqueeze(1) > ranks).to(prediction.dtype)
        return F.binary_cross_entropy_with_logits(prediction, above, reduction="none")
