"""The contract of supervised losses: one prediction, one target, some units of it labelled."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

Reduction = Literal["mean", "none"]


class LabelledLoss(nn.Module, ABC):
    """A loss that is the mean of a value per labelled unit (a sample, an entry, a pixel or an image).

    The loss of two joined batches is therefore the mean of their losses weighted by ``labelled(target).sum()``, which
    is what gradient accumulation and several processes need. A target without labels gives exactly zero, with zero
    gradients. Half-precision predictions are scored in float32. Subclasses implement ``check_shapes``, ``labelled`` and
    ``units``.

    Shapes are checked on every call. Label values are checked on every call for targets on the CPU; on an accelerator,
    where reading a value waits for the device, only on the first ``checked_calls`` calls, and never inside
    ``torch.compile``.

    Args:
        reduction: ``"mean"`` for the scalar, ``"none"`` for the value of every unit, zero where unlabelled.
    """

    checked_calls = 10

    def __init__(self, reduction: Reduction = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "none"):
            raise ValueError(f"{type(self).__name__}: reduction must be 'mean' or 'none', got {reduction!r}.")
        self.reduction = reduction
        self._checks_left = self.checked_calls

    @abstractmethod
    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless the shapes of prediction and target fit."""

    def check_values(self, target: Tensor) -> None:
        """Raise ValueError if the target holds a value that is no label. Called when reading values is cheap."""

    @abstractmethod
    def labelled(self, target: Tensor) -> Tensor:
        """Return a boolean tensor with one entry per unit, true where it is labelled."""

    @abstractmethod
    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the value of every unit, in the shape of ``labelled``; unlabelled ones may hold any finite value."""

    def as_scored(self, prediction: Tensor) -> Tensor:
        """Return the prediction in the type in which it is scored, at least float32."""
        return prediction.to(torch.promote_types(prediction.dtype, torch.float32))

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the loss.

        Args:
            prediction: What the head gave.
            target: The labels, on the same device.

        Returns:
            A scalar for ``reduction="mean"``, otherwise one value per unit; float32, or float64 for float64
            predictions.

        Raises:
            ValueError: If the shapes do not fit or a label is out of range.
        """
        self.check_shapes(prediction, target)
        if self._reads_values(target):
            self.check_values(target)
        labelled = self.labelled(target)
        values = self.units(self.as_scored(prediction), target, labelled)
        values = torch.where(labelled, values, torch.zeros_like(values))
        if self.reduction == "none":
            return values
        return values.sum() / labelled.sum().clamp(min=1)

    def _reads_values(self, target: Tensor) -> bool:
        if torch.compiler.is_compiling():
            return False
        if target.device.type == "cpu":
            return True
        self._checks_left -= 1
        return self._checks_left >= 0

    def _check_same_shape(self, prediction: Tensor, target: Tensor) -> None:
        if prediction.shape != target.shape:
            raise ValueError(
                f"{type(self).__name__}: prediction and target must have the same shape, got {tuple(prediction.shape)} "
                f"and {tuple(target.shape)}; reshape the target, or resize the prediction (dense tasks: size=)."
            )

    def _refuse(self, wrong: Tensor, target: Tensor, expected: str) -> None:
        if bool(wrong.any()):
            raise ValueError(
                f"{type(self).__name__}: target must hold {expected}, got {target[wrong][0].item()} among "
                f"{int(wrong.sum())} wrong labels; map missing labels to the ignored value and check the class mapping."
            )
