"""``lightning-mtl benchmark``: one recipe, several balancers and seeds, and the single-task baselines."""

from lightning_mtl.cli.benchmark.callbacks import OnlyTasks, StepTime
from lightning_mtl.cli.benchmark.command import main

__all__ = ["OnlyTasks", "StepTime", "main"]
