"""Encoders and heads that can be narrowed while they are in use."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_mtl.nn.heads.base import check_arguments
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.slimmable.layers import (
    SlimmableBatchNorm2d,
    SlimmableConv2d,
    SlimmableLayer,
    SlimmableLinear,
    active_channels,
    exported,
)
from lightning_mtl.nn.spec import FeatureSpec

WIDTHS = (0.25, 0.5, 0.75, 1.0)


class SlimmableNetwork(nn.Module, Recorded, ABC):
    """Base of the encoders and heads whose layers can be narrowed.

    Args:
        widths: The fractions of the channels that may be active; 1 is among them.
        divisor: What numbers of active channels are multiples of, at widths below 1.

    Raises:
        ValueError: If a width is not in (0, 1], comes twice, or 1 is missing.
    """

    body: nn.Module
    """The layers; what ``export`` copies."""

    def __init__(self, widths: Sequence[float], divisor: int) -> None:
        super().__init__()
        self.widths = tuple(sorted(float(width) for width in widths))
        if not self.widths or self.widths[0] <= 0 or self.widths[-1] != 1 or len(set(self.widths)) < len(self.widths):
            raise ValueError(
                f"{type(self).__name__}: widths must be different numbers in (0, 1] with 1 among them, got "
                f"{list(widths)}."
            )
        if divisor < 1:
            raise ValueError(f"{type(self).__name__}: divisor must be positive, got {divisor}.")
        self.divisor = divisor

    def active(self, channels: int, width: float) -> int:
        """Return how many of a layer's channels are active at a width.

        Raises:
            ValueError: If the width is not one of ``widths``.
        """
        if width not in self.widths:
            raise ValueError(f"{type(self).__name__}: width must be one of {list(self.widths)}, got {width}.")
        return active_channels(channels, width, self.divisor)

    def export(self) -> nn.Module:
        """Return a plain network with a copy of the active part; it gives what this one gives now."""
        return exported(self.body)


class SlimmableEncoder(SlimmableNetwork, ABC):
    """Base of the encoders that can be narrowed stage by stage.

    Subclasses set ``channels``, the full width of every stage, ``feature_spec`` for all of them, and implement
    ``slim_stages``.

    Args:
        channels: Full number of channels of every stage.
        widths: The fractions of the channels that may be active; 1 is among them.
        divisor: What numbers of active channels are multiples of, at widths below 1.
    """

    feature_spec: FeatureSpec

    def __init__(self, channels: Sequence[int], widths: Sequence[float], divisor: int) -> None:
        super().__init__(widths, divisor)
        if not channels or min(channels) < 1:
            raise ValueError(f"{type(self).__name__}: every stage must have a positive width, got {list(channels)}.")
        self.channels = tuple(channels)
        self.stage_widths = (1.0,) * len(self.channels)

    @abstractmethod
    def slim_stages(self, active: Sequence[int]) -> None:
        """Give every stage its number of active channels."""

    def set_widths(self, widths: float | Sequence[float]) -> None:
        """Choose the width of all stages, or of each.

        Raises:
            ValueError: If a width is not one of ``widths``, or there is not one for each stage.
        """
        wanted = (float(widths),) * len(self.channels) if isinstance(widths, int | float) else tuple(widths)
        if len(wanted) != len(self.channels):
            raise ValueError(
                f"{type(self).__name__}: widths must be one number or {len(self.channels)}, one a stage, got "
                f"{list(wanted)}."
            )
        self.slim_stages([self.active(*pair) for pair in zip(self.channels, wanted, strict=True)])
        self.stage_widths = wanted

    def active_features(self) -> tuple[int, ...]:
        """Return the number of active channels of everything in ``feature_spec``."""
        active = [self.active(*pair) for pair in zip(self.channels, self.stage_widths, strict=True)]
        return tuple(active[-len(self.feature_spec.channels) :])


class SlimmableHead(SlimmableNetwork, ABC):
    """Base of the heads whose hidden layers can be narrowed; their output cannot.

    Args:
        widths: The fractions of the hidden channels that may be active; 1 is among them.
        divisor: What numbers of active channels are multiples of, at widths below 1.
    """

    def __init__(self, widths: Sequence[float], divisor: int) -> None:
        super().__init__(widths, divisor)
        self.width = 1.0
        self.hidden: tuple[int, ...] = ()
        self.layers: tuple[SlimmableLayer, ...] = ()

    def set_width(self, width: float, features: Sequence[int]) -> None:
        """Choose the width, and say how wide the features are.

        Args:
            width: One of ``widths``.
            features: Number of active channels of every feature map; one number for vectors and tokens.

        Raises:
            ValueError: If the width is not one of ``widths``.
        """
        active = [features[-1], *(self.active(channels, width) for channels in self.hidden)]
        self.width = width
        for layer, before, after in itertools.zip_longest(self.layers, active, active[1:]):
            layer.slim(before, layer.active_out if after is None else after)


class SlimmableMLP(SlimmableEncoder):
    """A multilayer perceptron of which any leading part of every layer can work alone.

    Args:
        in_features: Number of values of one sample. Samples of any shape with as many values are flattened.
        hidden: Full width of every layer, each followed by a ReLU; the last one is the width of the features.
        widths: The fractions of a layer that may be active; 1 is among them.
        divisor: What numbers of active channels are multiples of, at widths below 1.

    Shape:
        - inputs: ``(B, ...)`` with ``in_features`` values per sample; returns ``(B, active part of hidden[-1])``.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> encoder = SlimmableMLP(64, [32, 32])
        >>> encoder.set_widths(0.25)
        >>> encoder(torch.zeros(2, 64)).shape
        torch.Size([2, 8])

    References:
        Yu, Yang, Xu, Yang, Huang. *Slimmable Neural Networks*. ICLR 2019. https://arxiv.org/abs/1812.08928.
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int], widths: Sequence[float] = WIDTHS, divisor: int = 8
    ) -> None:
        super().__init__(hidden, widths, divisor)
        if in_features < 1:
            raise ValueError(f"SlimmableMLP: in_features must be positive, got {in_features}.")
        self.in_features = in_features
        self.body = nn.Sequential(nn.Flatten(), *_fully_connected([in_features, *hidden]), nn.ReLU())
        self.layers = tuple(layer for layer in self.body if isinstance(layer, SlimmableLayer))
        self.feature_spec = FeatureSpec("vector", (hidden[-1],))

    def slim_stages(self, active: Sequence[int]) -> None:
        """Give every layer its number of active outputs."""
        for layer, (before, after) in zip(self.layers, itertools.pairwise([self.in_features, *active]), strict=True):
            layer.slim(before, after)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the active features of a batch."""
        features: Tensor = self.body(inputs)
        return features


class SlimmableResNet(SlimmableEncoder):
    """A residual network for small images of which any leading part of every stage can work alone.

    Every stage halves the resolution in its first block. A block is two 3 x 3 convolutions beside a shortcut, which in
    the first block of a stage is a 1 x 1 convolution, so that both ends of the addition have the same width.

    Args:
        in_chans: Number of channels of the images.
        channels: Full number of channels of every stage.
        blocks: Number of residual blocks of every stage.
        widths: The fractions of a stage's channels that may be active; 1 is among them.
        divisor: What numbers of active channels are multiples of, at widths below 1.

    Shape:
        - inputs: ``(B, in_chans, H, W)``; returns the map of every stage, strides 2, 4, 8, ...

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> encoder = SlimmableResNet(3, [16, 32])
        >>> encoder.set_widths([0.5, 1.0])
        >>> [tuple(features.shape) for features in encoder(torch.zeros(2, 3, 16, 16))]
        [(2, 8, 8, 8), (2, 32, 4, 4)]

    References:
        Yu, Yang, Xu, Yang, Huang. *Slimmable Neural Networks*. ICLR 2019. https://arxiv.org/abs/1812.08928.
        He, Zhang, Ren, Sun. *Deep Residual Learning for Image Recognition*. CVPR 2016.
        https://arxiv.org/abs/1512.03385.
    """

    def __init__(
        self,
        in_chans: int = 3,
        channels: Sequence[int] = (16, 32, 64),
        blocks: int = 1,
        widths: Sequence[float] = WIDTHS,
        divisor: int = 8,
    ) -> None:
        super().__init__(channels, widths, divisor)
        if min(in_chans, blocks) < 1:
            raise ValueError(f"SlimmableResNet: in_chans and blocks must be positive, got {in_chans} and {blocks}.")
        self.in_chans = in_chans
        stages = []
        for before, after in itertools.pairwise([in_chans, *channels]):
            counts = [self.active(after, width) for width in self.widths]
            rest = [_Residual(after, after, 1, counts) for _ in range(blocks - 1)]
            stages.append(nn.Sequential(_Residual(before, after, 2, counts), *rest))
        self.body = _Stages(stages)
        self.feature_spec = FeatureSpec("maps", self.channels, tuple(2 ** (i + 1) for i in range(len(stages))))

    def slim_stages(self, active: Sequence[int]) -> None:
        """Give every stage its number of active channels."""
        before = self.in_chans
        for stage, after in zip(self.body.children(), active, strict=True):
            for block in stage.children():
                if isinstance(block, _Residual):
                    block.slim(before, after)
                before = after

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return the active maps of every stage."""
        maps: list[Tensor] = self.body(inputs)
        return maps


