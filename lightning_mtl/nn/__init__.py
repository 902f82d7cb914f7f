"""Encoders and heads: everything that has parameters inside ``forward``.

timm and segmentation_models_pytorch are imported by the constructors that need them, not here.
"""

from lightning_mtl.nn.architectures import MTAN, NDDRCNN, CrossStitch, LearningToBranch, MTINet, PADNet, TaskTree
from lightning_mtl.nn.diffusion import DiffusersDenoiser, MLPDenoiser, NoiseSchedule
from lightning_mtl.nn.dynamic_pruning import (
    DynamicConv,
    DynamicEncoder,
    MacsCount,
    MaskPredictor,
    convert_to_dynamic,
    count_macs,
    dynamic_layers,
    estimate_macs,
    mask_cross_entropy,
    mask_loss,
    topk_mass_mask,
    uniform_mask,
)
from lightning_mtl.nn.encoders import (
    FeatEnHancer,
    LeNetEncoder,
    MLPEncoder,
    QuadraticNetwork,
    RotatedFeatures,
    SmpEncoder,
    TimmEncoder,
)
from lightning_mtl.nn.experts import CGC, PLE, ConvExpert, DSelectK, MLPExpert, MMoE, TaskExpert
from lightning_mtl.nn.feature_enhancement import FeatureEnhancement, ScaleAwareAggregation, scale_aware_attention
from lightning_mtl.nn.heads import (
    BoxPredictions,
    ConvHead,
    DeepLabV3PlusHead,
    FasterRCNNHead,
    FCOSHead,
    FeaturePyramid,
    FPNHead,
    LinearHead,
    MLPHead,
    PooledHead,
    ProposalPredictions,
    RetinaNetHead,
    UNetHead,
)
from lightning_mtl.nn.output_scale import CenteredOutputScale, scaled_lr
from lightning_mtl.nn.qk_norm import QKNormLinear, QKNormMultiheadAttention, add_qk_norm
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.task_aware import SupervisedFeatures, TaskAwareEncoder
from lightning_mtl.nn.tiny_decoder import TinyDecoder

__all__ = [
    "CGC",
    "MTAN",
    "NDDRCNN",
    "PLE",
    "BoxPredictions",
    "CenteredOutputScale",
    "ConvExpert",
    "ConvHead",
    "CrossStitch",
    "DSelectK",
    "DeepLabV3PlusHead",
    "DiffusersDenoiser",
    "DynamicConv",
    "DynamicEncoder",
    "FCOSHead",
    "FPNHead",
    "FasterRCNNHead",
    "FeatEnHancer",
    "FeatureEnhancement",
    "FeaturePyramid",
    "FeatureSpec",
    "LeNetEncoder",
    "LearningToBranch",
    "LinearHead",
    "MLPDenoiser",
    "MLPEncoder",
    "MLPExpert",
    "MLPHead",
    "MMoE",
    "MTINet",
    "MacsCount",
    "MaskPredictor",
    "NoiseSchedule",
    "PADNet",
    "PooledHead",
    "ProposalPredictions",
    "QKNormLinear",
    "QKNormMultiheadAttention",
    "QuadraticNetwork",
    "RetinaNetHead",
    "RotatedFeatures",
    "ScaleAwareAggregation",
    "SmpEncoder",
    "SupervisedFeatures",
    "TaskAwareEncoder",
    "TaskExpert",
    "TaskTree",
    "TimmEncoder",
    "TinyDecoder",
    "UNetHead",
    "add_qk_norm",
    "convert_to_dynamic",
    "count_macs",
    "dynamic_layers",
    "estimate_macs",
    "mask_cross_entropy",
    "mask_loss",
    "scale_aware_attention",
    "scaled_lr",
    "topk_mass_mask",
    "uniform_mask",
]
