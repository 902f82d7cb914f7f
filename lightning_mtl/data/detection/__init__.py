"""Data sets of images with boxes, and the joint transforms for them."""

from lightning_mtl.data.detection.base import DetectionDataModule, DetectionOptions
from lightning_mtl.data.detection.coco import CocoDetectionDataModule
from lightning_mtl.data.detection.dark_face import DarkFaceDataModule
from lightning_mtl.data.detection.dataset import DetectionDataset
from lightning_mtl.data.detection.exdark import EXDARK_CLASSES, ExDarkDataModule
from lightning_mtl.data.detection.transforms import FitInside, RandomBoxCrop, TorchvisionTransform

__all__ = [
    "EXDARK_CLASSES",
    "CocoDetectionDataModule",
    "DarkFaceDataModule",
    "DetectionDataModule",
    "DetectionDataset",
    "DetectionOptions",
    "ExDarkDataModule",
    "FitInside",
    "RandomBoxCrop",
    "TorchvisionTransform",
]
