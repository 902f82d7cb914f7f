"""Delayed generalization: when it comes, and why it has not come yet."""

from lightning_mtl.callbacks.grokking.detection import GrokkingTimes, detect_grokking
from lightning_mtl.callbacks.grokking.detector import GrokkingDetector
from lightning_mtl.callbacks.grokking.report import GrokkingReport

__all__ = ["GrokkingDetector", "GrokkingReport", "GrokkingTimes", "detect_grokking"]
