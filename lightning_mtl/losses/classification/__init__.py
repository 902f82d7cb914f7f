"""Losses for classes, entries and ranks."""

from lightning_mtl.losses.classification.binary_cross_entropy import BinaryCrossEntropy
from lightning_mtl.losses.classification.coral import CORAL
from lightning_mtl.losses.classification.corn import CORN
from lightning_mtl.losses.classification.cross_entropy import CrossEntropy
from lightning_mtl.losses.classification.span_cross_entropy import SpanCrossEntropy

__all__ = ["CORAL", "CORN", "BinaryCrossEntropy", "CrossEntropy", "SpanCrossEntropy"]
