"""Every encoder and head with small arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lightning_mtl.nn import (
    ConvHead,
    DeepLabV3PlusHead,
    FeatEnHancer,
    FeatureSpec,
    FPNHead,
    LeNetEncoder,
    LinearHead,
    MLPEncoder,
    MLPHead,
    PooledHead,
    QuadraticNetwork,
    SmpEncoder,
    TimmEncoder,
    UNetHead,
)


@dataclass(frozen=True)
class EncoderCase:
    """An encoder and the shape of one input."""

    id: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...] = (3, 64, 64)


ENCODERS = [
    EncoderCase("lenet", lambda: LeNetEncoder(image_size=16, channels=(4, 6), kernel_size=3, width=8), (1, 16, 16)),
    EncoderCase("mlp", lambda: MLPEncoder(12, [16, 8]), (12,)),
    EncoderCase("quadratic", lambda: QuadraticNetwork(12, 16, 3, train_readout=True), (12,)),
    EncoderCase("resnet18-pooled", lambda: TimmEncoder("resnet18")),
    EncoderCase("resnet18-maps", lambda: TimmEncoder("resnet18", "maps")),
    EncoderCase("resnet18-dilated", lambda: TimmEncoder("resnet18", "maps", output_stride=16)),
    EncoderCase("mobilenetv3-pooled", lambda: TimmEncoder("mobilenetv3_small_050")),
    EncoderCase("mobilenetv3-maps", lambda: TimmEncoder("mobilenetv3_small_050", "maps", in_chans=1), (1, 64, 64)),
    EncoderCase("vit_tiny-pooled", lambda: TimmEncoder("vit_tiny_patch16_224", img_size=64)),
    EncoderCase("vit_tiny-maps", lambda: TimmEncoder("vit_tiny_patch16_224", "maps", img_size=(64, 64))),
    EncoderCase("convnext_atto-pooled", lambda: TimmEncoder("convnext_atto")),
    EncoderCase("convnext_atto-maps", lambda: TimmEncoder("convnext_atto", "maps")),
    EncoderCase("swin-maps", lambda: TimmEncoder("swin_tiny_patch4_window7_224", "maps", img_size=64)),
    EncoderCase("feat-enhancer", lambda: FeatEnHancer(TimmEncoder("resnet18", "maps"), init_std=0.1)),
    EncoderCase("smp-resnet18", lambda: SmpEncoder("resnet18")),
    EncoderCase("smp-mit_b0", lambda: SmpEncoder("mit_b0")),
]

# RotatedFeatures gives features by task, trained by a balancer; tested in tests/balancers/test_rotograd.py.

VECTOR = FeatureSpec("vector", (8,))
TOKENS = FeatureSpec("tokens", (8,))
MAPS = FeatureSpec("maps", (4, 6, 8, 10, 12), (2, 4, 8, 16, 32))
DILATED = FeatureSpec("maps", (4, 6, 8, 10, 12), (2, 4, 8, 16, 16))
FLAT = FeatureSpec("maps", (8, 8, 8), (16, 16, 16))


@dataclass(frozen=True)
class HeadCase:
    """A head, the features that it reads, and its stride where it is dense."""

    id: str
    spec: FeatureSpec
    build: Callable[[FeatureSpec, int], nn.Module]
    stride: int | None = None
    smallest_training_batch: int = 1


HEADS = [
    HeadCase("linear", VECTOR, lambda s, c: LinearHead(s, c, dropout=0.1)),
    HeadCase("mlp", VECTOR, lambda s, c: MLPHead(s, c, hidden=(16,))),
    HeadCase("pooled-maps", MAPS, lambda s, c: PooledHead(s, c)),
    HeadCase("pooled-tokens", TOKENS, lambda s, c: PooledHead(s, c, hidden=(16,))),
    HeadCase("pooled-vector", VECTOR, lambda s, c: PooledHead(s, c)),
    HeadCase("conv", MAPS, lambda s, c: ConvHead(s, c), stride=32),
    HeadCase("conv-flat", FLAT, lambda s, c: ConvHead(s, c, kernel_size=3, hidden_channels=8), stride=16),
    HeadCase("conv-upsampled", FLAT, lambda s, c: ConvHead(s, c, upsample=True), stride=1),
    HeadCase("fpn", MAPS, lambda s, c: FPNHead(s, c, pyramid_channels=16, segmentation_channels=32), stride=4),
    HeadCase("fpn-upsampled", MAPS, lambda s, c: FPNHead(s, c, 16, 32, dropout=0.1, upsample=True), stride=1),
    HeadCase("unet", MAPS, lambda s, c: UNetHead(s, c), stride=2),
    HeadCase("unet-flat", FLAT, lambda s, c: UNetHead(s, c, decoder_channels=[16, 8]), stride=16),
    HeadCase(
        "deeplabv3plus",
        DILATED,
        lambda s, c: DeepLabV3PlusHead(s, c, decoder_channels=16),
        stride=4,
        smallest_training_batch=2,
    ),
]


def features(spec: FeatureSpec, batch: int, size: int = 64) -> torch.Tensor | list[torch.Tensor]:
    """Random features of this shape, as an encoder of images of this size gives them."""
    generator = torch.Generator().manual_seed(0)
    if spec.kind == "vector":
        return torch.randn(batch, spec.channels[0], generator=generator)
    if spec.kind == "tokens":
        return torch.randn(batch, 5, spec.channels[0], generator=generator)
    return [
        torch.randn(batch, c, size // s, size // s, generator=generator)
        for c, s in zip(spec.channels, spec.strides, strict=True)
    ]


# TinyDecoder reads tokens and is tested in test_tiny_decoder.py; QKNormMultiheadAttention and QKNormLinear in
# test_qk_norm.py.
# NoiseSchedule, MLPDenoiser and DiffusersDenoiser are parts of diffusion models, tested in test_diffusion.py.
# CenteredOutputScale keeps a frozen copy of its network and is tested in test_output_scale.py.
# FeatureEnhancement and ScaleAwareAggregation are the parts of FeatEnHancer, tested in test_feature_enhancement.py.
