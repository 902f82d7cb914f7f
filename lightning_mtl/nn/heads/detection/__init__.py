"""Detection heads: ``(feature_spec, num_classes, ...) -> nn.Module``, from features to raw box predictions."""

from lightning_mtl.nn.heads.detection.faster_rcnn import FasterRCNNHead
from lightning_mtl.nn.heads.detection.fcos import FCOSHead
from lightning_mtl.nn.heads.detection.predictions import BoxPredictions, ProposalPredictions
from lightning_mtl.nn.heads.detection.pyramid import FeaturePyramid
from lightning_mtl.nn.heads.detection.retinanet import RetinaNetHead

__all__ = ["BoxPredictions", "FCOSHead", "FasterRCNNHead", "FeaturePyramid", "ProposalPredictions", "RetinaNetHead"]
