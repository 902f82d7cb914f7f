"""Experts, gates, and the mixture that they make."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.task_aware import Features

ExpertCallable = Callable[[FeatureSpec], nn.Module]
"""Builds an expert from the features that it reads; the expert has a ``feature_spec``."""


class MLPExpert(nn.Module, Recorded):
    """Read a vector (or each token) with linear layers, each followed by a ReLU.

    Args:
        spec: The features to read, of kind ``"vector"`` or ``"tokens"``.
        widths: Widths of the layers.

    Shape:
        - features: ``(B, D)`` or ``(B, L, D)``; returns the same with ``widths[-1]`` channels.

    Raises:
        ValueError: If the features are maps, or a width is not positive.

    Example:
        >>> MLPExpert(FeatureSpec("vector", (8,)), widths=[16, 4]).feature_spec
        FeatureSpec(kind='vector', channels=(4,), strides=())
    """

    def __init__(self, spec: FeatureSpec, widths: Sequence[int] = (64,)) -> None:
        super().__init__()
        if spec.kind == "maps":
            raise ValueError("MLPExpert: features must be a vector or tokens, got maps; take ConvExpert.")
        if not widths or min(widths) < 1:
            raise ValueError(f"MLPExpert: widths must be one or more positive numbers, got {list(widths)}.")
        layers: list[nn.Module] = []
        before = spec.channels[0]
        for width in widths:
            layers += [nn.Linear(before, width), nn.ReLU()]
            before = width
        self.layers = nn.Sequential(*layers)
        self.feature_spec = FeatureSpec(spec.kind, (before,))

    def forward(self, features: Tensor) -> Tensor:
        """Return the expert's reading."""
        reading: Tensor = self.layers(features)
        return reading


class ConvExpert(nn.Module, Recorded):
    """Read every feature map with a convolution, batch normalization and a ReLU.

    Args:
        spec: The features to read, of kind ``"maps"``.
        channels: Channels of the readings, one number for all maps; None keeps those of the map.
        kernel_size: Size of the convolution, odd.

    Shape:
        - features: list of ``(B, D_i, H_i, W_i)``; returns the same with ``channels`` channels.

    Raises:
        ValueError: If the features are no maps, or a number does not fit.

    Example:
        >>> ConvExpert(FeatureSpec("maps", (8, 16), (4, 8)), channels=4).feature_spec
        FeatureSpec(kind='maps', channels=(4, 4), strides=(4, 8))
    """

    def __init__(self, spec: FeatureSpec, channels: int | None = None, kernel_size: int = 3) -> None:
        super().__init__()
        if spec.kind != "maps":
            raise ValueError(f"ConvExpert: features must be maps, got {spec.kind!r}; take MLPExpert.")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"ConvExpert: kernel_size must be odd and positive, got {kernel_size}.")
        if channels is not None and channels < 1:
            raise ValueError(f"ConvExpert: channels must be positive, got {channels}.")
        widths = tuple(channels or width for width in spec.channels)
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, width, kernel_size, padding=kernel_size // 2, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for before, width in zip(spec.channels, widths, strict=True)
        )
        self.feature_spec = FeatureSpec("maps", widths, spec.strides)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the expert's readings."""
        return [layer(feature) for layer, feature in zip(self.layers, features, strict=True)]


def default_expert(spec: FeatureSpec) -> nn.Module:
    """Return the expert that fits these features: one layer as wide as its input."""
    return ConvExpert(spec) if spec.kind == "maps" else MLPExpert(spec, widths=(spec.channels[0],))


def build_experts(
    name: str, argument: str, expert: ExpertCallable | None, spec: FeatureSpec, count: int
) -> nn.ModuleList:
    """Build some experts for these features.

    Args:
        name: Name of the class under construction, for messages.
        argument: Name of its argument that holds the number.
        expert: Builds one; None takes the default.
        spec: The features that they read.
        count: How many.

    Raises:
        ValueError: If there is to be none, or the experts declare no features.
    """
    if count < 1:
        raise ValueError(f"{name}: {argument} must be at least 1, got {count}.")
    experts = nn.ModuleList((expert or default_expert)(spec) for _ in range(count))
    read = getattr(experts[0], "feature_spec", None)
    if not isinstance(read, FeatureSpec) or read.kind != spec.kind:
        raise ValueError(
            f"{name}: experts must have a feature_spec of kind {spec.kind!r} like the encoder, got {read} from "
            f"{type(experts[0]).__name__}."
        )
    return experts


def pooled(features: Features, kind: str) -> Tensor:
    """Return one vector per sample for a gate: the mean of the coarsest map or of the tokens, or the vector itself.

    Args:
        features: Features of a batch.
        kind: Their kind.
    """
    if kind == "maps":
        return features[-1].mean(dim=(2, 3))
    vector = cast(Tensor, features)
    return vector.mean(dim=1) if kind == "tokens" else vector


def at_least_float32(values: Tensor) -> Tensor:
    """Return half precision values as float32, others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Gate(nn.Module):
    """Give every expert a weight for every sample: a linear layer and a softmax, in float32 or wider.

    Args:
        in_features: Width of the pooled features.
        num_experts: Number of experts.
        dropout: Probability of leaving an expert out of a training step; the weights of the others are scaled up to
            sum to one. At least one expert stays.

    Shape:
        - pooled: ``(B, D)``; returns ``(B, E)``, rows that sum to one.
    """

    def __init__(self, in_features: int, num_experts: int, dropout: float = 0.0) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"Gate: dropout must be in [0, 1), got {dropout}.")
        self.linear = nn.Linear(in_features, num_experts)
        self.dropout = dropout

    def forward(self, pooled_features: Tensor) -> Tensor:
        """Return the weights."""
        logits: Tensor = at_least_float32(self.linear(pooled_features))
        if self.training and self.dropout > 0:
            kept = torch.rand_like(logits) >= self.dropout
            kept = kept | ~kept.any(dim=1, keepdim=True)  # a sample that would lose all experts keeps them all
            logits = logits.masked_fill(~kept, -torch.inf)
        return logits.softmax(dim=1)


def mix(weights: Tensor, readings: Sequence[Features]) -> Features:
    r"""Return the weighted sum of what the experts read.

    Args:
        weights: One weight per sample and expert.
        readings: What each expert read: tensors, or lists of maps.

    Shape:
        - weights: ``(B, E)``; readings: E tensors ``(B, ...)``, or E lists of these.
    """
    if not isinstance(readings[0], Tensor):
        by_map = zip(*cast(Sequence[Sequence[Tensor]], readings), strict=True)
        return [cast(Tensor, mix(weights, list(maps))) for maps in by_map]
    stacked = torch.stack(cast(list[Tensor], list(readings)), dim=1)
    shape = (*weights.shape, *[1] * (stacked.ndim - 2))
    return (weights.to(stacked.dtype).view(shape) * stacked).sum(dim=1)
