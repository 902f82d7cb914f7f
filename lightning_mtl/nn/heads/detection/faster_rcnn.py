"""The head of Faster R-CNN."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor, nn

from lightning_mtl.nn.heads.base import check_arguments
from lightning_mtl.nn.heads.detection.predictions import ProposalPredictions
from lightning_mtl.nn.heads.detection.pyramid import FeaturePyramid, anchors_of, make_anchors
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class FasterRCNNHead(nn.Module, Recorded):
    """Propose boxes on a feature pyramid, then classify and correct them (Ren et al., NeurIPS 2015).

    A feature pyramid of its own, then torchvision's region proposal network and box head (its ``rpn`` and
    ``roi_heads``). ``forward`` ends with the proposals; :meth:`classify` is the second stage, which in training reads a
    sample of them that depends on the target.

    Args:
        spec: The features to read, of kind ``"maps"``.
        out_channels: Number of classes without background.
        pyramid_channels: Width of the pyramid (Lin et al.: 256).
        min_stride: Stride of the finest level (Lin et al.: 4).
        extra_levels: Levels beyond the encoder's coarsest map; proposals come from them, the second stage leaves them
            out (Lin et al.: 1).
        anchor_scale: Edge of the anchors of a level in units of its stride (Lin et al.: 8).
        aspect_ratios: Height over width of the anchors.
        box_channels: Width of the two layers of the second stage (Lin et al.: 1024).
        roi_size: Height and width to which the features of a proposal are resampled.
        proposals_train: Number of proposals of each image in training, before and after removing duplicates.
        proposals_eval: The same in evaluation.

    Shape:
        - features: list of ``(B, D_i, H / s_i, W / s_i)``, finest first; returns :class:`ProposalPredictions`.

    Raises:
        ValueError: If the features do not fit or a number is out of range.

    Note:
        The default widths are below those of the papers: in multi-task learning there is one such head per task.

    References:
        Ren, He, Girshick, Sun. *Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks*.
        NeurIPS, 2015. https://arxiv.org/abs/1506.01497
        Lin, Dollár, Girshick, He, Hariharan, Belongie. *Feature Pyramid Networks for Object Detection*. CVPR, 2017.
        https://arxiv.org/abs/1612.03144, Sec. 4.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        pyramid_channels: int = 128,
        min_stride: int = 4,
        extra_levels: Literal[0, 1] = 1,
        anchor_scale: float = 8.0,
        aspect_ratios: Sequence[float] = (0.5, 1.0, 2.0),
        box_channels: int = 512,
        roi_size: int = 7,
        proposals_train: int = 1000,
        proposals_eval: int = 1000,
    ) -> None:
        super().__init__()
        from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
        from torchvision.models.detection.roi_heads import RoIHeads
        from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
        from torchvision.ops import MultiScaleRoIAlign

        check_arguments(self, "maps", spec, out_channels)
        numbers = {
            "anchor_scale": anchor_scale,
            "box_channels": box_channels,
            "roi_size": roi_size,
            "proposals_train": proposals_train,
            "proposals_eval": proposals_eval,
        }
        for argument, value in numbers.items():
            if value <= 0:
                raise ValueError(f"FasterRCNNHead: {argument} must be positive, got {value}.")
        if not aspect_ratios or min(aspect_ratios) <= 0:
            raise ValueError(f"FasterRCNNHead: aspect_ratios must be positive, got {list(aspect_ratios)}.")
        self.pyramid = FeaturePyramid(spec, pyramid_channels, min_stride, extra_levels)
        anchors = make_anchors([[int(anchor_scale * stride)] for stride in self.pyramid.strides], aspect_ratios)
        top = {"training": proposals_train, "testing": proposals_eval}
        self.rpn: Any = RegionProposalNetwork(
            anchors,
            RPNHead(pyramid_channels, len(aspect_ratios)),
            fg_iou_thresh=0.7,
            bg_iou_thresh=0.3,
            batch_size_per_image=256,
            positive_fraction=0.5,
            pre_nms_top_n=top,
            post_nms_top_n=top,
            nms_thresh=0.7,
        )
        self.read = [str(i) for i in range(len(self.pyramid.strides) - extra_levels)]
        self.roi_heads: Any = RoIHeads(
            MultiScaleRoIAlign(self.read, roi_size, sampling_ratio=2),
            TwoMLPHead(pyramid_channels * roi_size**2, box_channels),
            FastRCNNPredictor(box_channels, out_channels + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=512,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=0.05,
            nms_thresh=0.5,
            detections_per_img=100,
        )

    def forward(self, features: Sequence[Tensor], size: tuple[int, int] | None = None) -> ProposalPredictions:
        """Return the proposals.

        Args:
            features: The encoder's maps.
            size: Height and width of the images; None takes that of the maps.
        """
        from torchvision.models.detection.rpn import concat_box_prediction_layers

        levels = self.pyramid(features)
        shown = self.pyramid.image_size(levels) if size is None else size
        batch = len(levels[0])
        anchors = anchors_of(self.rpn.anchor_generator, levels, self.pyramid.strides)
        objectness, deltas = concat_box_prediction_layers(*self.rpn.head(levels))
        objectness, deltas = objectness.view(batch, -1), deltas.view(batch, -1, 4)
        boxes = self.rpn.box_coder.decode(deltas.detach().float().flatten(0, 1), [*anchors] * batch)
        counts = [len(level) for level in anchors]
        proposals, _ = self.rpn.filter_proposals(
            boxes.view(batch, -1, 4), objectness.detach().float(), [shown] * batch, counts
        )
        return ProposalPredictions(tuple(levels), objectness, deltas, anchors, tuple(proposals), shown)

    def classify(
        self, levels: Sequence[Tensor], proposals: Sequence[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return the class logits and box codes of the proposals of all images in a row.

        Args:
            levels: The pyramid.
            proposals: Boxes of each image ``(n, 4)``.
            size: Height and width of the images.

        Returns:
            Logits ``(sum n, C + 1)``, the background first, and codes ``(sum n, 4 (C + 1))``.
        """
        named = OrderedDict((name, level.float()) for name, level in zip(self.read, levels, strict=False))
        pooled = self.roi_heads.box_roi_pool(named, list(proposals), [size] * len(proposals))
        logits, codes = self.roi_heads.box_predictor(self.roi_heads.box_head(pooled))
        return logits, codes
