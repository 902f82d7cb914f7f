"""RetinaNet: anchors of several sizes and shapes, classified under the focal loss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_mtl.nn import BoxPredictions
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.detection.anchors import AnchorDetection, Normalization


class RetinaNet(AnchorDetection):
    """Find objects by classifying anchors and correcting their boxes (Lin et al., ICCV 2017).

    An anchor is trained on the box with which its intersection over union is largest, if that is at least
    ``fg_iou_thresh`` or the largest that this box has with any anchor; below ``bg_iou_thresh`` it is background, in
    between it is left out. The loss is the sum of two parts, logged as ``train/<task>/classification`` (focal loss) and
    ``train/<task>/box`` (L1 between the codes).

    Target, metrics and the form of predictions are those of all detection tasks, see
    :class:`~lightning_mtl.tasks.DetectionTask`. Matcher, box coder, losses and non-maximum suppression are
    torchvision's.

    Args:
        num_classes: Number of classes C without background.
        class_names: Names of the classes 1 .. C; by default their numbers.
        fg_iou_thresh: Intersection over union from which an anchor is positive.
        bg_iou_thresh: Intersection over union below which it is background.
        normalization: The sums over an image are divided by the number of its own positive anchors, and the mean over
            the images is taken (``"image"``, torchvision); or all are divided by that of the batch (``"batch"``).
        score_thresh: Predictions below are dropped.
        nms_thresh: Of two predictions of one class that overlap more than this, the worse is dropped.
        topk_candidates: Number of predictions of each pyramid level that are looked at.
        detections_per_img: Number of predictions to keep per image.
        class_metrics: Also log the average precision of every class.
        draw_score_thresh: Predictions below are not drawn.
        backend: The program that computes the average precision.
        head: A head, or a callable that builds one from the encoder's features; None takes
            :class:`~lightning_mtl.nn.RetinaNetHead`.
        loss_weight: Constant factor of this task's loss.

    Raises:
        ValueError: If an argument is out of range.
        ModuleNotFoundError: If the extra ``detection`` is not installed.

    Note:
        The loss equals that of torchvision's ``RetinaNet`` on the same weights: L1 on the codes, where the paper has
        smooth L1. With ``normalization="image"`` several processes train on exactly the loss of the joined batch.

    Example:
        >>> from lightning_mtl.nn import FeatureSpec, RetinaNetHead
        >>> spec = FeatureSpec("maps", (8, 16), (8, 16))
        >>> task = RetinaNet(num_classes=2, head=RetinaNetHead(spec, 2, pyramid_channels=8, extra_levels=0))
        >>> prediction = task([torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 4, 4)], (64, 64))
        >>> target = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}]
        >>> sorted(task.loss_parts(prediction, target))
        ['box', 'classification']

    References:
        Lin, Goyal, Girshick, He, Dollár. *Focal Loss for Dense Object Detection*. ICCV, 2017.
        https://arxiv.org/abs/1708.02002
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        fg_iou_thresh: float = 0.5,
        bg_iou_thresh: float = 0.4,
        normalization: Normalization = "image",
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
        topk_candidates: int = 1000,
        detections_per_img: int = 100,
        class_metrics: bool = False,
        draw_score_thresh: float = 0.3,
        backend: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(
            num_classes,
            class_names,
            normalization,
            score_thresh,
            nms_thresh,
            topk_candidates,
            detections_per_img,
            class_metrics,
            draw_score_thresh,
            backend,
            head,
            loss_weight,
        )
        from torchvision.models.detection._utils import BoxCoder, Matcher

        if not 0 < bg_iou_thresh <= fg_iou_thresh <= 1:
            raise ValueError(
                "RetinaNet: thresholds must fulfil 0 < bg_iou_thresh <= fg_iou_thresh <= 1, got "
                f"{bg_iou_thresh} and {fg_iou_thresh}."
            )
        self.coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))
        self.matcher = Matcher(fg_iou_thresh, bg_iou_thresh, allow_low_quality_matches=True)

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return a :class:`~lightning_mtl.nn.RetinaNetHead`."""
        from lightning_mtl.nn import RetinaNetHead

        return RetinaNetHead(spec, out_channels)

    def match(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Return the box that every anchor is to predict, ``BACKGROUND`` or ``IGNORED``."""
        from torchvision.ops import box_iou

        matches: Tensor = self.matcher(box_iou(boxes, torch.cat(list(anchors))))
        return matches

    def box_terms(self, deltas: Tensor, centerness: Tensor | None, anchors: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Return the L1 losses of the codes of the matched anchors."""
        return {"box": (deltas - self.coder.encode_single(boxes, anchors)).abs().sum(1)}

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes of these codes."""
        boxes: Tensor = self.coder.decode_single(deltas, anchors)
        return boxes

    def scores(self, prediction: BoxPredictions) -> Tensor:
        """Return the class probabilities."""
        return prediction.logits.float().sigmoid()
