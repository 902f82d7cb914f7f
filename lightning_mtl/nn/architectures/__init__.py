"""Networks that share less than one whole encoder: ties, attention, trees, distillation."""

from lightning_mtl.nn.architectures.cross_stitch import CrossStitch
from lightning_mtl.nn.architectures.inv_pt import InvPT
from lightning_mtl.nn.architectures.learning_to_branch import LearningToBranch
from lightning_mtl.nn.architectures.mtan import MTAN
from lightning_mtl.nn.architectures.mti_net import MTINet
from lightning_mtl.nn.architectures.nddr_cnn import NDDRCNN
from lightning_mtl.nn.architectures.pad_net import PADNet
from lightning_mtl.nn.architectures.task_tree import TaskTree

__all__ = ["MTAN", "NDDRCNN", "CrossStitch", "InvPT", "LearningToBranch", "MTINet", "PADNet", "TaskTree"]
