"""Losses of the difference between prediction and target, entry by entry."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_mtl.losses.base import LabelledLoss, Reduction

Missing = Literal["nan", "nonpositive"]


class RegressionLoss(LabelledLoss):
    """A loss of numbers, some of which may be missing.

    Args:
        missing: Which targets are no labels: ``"nan"``, or ``"nonpositive"`` for quantities such as depth, where zero,
            negative, infinite and NaN values mark holes.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction, target: any, the same for both; returns a scalar, or the same shape for ``"none"``.

    Raises:
        ValueError: If the shapes differ.
    """

    def __init__(self, missing: Missing = "nan", reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if missing not in ("nan", "nonpositive"):
            raise ValueError(f"{type(self).__name__}: missing must be 'nan' or 'nonpositive', got {missing!r}.")
        self.missing = missing

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless the shapes are equal."""
        self._check_same_shape(prediction, target)

    def check_values(self, target: Tensor) -> None:
        """Raise ValueError if a target is infinite, unless that marks a hole."""
        if self.missing == "nan":
            self._refuse(torch.isinf(target), target, "finite numbers or NaN")

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the target is a label."""
        if self.missing == "nan":
            return ~torch.isnan(target)
        return torch.isfinite(target) & (target > 0)

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the loss of every entry."""
        zero = torch.zeros_like(prediction)
        error = torch.where(labelled, prediction, zero) - torch.where(labelled, target.to(prediction.dtype), zero)
        return self.penalty(error)

    @abstractmethod
    def penalty(self, error: Tensor) -> Tensor:
        """Return the loss of every difference ``prediction - target``."""


class AbsoluteError(RegressionLoss):
    """Mean absolute difference over the labelled entries (L1).

    Args:
        missing: Which targets are no labels: ``"nan"``, or ``"nonpositive"`` for depth-like quantities.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction, target: any, the same for both; returns a scalar, or the same shape for ``"none"``.

    Raises:
        ValueError: If the shapes differ or a label is infinite.

    Example:
        >>> AbsoluteError()(torch.tensor([1.0, 5.0]), torch.tensor([3.0, float("nan")]))
        tensor(2.)
    """

    def penalty(self, error: Tensor) -> Tensor:
        """Return the absolute differences."""
        return error.abs()


class SquaredError(RegressionLoss):
    """Mean squared difference over the labelled entries.

    Args:
        missing: Which targets are no labels: ``"nan"``, or ``"nonpositive"`` for depth-like quantities.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction, target: any, the same for both; returns a scalar, or the same shape for ``"none"``.

    Raises:
        ValueError: If the shapes differ or a label is infinite.

    Example:
        >>> SquaredError()(torch.tensor([1.0, 5.0]), torch.tensor([3.0, float("nan")]))
        tensor(4.)
    """

    def penalty(self, error: Tensor) -> Tensor:
        """Return the squared differences."""
        return error.square()


class Huber(RegressionLoss):
    """Half the squared difference where it is small, linear beyond ``delta`` (Huber, 1964).

    Args:
        delta: Absolute difference at which the loss becomes linear, positive.
        missing: Which targets are no labels: ``"nan"``, or ``"nonpositive"`` for depth-like quantities.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction, target: any, the same for both; returns a scalar, or the same shape for ``"none"``.

    Raises:
        ValueError: If ``delta`` is not positive, the shapes differ or a label is infinite.

    Example:
        >>> Huber(delta=1.0)(torch.tensor([0.0, 0.0]), torch.tensor([0.5, 3.0]))
        tensor(1.3125)

    References:
        Peter J. Huber. *Robust Estimation of a Location Parameter*. Annals of Mathematical Statistics 35(1), 1964.
        https://doi.org/10.1214/aoms/1177703732
    """

    def __init__(self, delta: float = 1.0, missing: Missing = "nan", reduction: Reduction = "mean") -> None:
        super().__init__(missing, reduction)
        if delta <= 0:
            raise ValueError(f"{type(self).__name__}: delta must be positive, got {delta}.")
        self.delta = delta

    def penalty(self, error: Tensor) -> Tensor:
        """Return the Huber loss of the differences."""
        return F.huber_loss(error, torch.zeros_like(error), reduction="none", delta=self.delta)
