"""Losses on next-token and other large softmax outputs."""

from lightning_mtl.losses.language.log_partition_penalty import LogPartitionPenalty, log_partition_penalty

__all__ = ["LogPartitionPenalty", "log_partition_penalty"]
