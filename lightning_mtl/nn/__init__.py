"""Encoders and heads: everything that has parameters inside ``forward``.

timm and segmentation_models_pytorch are imported by the constructors that need them, not here.
"""

from lightning_mtl.nn.encoders import (
    LeNetEncoder,
    MLPEncoder,
    QuadraticNetwork,
    RotatedFeatures,
    SmpEncoder,
    TimmEncoder,
)
from lightning_mtl.nn.heads import (
    ConvHead,
    DeepLabV3PlusHead,
    FPNHead,
    LinearHead,
    MLPHead,
    PooledHead,
    UNetHead,
)
from lightning_mtl.nn.output_scale import CenteredOutputScale, scaled_lr
from lightning_mtl.nn.qk_norm import QKNormLinear, QKNormMultiheadAttention, add_qk_norm
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.tiny_decoder import TinyDecoder

__all__ = [
    "CenteredOutputScale",
    "ConvHead",
    "DeepLabV3PlusHead",
    "FPNHead",
    "FeatureSpec",
    "LeNetEncoder",
    "LinearHead",
    "MLPEncoder",
    "MLPHead",
    "PooledHead",
    "QKNormLinear",
    "QKNormMultiheadAttention",
    "QuadraticNetwork",
    "RotatedFeatures",
    "SmpEncoder",
    "TimmEncoder",
    "TinyDecoder",
    "UNetHead",
    "add_qk_norm",
    "scaled_lr",
]
