"""Losses: one prediction scored against one target."""

from lightning_mtl.losses.base import LabelledLoss
from lightning_mtl.losses.classification import CORAL, CORN, BinaryCrossEntropy, CrossEntropy
from lightning_mtl.losses.dense import BalancedBCE, BerHu, CosineDistance, SILog
from lightning_mtl.losses.distillation import DistillationKL, LogitMatching, ci_kd_loss
from lightning_mtl.losses.language import LogPartitionPenalty, TokenCrossEntropy, log_partition_penalty
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
    "DistillationKL",
    "Huber",
    "LabelledLoss",
    "LogPartitionPenalty",
    "LogitMatching",
    "SILog",
    "SquaredError",
    "TokenCrossEntropy",
    "ci_kd_loss",
    "log_partition_penalty",
]
