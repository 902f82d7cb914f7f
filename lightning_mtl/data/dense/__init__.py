"""Data sets of images with per-pixel targets, and their joint transforms."""

from lightning_mtl.data.dense.edges import close_gaps, label_boundaries
from lightning_mtl.data.dense.nyuv2 import NYUv2, NYUv2DataModule
from lightning_mtl.data.dense.transforms import (
    Compose,
    JointTransform,
    Normalize,
    PhotometricJitter,
    RandomHorizontalFlip,
    RandomScaleCrop,
    Resize,
)

__all__ = [
    "Compose",
    "JointTransform",
    "NYUv2",
    "NYUv2DataModule",
    "Normalize",
    "PhotometricJitter",
    "RandomHorizontalFlip",
    "RandomScaleCrop",
    "Resize",
    "close_gaps",
    "label_boundaries",
]
