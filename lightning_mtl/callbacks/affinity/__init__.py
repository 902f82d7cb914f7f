"""Measure how much the tasks of a run help each other."""

from lightning_mtl.callbacks.affinity.table import AffinityTable, read_affinity
from lightning_mtl.callbacks.affinity.task_affinity import TaskAffinity

__all__ = ["AffinityTable", "TaskAffinity", "read_affinity"]
