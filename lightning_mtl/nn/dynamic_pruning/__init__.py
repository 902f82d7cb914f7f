"""Convolutions that skip output channels image by image (Elkerdawy et al., CVPR 2022)."""

from lightning_mtl.nn.dynamic_pruning.conversion import convert_to_dynamic
from lightning_mtl.nn.dynamic_pruning.dynamic_encoder import DynamicEncoder
from lightning_mtl.nn.dynamic_pruning.layers import DynamicConv, MaskPredictor, dynamic_layers, mask_loss
from lightning_mtl.nn.dynamic_pruning.macs import MacsCount, count_macs, estimate_macs
from lightning_mtl.nn.dynamic_pruning.masks import mask_cross_entropy, topk_mass_mask, uniform_mask

__all__ = [
    "DynamicConv",
    "DynamicEncoder",
    "MacsCount",
    "MaskPredictor",
    "convert_to_dynamic",
    "count_macs",
    "dynamic_layers",
    "estimate_macs",
    "mask_cross_entropy",
    "mask_loss",
    "topk_mass_mask",
    "uniform_mask",
]
