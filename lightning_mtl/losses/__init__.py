"""Losses: one prediction scored against one target."""

from lightning_mtl.losses.base import LabelledLoss
from lightning_mtl.losses.classification import CORAL, CORN, BinaryCrossEntropy, CrossEntropy
from lightning_mtl.losses.dense import BalancedBCE, BerHu, CosineDistance, SILog
from lightning_mtl.losses.regression import AbsoluteError, Huber, SquaredError

__all__ = [
    "CORAL",
    "CORN",
    "AbsoluteError",
    "BalancedBCE",
    "BerHu",
    "BinaryCrossEntropy",
    "CosineDistance",
    "CrossEntropy",
    "Huber",
    "LabelledLoss",
    "SILog",
    "SquaredError",
]
