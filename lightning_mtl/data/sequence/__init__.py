"""Generated sequences: tokens in, tokens out."""

from lightning_mtl.data.sequence.digit_tasks import DigitTasks, DigitTasksDataModule
from lightning_mtl.data.sequence.markov import MarkovCopy, MarkovCopyDataModule
from lightning_mtl.data.sequence.modular_arithmetic import ModularArithmeticDataModule

__all__ = ["DigitTasks", "DigitTasksDataModule", "MarkovCopy", "MarkovCopyDataModule", "ModularArithmeticDataModule"]
