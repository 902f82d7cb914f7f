"""Data sets of images with per-pixel targets, and their joint transforms."""

from lightning_mtl.data.dense.acdc import ACDCDataModule
from lightning_mtl.data.dense.base import DenseDataset, DenseOptions, DenseTarget
from lightning_mtl.data.dense.camvid import CamVidDataModule
from lightning_mtl.data.dense.cityscapes import CityscapesDataModule
from lightning_mtl.data.dense.cityscapes_mtan import CityscapesMTANDataModule
from lightning_mtl.data.dense.distance import signed_distance
from lightning_mtl.data.dense.edges import close_gaps, label_boundaries
from lightning_mtl.data.dense.folder import DenseFolderDataModule, FolderTarget
from lightning_mtl.data.dense.framing import Letterbox, RandomCrop, RandomRescale
from lightning_mtl.data.dense.nyuv2 import NYUv2DataModule
from lightning_mtl.data.dense.pascal_context import PascalContextDataModule
from lightning_mtl.data.dense.taskonomy import TaskonomyDataModule
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
    "ACDCDataModule",
    "CamVidDataModule",
    "CityscapesDataModule",
    "CityscapesMTANDataModule",
    "Compose",
    "DenseDataset",
    "DenseFolderDataModule",
    "DenseOptions",
    "DenseTarget",
    "FolderTarget",
    "JointTransform",
    "Letterbox",
    "NYUv2DataModule",
    "Normalize",
    "PascalContextDataModule",
    "PhotometricJitter",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomRescale",
    "RandomScaleCrop",
    "Resize",
    "TaskonomyDataModule",
    "close_gaps",
    "label_boundaries",
    "signed_distance",
]