class _Residual(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self, before: int, after: int, stride: int, active: Sequence[int]) -> None:
        super().__init__()
        self.conv1 = SlimmableConv2d(before, after, 3, stride, 1, bias=False)
        self.norm1 = SlimmableBatchNorm2d(after, active)
        self.conv2 = SlimmableConv2d(after, after, 3, 1, 1, bias=False)
        self.norm2 = SlimmableBatchNorm2d(after, active)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(
                SlimmableConv2d(before, after, 1, stride, bias=False), SlimmableBatchNorm2d(after, active)
            )

    def slim(self, before: int, after: int) -> None:
        for layer in self.modules():
            if isinstance(layer, SlimmableLayer):
                reads_input = layer is self.conv1 or layer in list(self.shortcut.children())[:1]
                layer.slim(before if reads_input else after, after)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm1(self.conv1(inputs)).relu()
        return torch.relu(self.norm2(self.conv2(hidden)) + self.shortcut(inputs))


class _Stages(nn.Sequential):
    """Stages, the output of each of which is given."""

    def __init__(self, stages: Sequence[nn.Module]) -> None:
        super().__init__(*stages)

    def forward(self, inputs: Tensor) -> list[Tensor]:
        maps = []
        for stage in self:
            inputs = stage(inputs)
            maps.append(inputs)
        return maps


