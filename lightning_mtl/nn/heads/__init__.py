"""Heads: ``(feature_spec, out_channels, ...) -> nn.Module``, from features to the raw prediction of one task."""

from lightning_mtl.nn.heads.conv import ConvHead
from lightning_mtl.nn.heads.deeplabv3plus import DeepLabV3PlusHead
from lightning_mtl.nn.heads.detection import (
    BoxPredictions,
    FasterRCNNHead,
    FCOSHead,
    FeaturePyramid,
    ProposalPredictions,
    RetinaNetHead,
)
from lightning_mtl.nn.heads.fpn import FPNHead
from lightning_mtl.nn.heads.linear import LinearHead, MLPHead
from lightning_mtl.nn.heads.pooled import PooledHead
from lightning_mtl.nn.heads.similarity import SimilarityHead
from lightning_mtl.nn.heads.tokens import FirstTokenHead, IdentityHead, TokenHead
from lightning_mtl.nn.heads.unet import UNetHead

__all__ = [
    "BoxPredictions",
    "ConvHead",
    "DeepLabV3PlusHead",
    "FCOSHead",
    "FPNHead",
    "FasterRCNNHead",
    "FeaturePyramid",
    "FirstTokenHead",
    "IdentityHead",
    "LinearHead",
    "MLPHead",
    "PooledHead",
    "ProposalPredictions",
    "RetinaNetHead",
    "SimilarityHead",
    "TokenHead",
    "UNetHead",
]
