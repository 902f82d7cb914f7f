"""Losses for learning from the logits of another network, or of the same one at an earlier time."""

from lightning_mtl.losses.distillation.configuration_invariant import ci_kd_loss
from lightning_mtl.losses.distillation.distillation_kl import DistillationKL
from lightning_mtl.losses.distillation.logit_matching import LogitMatching

__all__ = ["DistillationKL", "LogitMatching", "ci_kd_loss"]
