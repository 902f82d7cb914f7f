"""The feature pyramid of the detection heads, and the anchors on it."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class FeaturePyramid(nn.Module, Recorded):
    """Turn an encoder's feature maps into a pyramid of one width (Lin et al., CVPR 2017), by torchvision's module.

    Args:
        spec: The features to read, of kind ``"maps"``.
        channels: Width of every level (the paper: 256).
        min_stride: Stride of the finest level; finer maps are not read.
        extra_levels: Levels beyond the encoder's coarsest map: 0, 1 (a subsampled copy, as Faster R-CNN has it), or 2
            (strided convolutions, as FCOS and RetinaNet have them).

    Shape:
        - features: list of ``(B, D_i, H / s_i, W / s_i)``, finest first; returns a list of ``(B, channels, H / s, W /
          s)`` for ``s`` in ``strides``.

    Raises:
        ValueError: If the features are no maps, or their strides from ``min_stride`` on do not double.

    Example:
        >>> pyramid = FeaturePyramid(FeatureSpec("maps", (4, 8, 16), (4, 8, 16)), channels=8, extra_levels=2)
        >>> pyramid.strides
        (8, 16, 32, 64)

    References:
        Lin, Dollár, Girshick, He, Hariharan, Belongie. *Feature Pyramid Networks for Object Detection*. CVPR, 2017.
        https://arxiv.org/abs/1612.03144
    """

    def __init__(
        self, spec: FeatureSpec, channels: int, min_stride: int = 8, extra_levels: Literal[0, 1, 2] = 0
    ) -> None:
        super().__init__()
        from torchvision.ops.feature_pyramid_network import (
            ExtraFPNBlock,
            FeaturePyramidNetwork,
            LastLevelMaxPool,
            LastLevelP6P7,
        )

        if spec.kind != "maps":
            raise ValueError(
                f"{type(self).__name__}: features must be of kind 'maps', got {spec.kind!r}; build the encoder with "
                "features='maps'."
            )
        if extra_levels not in (0, 1, 2):
            raise ValueError(f"{type(self).__name__}: extra_levels must be 0, 1 or 2, got {extra_levels}.")
        strides = tuple(stride for stride in spec.strides if stride >= min_stride)
        if not strides or strides[0] != min_stride or any(b != 2 * a for a, b in itertools.pairwise(strides)):
            raise ValueError(
                f"{type(self).__name__}: the feature maps must have strides that double from min_stride={min_stride} "
                f"on, got strides {spec.strides}; choose another min_stride or an encoder with such maps."
            )
        extra: ExtraFPNBlock | None = None
        if extra_levels == 1:
            extra = LastLevelMaxPool()
        elif extra_levels == 2:
            extra = LastLevelP6P7(channels, channels)
        self.first = len(spec.strides) - len(strides)
        self.strides = strides + tuple(strides[-1] * 2 ** (i + 1) for i in range(extra_levels))
        self.fpn = FeaturePyramidNetwork(list(spec.channels[self.first :]), channels, extra)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the levels, finest first."""
        named = OrderedDict((str(i), feature) for i, feature in enumerate(features[self.first :]))
        return list(self.fpn(named).values())

    def image_size(self, levels: Sequence[Tensor]) -> tuple[int, int]:
        """Return height and width of the image that these levels are of, if it is a multiple of the finest stride."""
        return levels[0].shape[-2] * self.strides[0], levels[0].shape[-1] * self.strides[0]


def make_anchors(sizes: Sequence[Sequence[int]], aspect_ratios: Sequence[float]) -> Any:
    """Return torchvision's generator of anchors.

    Args:
        sizes: Edges of the square anchors of each level.
        aspect_ratios: Height over width; every size occurs with every ratio.
    """
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    ratios = tuple(aspect_ratios)
    return AnchorGenerator(tuple(map(tuple, sizes)), (ratios,) * len(sizes))


def anchors_of(generator: Any, levels: Sequence[Tensor], strides: Sequence[int]) -> tuple[Tensor, ...]:
    """Return the anchors of each level in pixels, in float32 whatever the levels' type.

    Args:
        generator: What :func:`make_anchors` gave.
        levels: Maps of the pyramid.
        strides: Their strides.
    """
    device = levels[0].device
    if generator.cell_anchors[0].device != device:
        generator.set_cell_anchors(torch.float32, device)
    grids = [[level.shape[-2], level.shape[-1]] for level in levels]
    return tuple(generator.grid_anchors(grids, [[stride, stride] for stride in strides]))
