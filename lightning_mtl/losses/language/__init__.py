"""Losses on next-token and other large softmax outputs."""

from lightning_mtl.losses.language.log_partition_penalty import LogPartitionPenalty, log_partition_penalty
from lightning_mtl.losses.language.multi_task import MultiTaskTokenLoss, TaskFocalLoss
from lightning_mtl.losses.language.token_cross_entropy import TokenCrossEntropy

__all__ = ["LogPartitionPenalty", "MultiTaskTokenLoss", "TaskFocalLoss", "TokenCrossEntropy", "log_partition_penalty"]
