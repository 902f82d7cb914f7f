"""Continual learning: replay, finetuning of what was forgotten, and what there is to measure."""

from lightning_mtl.callbacks.continual.continual_metrics import ContinualMetrics
from lightning_mtl.callbacks.continual.finetuning import finetuning_steps
from lightning_mtl.callbacks.continual.forgetting_prioritized_finetuning import ForgettingPrioritizedFinetuning
from lightning_mtl.callbacks.continual.module_change import ModuleChangeMonitor
from lightning_mtl.callbacks.continual.replay import DarkExperienceReplay, ExperienceReplay
from lightning_mtl.callbacks.continual.sensitivity import (
    default_groups,
    gradient_sensitivity,
    module_change,
    select_groups,
)

__all__ = [
    "ContinualMetrics",
    "DarkExperienceReplay",
    "ExperienceReplay",
    "ForgettingPrioritizedFinetuning",
    "ModuleChangeMonitor",
    "default_groups",
    "finetuning_steps",
    "gradient_sensitivity",
    "module_change",
    "select_groups",
]
