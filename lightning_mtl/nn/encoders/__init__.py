"""Encoders: ``forward(inputs) -> features``, described by their ``feature_spec``."""

from lightning_mtl.nn.encoders.feat_enhancer import FeatEnHancer
from lightning_mtl.nn.encoders.lenet import LeNetEncoder
from lightning_mtl.nn.encoders.lora import LoRA
from lightning_mtl.nn.encoders.mlp import MLPEncoder
from lightning_mtl.nn.encoders.quadratic import QuadraticNetwork
from lightning_mtl.nn.encoders.rotated_features import RotatedFeatures
from lightning_mtl.nn.encoders.smp_encoder import SmpEncoder
from lightning_mtl.nn.encoders.timm_encoder import TimmEncoder

__all__ = [
    "FeatEnHancer",
    "LeNetEncoder",
    "LoRA",
    "MLPEncoder",
    "QuadraticNetwork",
    "RotatedFeatures",
    "SmpEncoder",
    "TimmEncoder",
]
