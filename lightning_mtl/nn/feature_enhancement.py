"""Learned enhancement of dark images: features of three scales, joined by attention, added to the image."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_mtl.nn.recorded import Recorded

Fusion = Literal["safa", "mean", "skip"]

_SMALLEST = 15  # a kernel of 7 with stride 4, then a kernel of 3 with stride 2, leave one pixel of it


def scale_aware_attention(query: Tensor, key: Tensor, heads: int) -> Tensor:
    r"""Mix two maps of one size with weights of their own for every pixel and head.

    With :math:`d` channels per head,

    .. math:: (w_Q, w_K) = \operatorname{softmax}\left(\frac{\langle Q, K \rangle}{\sqrt d},
        \frac{\langle K, K \rangle}{\sqrt d}\right), \qquad O = w_Q Q + w_K K .

    Args:
        query: Map Q.
        key: Map K.
        heads: Number of groups of channels that have weights of their own.

    Shape:
        - query and key: ``(B, C, H, W)``, ``C`` a multiple of ``heads``; returns the same, in float32 at least, as the
          scores leave the range of float16.

    Raises:
        ValueError: If the shapes differ, or ``heads`` does not divide the channels.

    Note:
        The paper's Eq. 3 weighs by the product of the two maps; the second score, of the key with itself, is that of
        the authors' code.

    Example:
        >>> query, key = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1), torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
        >>> scale_aware_attention(query, key, heads=2).flatten().tolist()  # per head: softmax(0, 0), softmax(0, 1)
        [0.5, 0.7310585975646973]

    References:
        Hashmi, Kallempudi, Stricker, Afzal. *FeatEnHancer: Enhancing Hierarchical Features for Object Detection and
        Beyond Under Low-Light Vision*. ICCV 2023, Sec. 3.3. https://arxiv.org/abs/2308.03594
    """
    if query.shape != key.shape:
        raise ValueError(
            f"scale_aware_attention: query and key must have one shape, got {tuple(query.shape)}, {tuple(key.shape)}."
        )
    batch, channels, height, width = query.shape
    if heads < 1 or channels % heads:
        raise ValueError(
            f"scale_aware_attention: heads must divide the {channels} channels of query and key, got {heads}."
        )
    dtype = torch.promote_types(query.dtype, torch.float32)
    q = query.to(dtype).view(batch, heads, channels // heads, height, width)
    k = key.to(dtype).view(batch, heads, channels // heads, height, width)
    difference = q - k
    # the softmax of two scores is a sigmoid of their difference
    weight = torch.sigmoid((difference * k).sum(2, keepdim=True) / math.sqrt(channels // heads))
    return (k + weight * difference).view(batch, channels, height, width)


class ScaleAwareAggregation(nn.Module):
    """Add to a map what attention between it and a map of a quarter of its resolution finds (SAFA).

    Both maps are brought to an eighth by strided convolutions, mixed by :func:`scale_aware_attention`, enlarged
    bilinearly, and added to the full map.

    Args:
        channels: Number of channels of both maps.
        heads: Number of attention heads; divides ``channels``.

    Shape:
        - full: ``(B, channels, H, W)``.
        - quarter: ``(B, channels, h, w)``, ``h`` and ``w`` those of a 7 x 7 convolution of stride 4 on ``full``.
        - returns ``(B, channels, H, W)``.

    Raises:
        ValueError: If ``heads`` does not divide ``channels``.

    References:
        Hashmi, Kallempudi, Stricker, Afzal. *FeatEnHancer: Enhancing Hierarchical Features for Object Detection and
        Beyond Under Low-Light Vision*. ICCV 2023, Sec. 3.3. https://arxiv.org/abs/2308.03594
    """

    def __init__(self, channels: int = 24, heads: int = 8) -> None:
        super().__init__()
        if heads < 1 or channels < 1 or channels % heads:
            raise ValueError(
                f"ScaleAwareAggregation: heads must be positive and divide the channels, got heads={heads}, "
                f"channels={channels}."
            )
        self.heads = heads
        self.query = nn.Sequential(nn.Conv2d(channels, channels, 7, stride=4), nn.Conv2d(channels, channels, 3, 2))
        self.key = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, full: Tensor, quarter: Tensor) -> Tensor:
        """Return the full map with the aggregated features added."""
        mixed = scale_aware_attention(self.query(full), self.key(quarter), self.heads)
        return full + _enlarged(mixed, full).to(full.dtype)


class _SharedEnhancement(nn.Module):
    """Seven convolutions with symmetric skip connections and no change of resolution, for every scale alike."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int) -> None:
        super().__init__()
        widths = [in_channels, *[hidden_channels] * 3, *[2 * hidden_channels] * 3]
        outputs = [hidden_channels] * 6 + [out_channels]
        self.layers = nn.ModuleList(
            nn.Conv2d(width, output, 3, padding=1) for width, output in zip(widths, outputs, strict=True)
        )

    def forward(self, image: Tensor) -> Tensor:
        """Return the enhanced features ``(B, out_channels, H, W)``, before the last activation."""
        c1, c2, c3, c4, c5, c6, c7 = self.layers
        x1 = F.relu(c1(image))
        x2 = F.relu(c2(x1))
        x3 = F.relu(c3(x2))
        x4 = F.relu(c4(x3))
        x5 = F.relu(c5(torch.cat([x3, x4], 1)))
        x6 = F.relu(c6(torch.cat([x2, x5], 1)))
        features: Tensor = c7(torch.cat([x1, x6], 1))
        return features


