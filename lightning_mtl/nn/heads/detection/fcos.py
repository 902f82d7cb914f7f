"""The head of FCOS."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from lightning_mtl.nn.heads.base import check_arguments
from lightning_mtl.nn.heads.detection.predictions import BoxPredictions
from lightning_mtl.nn.heads.detection.pyramid import FeaturePyramid, anchors_of, make_anchors
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class FCOSHead(nn.Module, Recorded):
    """Predict classes, box sides and centre-ness at every location of a feature pyramid (Tian et al., ICCV 2019).

    A feature pyramid of its own, then torchvision's two towers, which all levels share. A location of stride ``s`` is
    written as a square anchor of that size, as torchvision does.

    Args:
        spec: The features to read, of kind ``"maps"``.
        out_channels: Number of classes without background.
        pyramid_channels: Width of pyramid and towers, a multiple of 32 (the paper: 256).
        min_stride: Stride of the finest level (the paper: 8). Boxes whose longest distance from a location to a side
            is below ``8 min_stride`` are found there.
        extra_levels: Levels beyond the encoder's coarsest map (the paper: 2).
        num_convs: Depth of the towers (the paper: 4).
        prior_probability: Probability of every class at the start, so that the many negatives do not swamp the loss.

    Shape:
        - features: list of ``(B, D_i, H / s_i, W / s_i)``, finest first; returns :class:`BoxPredictions`.

    Raises:
        ValueError: If the features do not fit or a number is out of range.

    Note:
        The default width is half of the paper's: in multi-task learning there is one such head per task. Locations lie
        at multiples of the stride, as in torchvision, not half a stride further as in the paper.

    Example:
        >>> import torch
        >>> spec = FeatureSpec("maps", (8, 16), (8, 16))
        >>> head = FCOSHead(spec, out_channels=3, pyramid_channels=32, extra_levels=0)
        >>> head([torch.zeros(2, 8, 4, 4), torch.zeros(2, 16, 2, 2)]).logits.shape
        torch.Size([2, 20, 3])

    References:
        Tian, Shen, Chen, He. *FCOS: Fully Convolutional One-Stage Object Detection*. ICCV, 2019.
        https://arxiv.org/abs/1904.01355
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        pyramid_channels: int = 128,
        min_stride: int = 8,
        extra_levels: Literal[0, 1, 2] = 2,
        num_convs: int = 4,
        prior_probability: float = 0.01,
    ) -> None:
        super().__init__()
        from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSRegressionHead

        check_arguments(self, "maps", spec, out_channels)
        if pyramid_channels < 32 or pyramid_channels % 32:
            raise ValueError(f"FCOSHead: pyramid_channels must be a multiple of 32, got {pyramid_channels}.")
        if num_convs < 0:
            raise ValueError(f"FCOSHead: num_convs must not be negative, got {num_convs}.")
        if not 0 < prior_probability < 1:
            raise ValueError(f"FCOSHead: prior_probability must be in (0, 1), got {prior_probability}.")
        self.pyramid = FeaturePyramid(spec, pyramid_channels, min_stride, extra_levels)
        self.classification = FCOSClassificationHead(pyramid_channels, 1, out_channels, num_convs, prior_probability)
        self.regression = FCOSRegressionHead(pyramid_channels, 1, num_convs)
        self.anchors = make_anchors([[stride] for stride in self.pyramid.strides], [1.0])

    def forward(self, features: Sequence[Tensor], size: tuple[int, int] | None = None) -> BoxPredictions:
        """Return the raw predictions.

        Args:
            features: The encoder's maps.
            size: Height and width of the images; None takes that of the maps.
        """
        levels = self.pyramid(features)
        deltas, centerness = self.regression(levels)
        anchors = anchors_of(self.anchors, levels, self.pyramid.strides)
        shown = self.pyramid.image_size(levels) if size is None else size
        return BoxPredictions(self.classification(levels), deltas, centerness, anchors, shown)