class SlimmableMLPHead(SlimmableHead):
    """Predict once per sample, with hidden layers of which any leading part can work alone.

    Feature maps are averaged over the coarsest map, tokens over the sequence; a vector is read as it is.

    Args:
        spec: The features to read, of any kind, at full width.
        out_channels: Number of outputs; always all of them.
        hidden: Full widths of the hidden layers, each followed by a ReLU; none makes the head linear.
        widths: The fractions of a hidden layer that may be active; 1 is among them.
        divisor: What numbers of active channels are multiples of, at widths below 1.

    Shape:
        - features: list of ``(B, D_i, H_i, W_i)``, ``(B, L, D)`` or ``(B, D)``; returns ``(B, out_channels)``.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import torch
        >>> head = SlimmableMLPHead(FeatureSpec("vector", (32,)), out_channels=3, hidden=[48])
        >>> head.set_width(0.25, features=[16])
        >>> head(torch.zeros(2, 16)).shape
        torch.Size([2, 3])

    References:
        Aich, Schulter, Roy-Chowdhury, Chandraker, Suh. *Efficient Controllable Multi-Task Architectures*. ICCV 2023.
        https://arxiv.org/abs/2308.11744.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        hidden: Sequence[int] = (64,),
        widths: Sequence[float] = WIDTHS,
        divisor: int = 8,
    ) -> None:
        super().__init__(widths, divisor)
        check_arguments(self, spec.kind, spec, out_channels)
        if min(hidden, default=1) < 1:
            raise ValueError(f"SlimmableMLPHead: every width in hidden must be positive, got {list(hidden)}.")
        self.hidden = tuple(hidden)
        layers = _fully_connected([spec.channels[-1], *hidden, out_channels])
        self.body = nn.Sequential(_Pool(spec.kind), *layers)
        self.layers = tuple(layer for layer in layers if isinstance(layer, SlimmableLayer))

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the logits of a batch."""
        logits: Tensor = self.body(features)
        return logits