class FeatureEnhancement(nn.Module, Recorded):
    r"""Turn a dark image into one of the same shape that is easier to see for the network behind it (FeatEnHancer).

    Two strided convolutions make images of a quarter and an eighth of the resolution. One small network, the same for
    the three scales, enhances each: :math:`F, F_q, F_o`. Scale-aware attention aggregates :math:`F` and :math:`F_q`,
    a skip connection adds :math:`F_o`, and the groups :math:`r_1, \dots, r_G` of as many channels as the image has
    are added to it:

    .. math:: F' = F + \operatorname{up}(\operatorname{attention}(F, F_q)), \qquad
        r = \tanh(\operatorname{conv}(\operatorname{conv}([F', \operatorname{up}(F_o)]))), \qquad
        \hat I = I + r_1 + \dots + r_G .

    There is no loss for it: the gradients of the tasks train it. With the defaults it has 139 400 parameters.

    Args:
        in_channels: Number of channels of the image.
        hidden_channels: Width of the shared enhancement network and of the skip connection.
        out_channels: Number of channels of the enhanced features, a multiple of ``in_channels`` and of ``heads``.
        heads: Number of attention heads.
        fusion: How the features of the quarter scale are joined: ``"safa"`` by scale-aware aggregation, ``"mean"`` by
            averaging them with those of the full scale, ``"skip"`` by the skip connection, like those of the eighth.
        init_std: Standard deviation of the initial convolution weights.
        checkpointing: Keep no activations of the enhancement in training and compute them again in the backward pass.
            It holds several maps of ``hidden_channels`` channels at full resolution: about 2 GB in float32 for an image
            of 800 x 1333.

    Shape:
        - image: ``(B, in_channels, H, W)``, normalised, ``H`` and ``W`` at least 15; returns the same.

    Raises:
        ValueError: If an argument is out of range, or the image has other channels or is too small.

    Note:
        The inputs have to be normalised before: values of 0..255 saturate the hyperbolic tangent. Padding does not stay
        zero, as in the authors' code. The paper does not give the layers of its ablations "averaging" and "skip
        connection"; ``fusion`` has the nearest to its description.

    Example:
        >>> enhancement = FeatureEnhancement()
        >>> enhancement(torch.zeros(1, 3, 20, 24)).shape, sum(p.numel() for p in enhancement.parameters())
        (torch.Size([1, 3, 20, 24]), 139400)

    References:
        Hashmi, Kallempudi, Stricker, Afzal. *FeatEnHancer: Enhancing Hierarchical Features for Object Detection and
        Beyond Under Low-Light Vision*. ICCV 2023. https://arxiv.org/abs/2308.03594. Authors' code:
        https://github.com/khurramHashmi/FeatEnHancer, CC BY-NC 4.0.
    """

    def __init__(
        self,
        in_channels: int = 3,
        hidden_channels: int = 32,
        out_channels: int = 24,
        heads: int = 8,
        fusion: Fusion = "safa",
        init_std: float = 0.02,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (
            ("in_channels", in_channels),
            ("hidden_channels", hidden_channels),
            ("out_channels", out_channels),
            ("heads", heads),
        ):
            if value < 1:
                raise ValueError(f"FeatureEnhancement: {name} must be positive, got {value}.")
        if out_channels % in_channels:
            raise ValueError(
                "FeatureEnhancement: out_channels must be a multiple of in_channels, as the residual is split into "
                f"groups of that many channels, got out_channels={out_channels}, in_channels={in_channels}."
            )
        if fusion == "safa" and out_channels % heads:
            raise ValueError(
                f"FeatureEnhancement: heads must divide out_channels, got heads={heads}, out_channels={out_channels}."
            )
        if fusion not in ("safa", "mean", "skip"):
            raise ValueError(f"FeatureEnhancement: fusion must be 'safa', 'mean' or 'skip', got {fusion!r}.")
        if init_std <= 0:
            raise ValueError(f"FeatureEnhancement: init_std must be positive, got {init_std}.")
        self.in_channels = in_channels
        self.fusion = fusion
        self.checkpointing = checkpointing
        self.to_quarter = nn.Conv2d(in_channels, in_channels, 7, stride=4)
        self.to_eighth = nn.Conv2d(in_channels, in_channels, 3, stride=2)
        self.enhance = _SharedEnhancement(in_channels, hidden_channels, out_channels)
        self.aggregate = ScaleAwareAggregation(out_channels, heads) if fusion == "safa" else None
        joined = out_channels * (3 if fusion == "skip" else 2)
        self.join = nn.Sequential(  # no activation in between
            nn.Conv2d(joined, hidden_channels, 3, padding=1), nn.Conv2d(hidden_channels, out_channels, 3, padding=1)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=init_std)

    def forward(self, image: Tensor) -> Tensor:
        """Return the enhanced image."""
        if image.ndim != 4 or image.shape[1] != self.in_channels or min(image.shape[2:]) < _SMALLEST:
            raise ValueError(
                f"FeatureEnhancement: images must have the shape (B, {self.in_channels}, H, W), H and W at least "
                f"{_SMALLEST}, got {tuple(image.shape)}."
            )
        if self.checkpointing and self.training and torch.is_grad_enabled():
            residual: Tensor = checkpoint(self._residual, image, use_reentrant=False)
        else:
            residual = self._residual(image)
        return image + residual

    def _residual(self, image: Tensor) -> Tensor:
        quarter = self.to_quarter(image)
        full_features, quarter_features, eighth_features = (
            self.enhance(scale) for scale in (image, quarter, self.to_eighth(quarter))
        )
        maps = [full_features]
        if self.aggregate is not None:
            maps = [self.aggregate(full_features, quarter_features)]
        elif self.fusion == "mean":
            maps = [(full_features + _enlarged(quarter_features, image)) / 2]
        else:
            maps.append(_enlarged(quarter_features, image))
        maps.append(_enlarged(eighth_features, image))
        residual = torch.tanh(self.join(torch.cat(maps, 1))).to(image.dtype)
        batch, _, height, width = residual.shape
        return residual.reshape(batch, -1, self.in_channels, height, width).sum(1)


def _enlarged(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(features, size=like.shape[-2:], mode="bilinear", align_corners=True)
