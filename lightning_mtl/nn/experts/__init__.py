"""Mixtures of experts: shared networks that every task weighs for itself."""

from lightning_mtl.nn.experts.base import ConvExpert, MLPExpert
from lightning_mtl.nn.experts.dselect_k import DSelectK
from lightning_mtl.nn.experts.mmoe import MMoE
from lightning_mtl.nn.experts.ple import CGC, PLE
from lightning_mtl.nn.experts.task_expert import TaskExpert

__all__ = ["CGC", "PLE", "ConvExpert", "DSelectK", "MLPExpert", "MMoE", "TaskExpert"]
