"""FCOS: every location inside of an object predicts its box."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn import BoxPredictions
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.detection.anchors import BACKGROUND, AnchorDetection, Normalization


class FCOS(AnchorDetection):
    r"""Find objects without anchor boxes: locations predict the distances to the four sides (Tian et al., ICCV 2019).

    A location of a level with stride s is trained on a box if it lies in it, closer to its centre than
    ``center_sampling_radius`` s in both directions, and its largest distance to a side is in the range of the level,
    4 s to 8 s (from 0 for the finest level, without bound for the coarsest); of several boxes on the smallest. The loss
    is the sum of three parts, logged as ``train/<task>/classification``, ``box`` and ``centerness``: focal loss,
    generalized intersection over union, and binary cross entropy to

    .. math:: \sqrt{\frac{\min(l, r)}{\max(l, r)} \cdot \frac{\min(t, b)}{\max(t, b)}}

    for the distances l, t, r, b. The score of a prediction is the root of class probability times centre-ness.

    Target, metrics and the form of predictions are those of all detection tasks, see
    :class:`~lightning_mtl.tasks.DetectionTask`. Box coder, losses and non-maximum suppression are torchvision's.

    Args:
        num_classes: Number of classes C without background.
        class_names: Names of the classes 1 .. C; by default their numbers.
        center_sampling_radius: Half edge of the square around the centre of a box whose locations are trained on it, in
            strides.
        normalization: The sums over an image are divided by the number of its own positive locations, and the mean over
            the images is taken (``"image"``); or all are divided by that of the batch (``"batch"``, paper and
            torchvision).
        score_thresh: Predictions below are dropped.
        nms_thresh: Of two predictions of one class that overlap more than this, the worse is dropped.
        topk_candidates: Number of predictions of each pyramid level that are looked at.
        detections_per_img: Number of predictions to keep per image.
        class_metrics: Also log the average precision of every class.
        draw_score_thresh: Predictions below are not drawn.
        backend: The program that computes the average precision.
        head: A head, or a callable that builds one from the encoder's features; None takes
            :class:`~lightning_mtl.nn.FCOSHead`.
        loss_weight: Constant factor of this task's loss.

    Raises:
        ValueError: If an argument is out of range.
        ModuleNotFoundError: If the extra ``detection`` is not installed.

    Note:
        With ``normalization="image"`` the loss is a mean over images as that of every task is, so several processes
        train on exactly the loss of the joined batch, and it is the convention of RetinaNet. With ``"batch"`` the loss
        of one process equals torchvision's ``FCOS`` on the same weights; several processes then train on the mean of
        their own normalised losses, weighted by their numbers of images, which differs from the joined batch by the
        spread of positives between them. Of boxes whose areas differ by less than about 8 square pixels torchvision may
        take the larger.

    Example:
        >>> from lightning_mtl.nn import FCOSHead, FeatureSpec
        >>> spec = FeatureSpec("maps", (8, 16), (8, 16))
        >>> task = FCOS(num_classes=2, head=FCOSHead(spec, 2, pyramid_channels=32, extra_levels=0))
        >>> prediction = task([torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 4, 4)], (64, 64))
        >>> target = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}]
        >>> sorted(task.loss_parts(prediction, target))
        ['box', 'centerness', 'classification']

    References:
        Tian, Shen, Chen, He. *FCOS: Fully Convolutional One-Stage Object Detection*. ICCV, 2019.
        https://arxiv.org/abs/1904.01355
        Tian, Shen, Chen, He. *FCOS: A Simple and Strong Anchor-Free Object Detector*. TPAMI 44(4), 2022.
        https://arxiv.org/abs/2006.09214: centre sampling.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        center_sampling_radius: float = 1.5,
        normalization: Normalization = "image",
        score_thresh: float = 0.2,
        nms_thresh: float = 0.6,
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
        from torchvision.models.detection._utils import BoxLinearCoder

        if center_sampling_radius <= 0:
            raise ValueError(f"FCOS: center_sampling_radius must be positive, got {center_sampling_radius}.")
        self.center_sampling_radius = center_sampling_radius
        self.coder = BoxLinearCoder(normalize_by_size=True)

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return an :class:`~lightning_mtl.nn.FCOSHead`."""
        from lightning_mtl.nn import FCOSHead

        return FCOSHead(spec, out_channels)

    def match(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Return the smallest box that every location is to predict, or ``BACKGROUND``."""
        matches = []
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        for number, level in enumerate(anchors):
            stride = level[:1, 2] - level[:1, 0]
            point = ((level[:, :2] + level[:, 2:]) / 2)[:, None]
            sides = torch.cat([point - boxes[:, :2], boxes[:, 2:] - point], 2)
            reach = sides.amax(2)
            responsible = (sides.amin(2) > 0) & ((point - middle).abs().amax(2) < self.center_sampling_radius * stride)
            if number > 0:
                responsible &= reach > 4 * stride
            if number < len(anchors) - 1:
                responsible &= reach < 8 * stride
            smallest, index = torch.where(responsible, area, torch.inf).min(1)
            matches.append(index.masked_fill(smallest.isinf(), BACKGROUND))
        return torch.cat(matches)

    def box_terms(self, deltas: Tensor, centerness: Tensor | None, anchors: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Return the losses of box and centre-ness of the matched locations."""
        from torchvision.ops import generalized_box_iou_loss

        terms = {"box": generalized_box_iou_loss(self.coder.decode(deltas, anchors), boxes, reduction="none")}
        if centerness is not None:
            sides = self.coder.encode(anchors, boxes)
            across, along = sides[:, [0, 2]], sides[:, [1, 3]]
            ratio = across.amin(1) / across.amax(1) * (along.amin(1) / along.amax(1))
            expected = ratio.sqrt().to(centerness.dtype)
            terms["centerness"] = F.binary_cross_entropy_with_logits(centerness, expected, reduction="none")
        return terms

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes of these distances."""
        boxes: Tensor = self.coder.decode(deltas, anchors)
        return boxes

    def scores(self, prediction: BoxPredictions) -> Tensor:
        """Return the root of class probability times centre-ness."""
        probability = prediction.logits.float().sigmoid()
        if prediction.centerness is None:
            return probability
        return (probability * prediction.centerness.float().sigmoid()).sqrt()
