"""Losses: one prediction scored against one target."""

from lightning_mtl.losses.base import LabelledLoss
from lightning_mtl.losses.classification import CORAL, CORN, BinaryCrossEntropy, CrossEntropy, SpanCrossEntropy
from lightning_mtl.losses.contrastive import info_nce
from lightning_mtl.losses.dense import BalancedBCE, BerHu, CosineDistance, SILog
from lightning_mtl.losses.distillation import DistillationKL, LogitMatching, ci_kd_loss
from lightning_mtl.losses.language import (
    LogPartitionPenalty,
    MultiTaskTokenLoss,
    TaskFocalLoss,
    TokenCrossEntropy,
    log_partition_penalty,
)
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
    "MultiTaskTokenLoss",
    "SILog",
    "SpanCrossEntropy",
    "SquaredError",
    "TaskFocalLoss",
    "TokenCrossEntropy",
    "ci_kd_loss",
    "info_nce",
    "log_partition_penalty",
]
