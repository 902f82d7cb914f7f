"""The head of RetinaNet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from lightning_mtl.nn.heads.base import check_arguments
from lightning_mtl.nn.heads.detection.predictions import BoxPredictions
from lightning_mtl.nn.heads.detection.pyramid import FeaturePyramid, anchors_of, make_anchors
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class RetinaNetHead(nn.Module, Recorded):
    """Predict classes and box codes for anchors on a feature pyramid (Lin et al., ICCV 2017).

    A feature pyramid of its own, then torchvision's two towers of four convolutions, which all levels share.

    Args:
        spec: The features to read, of kind ``"maps"``.
        out_channels: Number of classes without background.
        pyramid_channels: Width of pyramid and towers (the paper: 256).
        min_stride: Stride of the finest level (the paper: 8).
        extra_levels: Levels beyond the encoder's coarsest map (the paper: 2).
        anchor_scale: Edge of the smallest anchor of a level in units of its stride (the paper: 4).
        scales_per_octave: Number of sizes of a level, which share out the way to the next one (the paper: 3).
        aspect_ratios: Height over width of the anchors.
        prior_probability: Probability of every class at the start, so that the many negatives do not swamp the loss.

    Shape:
        - features: list of ``(B, D_i, H / s_i, W / s_i)``, finest first; returns :class:`BoxPredictions`.

    Raises:
        ValueError: If the features do not fit or a number is out of range.

    Note:
        The default width is half of the paper's: in multi-task learning there is one such head per task. The third
        level beyond the encoder of the paper's feature pyramid (P6) is computed from P5 here, as in torchvision with
        equal widths.

    Example:
        >>> import torch
        >>> spec = FeatureSpec("maps", (8, 16), (8, 16))
        >>> head = RetinaNetHead(spec, out_channels=3, pyramid_channels=8, extra_levels=0)
        >>> head([torch.zeros(2, 8, 4, 4), torch.zeros(2, 16, 2, 2)]).logits.shape
        torch.Size([2, 180, 3])

    References:
        Lin, Goyal, Girshick, He, Dollár. *Focal Loss for Dense Object Detection*. ICCV, 2017.
        https://arxiv.org/abs/1708.02002
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        pyramid_channels: int = 128,
        min_stride: int = 8,
        extra_levels: Literal[0, 1, 2] = 2,
        anchor_scale: float = 4.0,
        scales_per_octave: int = 3,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        prior_probability: float = 0.01,
    ) -> None:
        super().__init__()
        from torchvision.models.detection.retinanet import RetinaNetClassificationHead, RetinaNetRegressionHead

        check_arguments(self, "maps", spec, out_channels)
        if anchor_scale <= 0 or scales_per_octave < 1 or not aspect_ratios or min(aspect_ratios) <= 0:
            raise ValueError(
                "RetinaNetHead: anchor_scale, scales_per_octave and aspect_ratios must be positive, got "
                f"{anchor_scale}, {scales_per_octave}, {list(aspect_ratios)}."
            )
        if not 0 < prior_probability < 1:
            raise ValueError(f"RetinaNetHead: prior_probability must be in (0, 1), got {prior_probability}.")
        self.pyramid = FeaturePyramid(spec, pyramid_channels, min_stride, extra_levels)
        octave = [2 ** (i / scales_per_octave) for i in range(scales_per_octave)]
        # whole pixels, rounded down as torchvision does
        sizes = [[int(anchor_scale * stride * part) for part in octave] for stride in self.pyramid.strides]
        number = scales_per_octave * len(aspect_ratios)
        self.classification = RetinaNetClassificationHead(pyramid_channels, number, out_channels, prior_probability)
        self.regression = RetinaNetRegressionHead(pyramid_channels, number)
        self.anchors = make_anchors(sizes, aspect_ratios)

    def forward(self, features: Sequence[Tensor], size: tuple[int, int] | None = None) -> BoxPredictions:
        """Return the raw predictions.

        Args:
            features: The encoder's maps.
            size: Height and width of the images; None takes that of the maps.
        """
        levels = self.pyramid(features)
        anchors = anchors_of(self.anchors, levels, self.pyramid.strides)
        shown = self.pyramid.image_size(levels) if size is None else size
        return BoxPredictions(self.classification(levels), self.regression(levels), None, anchors, shown)
