"""Detection: boxes and classes of objects."""

from lightning_mtl.tasks.detection.base import DetectionTask
from lightning_mtl.tasks.detection.faster_rcnn import FasterRCNN
from lightning_mtl.tasks.detection.fcos import FCOS
from lightning_mtl.tasks.detection.retinanet import RetinaNet

__all__ = ["FCOS", "DetectionTask", "FasterRCNN", "RetinaNet"]