class SlimmableConvHead(SlimmableHead):
    """Predict densely from the coarsest map with one hidden convolution of which any leading part can work alone.

    Args:
        spec: The features to read, of kind ``"maps"``, at full width.
        out_channels: Number of output maps; always all of them.
        hidden: Full width of the 3 x 3 convolution with a ReLU before the 1 x 1 output.
        widths: The fractions of the hidden maps that may be active; 1 is among them.
        divisor: What numbers of active channels are multiples of, at widths below 1.

    Shape:
        - features: list of ``(B, D_i, H / s_i, W / s_i)``; returns ``(B, out_channels, H / s, W / s)`` of the last.

    Raises:
        ValueError: If a number is out of range.

    Note:
        There is no normalisation: running statistics would have to be kept for every width of the encoder.

    Example:
        >>> import torch
        >>> head = SlimmableConvHead(FeatureSpec("maps", (16,), (4,)), out_channels=3, hidden=32)
        >>> head.set_width(0.5, features=[8])
        >>> head([torch.zeros(2, 8, 4, 4)]).shape
        torch.Size([2, 3, 4, 4])

    References:
        Aich, Schulter, Roy-Chowdhury, Chandraker, Suh. *Efficient Controllable Multi-Task Architectures*. ICCV 2023.
        https://arxiv.org/abs/2308.11744.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        hidden: int = 64,
        widths: Sequence[float] = WIDTHS,
        divisor: int = 8,
    ) -> None:
        super().__init__(widths, divisor)
        check_arguments(self, "maps", spec, out_channels)
        if hidden < 1:
            raise ValueError(f"SlimmableConvHead: hidden must be positive, got {hidden}.")
        self.stride = spec.strides[-1]
        self.hidden = (hidden,)
        self.layers = (
            SlimmableConv2d(spec.channels[-1], hidden, 3, padding=1),
            SlimmableConv2d(hidden, out_channels, 1),
        )
        self.body = nn.Sequential(_Coarsest(), self.layers[0], nn.ReLU(), self.layers[1])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits at the stride of the coarsest map."""
        logits: Tensor = self.body(features)
        return logits


class _Pool(nn.Module):
    """One vector per sample."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        pooled = features if isinstance(features, Tensor) else features[-1]
        if self.kind == "maps":
            return pooled.mean(dim=(2, 3))
        return pooled.mean(dim=1) if self.kind == "tokens" else pooled


class _Coarsest(nn.Module):
    """The last of the maps."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return features[-1]


def _fully_connected(widths: Sequence[int]) -> list[nn.Module]:
    """Return slimmable linear layers with a ReLU between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.ReLU(), SlimmableLinear(before, after)] if layers else [SlimmableLinear(before, after)]
    return layers
