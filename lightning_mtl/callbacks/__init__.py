"""Callbacks: they watch or steer a run at the Trainer's hooks."""

from lightning_mtl.callbacks.affinity import AffinityTable, TaskAffinity, read_affinity
from lightning_mtl.callbacks.continual import (
    ContinualMetrics,
    DarkExperienceReplay,
    ExperienceReplay,
    ForgettingPrioritizedFinetuning,
    ModuleChangeMonitor,
    default_groups,
    finetuning_steps,
    gradient_sensitivity,
    module_change,
    select_groups,
)
from lightning_mtl.callbacks.dynamic_pruning import DynamicPruning
from lightning_mtl.callbacks.enhancement_panel import EnhancementPanel
from lightning_mtl.callbacks.gradient_conflict import GradientConflict
from lightning_mtl.callbacks.grokking import GrokkingDetector, GrokkingReport, GrokkingTimes, detect_grokking
from lightning_mtl.callbacks.instability import InstabilityError, InstabilityMonitor, InstabilityWarning
from lightning_mtl.callbacks.prediction_panels import PredictionPanels
from lightning_mtl.callbacks.results_table import ResultsTable
from lightning_mtl.callbacks.score_average import GLUEAverage, ScoreAverage
from lightning_mtl.callbacks.sharpness import SharpnessMonitor
from lightning_mtl.callbacks.timestep_affinity import TimestepAffinity
from lightning_mtl.callbacks.validation_losses import ValidationLosses

__all__ = [
    "AffinityTable",
    "ContinualMetrics",
    "DarkExperienceReplay",
    "DynamicPruning",
    "EnhancementPanel",
    "ExperienceReplay",
    "ForgettingPrioritizedFinetuning",
    "GLUEAverage",
    "GradientConflict",
    "GrokkingDetector",
    "GrokkingReport",
    "GrokkingTimes",
    "InstabilityError",
    "InstabilityMonitor",
    "InstabilityWarning",
    "ModuleChangeMonitor",
    "PredictionPanels",
    "ResultsTable",
    "ScoreAverage",
    "SharpnessMonitor",
    "TaskAffinity",
    "TimestepAffinity",
    "ValidationLosses",
    "default_groups",
    "detect_grokking",
    "finetuning_steps",
    "gradient_sensitivity",
    "module_change",
    "read_affinity",
    "select_groups",
]
