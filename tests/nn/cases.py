"""Every encoder and head with small arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from lightning_mtl.nn import (
    CGC,
    MTAN,
    NDDRCNN,
    PLE,
    ConvExpert,
    ConvHead,
    CrossStitch,
    DeepLabV3PlusHead,
    DSelectK,
    FeatEnHancer,
    FeatureSpec,
    FirstTokenHead,
    FPNHead,
    IdentityHead,
    InvPT,
    LearningToBranch,
    LeNetEncoder,
    LinearHead,
    MLPEncoder,
    MLPExpert,
    MLPHead,
    MMoE,
    MTINet,
    PADNet,
    PooledHead,
    QuadraticNetwork,
    SimilarityHead,
    SmpEncoder,
    TaskAwareEncoder,
    TaskExpert,
    TaskTree,
    TimmEncoder,
    TokenHead,
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
    EncoderCase("lenet-padded", lambda: LeNetEncoder(1, 16, (4, 6), 3, 8, padding=1), (1, 16, 16)),
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

# TaskConditionedEncoder reads a mapping and is tested in test_task_conditioned.py.
# RotatedFeatures gives features by task, trained by a balancer; tested in tests/balancers/test_rotograd.py.


class ThreeStages(nn.Module):
    """A small convolutional encoder that can be taken apart; strides 2, 4 and 4, the last two with blocks."""

    def __init__(self, channels: tuple[int, int, int] = (4, 6, 6)) -> None:
        super().__init__()
        self.feature_spec = FeatureSpec("maps", channels, (2, 4, 4))
        a, b, c = channels
        self.parts = nn.ModuleList(
            [
                nn.Sequential(_block(3, a, 2), nn.Identity()),
                nn.Sequential(nn.Identity(), nn.Sequential(_block(a, b, 2), _block(b, b, 1))),
                nn.Sequential(_block(b, c, 1)),
            ]
        )

    def stages(self) -> list[nn.Module]:
        return list(self.parts)

    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        maps = []
        for part in self.parts:
            inputs = part(inputs)
            maps.append(inputs)
        return maps


def _block(before: int, after: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(before, after, 3, stride, 1), nn.BatchNorm2d(after), nn.LeakyReLU())


class SameSize(nn.Module):
    """Two maps of one size."""

    feature_spec = FeatureSpec("maps", (4, 4), (4, 4))

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 4, 4)
        self.second = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, inputs: torch.Tensor) -> list[torch.Tensor]:
        first = self.first(inputs)
        return [first, self.second(first)]


NAMES = ("a", "b", "c")


@dataclass(frozen=True)
class TaskAwareCase:
    """An encoder with features for every task, and the shape of one input."""

    id: str
    build: Callable[[], TaskAwareEncoder]
    shape: tuple[int, ...] = (3, 24, 16)


TASK_AWARE = [
    TaskAwareCase("cross_stitch", lambda: CrossStitch(ThreeStages(), NAMES)),
    TaskAwareCase("cross_stitch-map", lambda: CrossStitch(ThreeStages(), NAMES, granularity="map")),
    TaskAwareCase("nddr_cnn", lambda: NDDRCNN(ThreeStages(), NAMES)),
    TaskAwareCase("mtan", lambda: MTAN(ThreeStages(), NAMES, reduction=2)),
    TaskAwareCase("task_tree", lambda: TaskTree(ThreeStages(), NAMES, [[0, 0, 0], [0, 0, 1], [0, 1, 2]])),
    TaskAwareCase("learning_to_branch", lambda: LearningToBranch(ThreeStages(), NAMES)),
    TaskAwareCase("mmoe", lambda: MMoE(MLPEncoder(12, [8]), NAMES, num_experts=3), (12,)),
    TaskAwareCase("mmoe-maps", lambda: MMoE(ThreeStages(), NAMES, 2, lambda s: ConvExpert(s, channels=5))),
    TaskAwareCase("cgc", lambda: CGC(MLPEncoder(12, [8]), NAMES, 2, 2), (12,)),
    TaskAwareCase("ple", lambda: PLE(MLPEncoder(12, [8]), NAMES, 3, 1, 1, lambda s: MLPExpert(s, (7,))), (12,)),
    TaskAwareCase("ple-maps", lambda: PLE(ThreeStages(), NAMES, num_layers=2)),
    TaskAwareCase("dselect_k", lambda: DSelectK(MLPEncoder(12, [8]), NAMES, num_experts=5, k=2), (12,)),
    TaskAwareCase("dselect_k-static", lambda: DSelectK(MLPEncoder(12, [8]), NAMES, static=True), (12,)),
    TaskAwareCase("task_expert", lambda: TaskExpert(SameSize(), NAMES, memory_channels=6, num_experts=3)),
    TaskAwareCase(
        "task_expert-pixel",
        lambda: TaskExpert(
            ThreeStages(), NAMES, 6, 2, expert_rank=3, gate="pixel", resize="bilinear", load_balance=0.1, noise=0.1
        ),
    ),
    TaskAwareCase("pad_net", lambda: PADNet(ThreeStages(), dict.fromkeys(NAMES, 1), channels=5)),
    TaskAwareCase("mti_net", lambda: MTINet(ThreeStages(), dict.fromkeys(NAMES, 1), channels=5, reduction=2)),
    TaskAwareCase("inv_pt", lambda: InvPT(ThreeStages(), dict.fromkeys(NAMES, 1), channels=8, num_stages=2)),
    TaskAwareCase("inv_pt-flat", lambda: InvPT(SameSize(), dict.fromkeys(NAMES, 1), 8, preliminary_channels=5)),
]

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
    per_token: bool = False
    smallest_training_batch: int = 1


HEADS = [
    HeadCase("linear", VECTOR, lambda s, c: LinearHead(s, c, dropout=0.1)),
    HeadCase("mlp", VECTOR, lambda s, c: MLPHead(s, c, hidden=(16,))),
    HeadCase("similarity", VECTOR, lambda s, c: SimilarityHead(s, c, dim=4)),
    HeadCase("pooled-maps", MAPS, lambda s, c: PooledHead(s, c)),
    HeadCase("pooled-tokens", TOKENS, lambda s, c: PooledHead(s, c, hidden=(16,))),
    HeadCase("pooled-vector", VECTOR, lambda s, c: PooledHead(s, c)),
    HeadCase("first-token", TOKENS, lambda s, c: FirstTokenHead(s, c, hidden=(16,), dropout=0.1)),
    HeadCase("token", TOKENS, lambda s, c: TokenHead(s, c, dropout=0.1), per_token=True),
    HeadCase("identity-vector", FeatureSpec("vector", (5,)), lambda s, c: IdentityHead(s, c)),
    HeadCase("identity-tokens", FeatureSpec("tokens", (5,)), lambda s, c: IdentityHead(s, c), per_token=True),
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


# SupervisedFeatures is what PADNet, MTINet and InvPT give, tested in test_intermediate_predictions.py.

# FCOSHead, RetinaNetHead, FeaturePyramid and BoxPredictions: several tensors, tested in test_detection_heads.py;
# FasterRCNNHead and ProposalPredictions with their task in tests/tasks/test_faster_rcnn.py.

# TinyDecoder reads tokens and is tested in test_tiny_decoder.py; QKNormMultiheadAttention and QKNormLinear in
# test_qk_norm.py.
# NoiseSchedule, MLPDenoiser and DiffusersDenoiser are parts of diffusion models, tested in test_diffusion.py.
# CenteredOutputScale keeps a frozen copy of its network and is tested in test_output_scale.py.
# FeatureEnhancement and ScaleAwareAggregation are the parts of FeatEnHancer, tested in test_feature_enhancement.py.
# DynamicEncoder, DynamicConv and MaskPredictor train by a loss of their own, and MacsCount is what they cost; tested in
# test_dynamic_pruning.py.
# SlimmableLinear, SlimmableConv2d, SlimmableBatchNorm2d (of base SlimmableLayer), and the networks SlimmableMLP,
# SlimmableResNet, SlimmableMLPHead and SlimmableConvHead (of SlimmableNetwork, SlimmableEncoder and SlimmableHead):
# test_slimmable.py.
# LoRA is the settings of adapters; TextTransformer and TransformersEncoder read text: test_text_encoders.py.
# CausalLanguageModel and TransformersCausalLM read text too: test_language_models.py.
# TransformersSeq2Seq writes text: test_seq2seq.py.
