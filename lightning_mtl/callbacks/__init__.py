"""Callbacks: they watch or steer a run at the Trainer's hooks."""

from lightning_mtl.callbacks.gradient_conflict import GradientConflict
from lightning_mtl.callbacks.grokking import GrokkingDetector, GrokkingReport, GrokkingTimes, detect_grokking
from lightning_mtl.callbacks.instability import InstabilityError, InstabilityMonitor, InstabilityWarning
from lightning_mtl.callbacks.prediction_panels import PredictionPanels
from lightning_mtl.callbacks.results_table import ResultsTable
from lightning_mtl.callbacks.sharpness import SharpnessMonitor

__all__ = [
    "GradientConflict",
    "GrokkingDetector",
    "GrokkingReport",
    "GrokkingTimes",
    "InstabilityError",
    "InstabilityMonitor",
    "InstabilityWarning",
    "PredictionPanels",
    "ResultsTable",
    "SharpnessMonitor",
    "detect_grokking",
]
