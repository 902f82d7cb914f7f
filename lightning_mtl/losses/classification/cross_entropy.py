"""Softmax cross entropy for samples and pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_mtl.losses.base import LabelledLoss, Reduction


class CrossEntropy(LabelledLoss):
    r"""Softmax cross entropy of one class per sample or per pixel.

    .. math:: L = \frac{1}{N} \sum_{i} w_{y_i} \left(-\log \mathrm{softmax}(z_i)_{y_i}\right)

    with logits :math:`z`, labels :math:`y`, class weights :math:`w` and the sum over the :math:`N` labelled units.

    Args:
        num_classes: Number of classes, at least 2.
        ignore_index: Label of unlabelled units; no class.
        label_smoothing: Share of the target spread evenly over all classes, in ``[0, 1)``.
        class_weights: One non-negative factor per class.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction: logits ``(B, C, ...)``.
        - target: integers ``(B, ...)`` in ``0 .. C-1`` or ``ignore_index``.

    Raises:
        ValueError: If an argument is out of range, the shapes do not fit or a label is no class.

    Note:
        With ``class_weights`` the sum is divided by the number of labelled units; ``torch.nn.CrossEntropyLoss`` divides
        by the sum of their weights. Only the former adds up over processes and accumulated batches.

    Example:
        >>> loss = CrossEntropy(num_classes=2)
        >>> loss(torch.zeros(3, 2), torch.tensor([0, 1, -100]))
        tensor(0.6931)
    """

    class_weights: Tensor | None

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(reduction)
        name = type(self).__name__
        if num_classes < 2:
            raise ValueError(f"{name}: num_classes must be at least 2, got {num_classes}.")
        if 0 <= ignore_index < num_classes:
            raise ValueError(
                f"{name}: ignore_index must be outside 0..{num_classes - 1}, got {ignore_index}; "
                "shift the class ids or choose another ignore_index."
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"{name}: label_smoothing must be in [0, 1), got {label_smoothing}.")
        if class_weights is not None and (len(class_weights) != num_classes or min(class_weights) < 0):
            raise ValueError(
                f"{name}: class_weights must be {num_classes} non-negative numbers, got {list(class_weights)}."
            )
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(list(class_weights), dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless prediction is ``(B, C, ...)`` and target integers ``(B, ...)``."""
        name = type(self).__name__
        expected = (*target.shape[:1], self.num_classes, *target.shape[1:])
        if tuple(prediction.shape) != expected:
            raise ValueError(
                f"{name}: prediction must be {expected} for a target of shape {tuple(target.shape)}, got "
                f"{tuple(prediction.shape)}; give the head {self.num_classes} output channels and resize dense "
                "predictions to the target."
            )
        if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
            raise ValueError(f"{name}: target must hold integers, got {target.dtype}; convert it with .long().")

    def check_values(self, target: Tensor) -> None:
        """Raise ValueError if a label is neither a class nor ``ignore_index``."""
        wrong = self.labelled(target) & ((target < 0) | (target >= self.num_classes))
        self._refuse(wrong, target, f"classes 0..{self.num_classes - 1} or {self.ignore_index}")

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the target is not ``ignore_index``."""
        return target != self.ignore_index

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the cross entropy of every unit."""
        weights = None if self.class_weights is None else self.class_weights.to(prediction.dtype)
        return F.cross_entropy(
            prediction,
            target.long(),
            weight=weights,
            ignore_index=self.ignore_index,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )
