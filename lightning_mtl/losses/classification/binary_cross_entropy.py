"""Sigmoid cross entropy with missing entries."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_mtl.losses.base import LabelledLoss, Reduction


class BinaryCrossEntropy(LabelledLoss):
    r"""Sigmoid cross entropy of independent yes-or-no entries, each of which may be missing.

    .. math:: L = -\frac{1}{N} \sum_i p\, y_i \log \sigma(z_i) + (1 - y_i) \log(1 - \sigma(z_i))

    with logits :math:`z`, labels :math:`y`, the weight :math:`p` of positives and the sum over the :math:`N` labelled
    entries.

    Args:
        ignore_index: Value of missing entries; NaN marks them as well.
        pos_weight: Factor of the positive entries, positive.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction: logits, any shape.
        - target: 0, 1 or missing, of any dtype, in the same shape.

    Raises:
        ValueError: If an argument is out of range, the shapes differ or a label is neither 0, 1 nor missing.

    Example:
        >>> loss = BinaryCrossEntropy()
        >>> loss(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, float("nan")]]))
        tensor(0.6931)
    """

    def __init__(self, ignore_index: int = -100, pos_weight: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if ignore_index in (0, 1):
            raise ValueError(f"{type(self).__name__}: ignore_index must not be 0 or 1, got {ignore_index}.")
        if pos_weight <= 0:
            raise ValueError(f"{type(self).__name__}: pos_weight must be positive, got {pos_weight}.")
        self.ignore_index = ignore_index
        self.pos_weight = pos_weight

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless the shapes are equal."""
        self._check_same_shape(prediction, target)

    def check_values(self, target: Tensor) -> None:
        """Raise ValueError if a label is neither 0, 1 nor missing."""
        wrong = self.labelled(target) & (target != 0) & (target != 1)
        self._refuse(wrong, target, f"0, 1, NaN or {self.ignore_index}")

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the target is neither NaN nor ``ignore_index``."""
        return (target != self.ignore_index) & ~torch.isnan(target)

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the weighted cross entropy of every entry."""
        positive = labelled & (target == 1)
        values = F.binary_cross_entropy_with_logits(
            torch.where(labelled, prediction, torch.zeros_like(prediction)),
            positive.to(prediction.dtype),
            reduction="none",
        )
        return torch.where(positive, self.pos_weight * values, values)
