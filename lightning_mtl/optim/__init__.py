"""Optimizers that know which task a step is of."""

from lightning_mtl.optim.base import TaskAwareOptimizer
from lightning_mtl.optim.mt_adamw import MTAdamW

__all__ = ["MTAdamW", "TaskAwareOptimizer"]
