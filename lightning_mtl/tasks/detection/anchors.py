"""One-stage detection: a loss and boxes from one prediction per anchor."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from lightning_mtl.nn import BoxPredictions
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.detection.base import Detections, DetectionTask
from lightning_mtl.tasks.detection.targets import BoxTarget, centre_inside
from lightning_mtl.tasks.supervised import in_float32

BACKGROUND, IGNORED = -1, -2
"""What an anchor is matched with when it is not a box; the numbers of torchvision's ``Matcher``."""

Normalization = Literal["image", "batch"]


class AnchorDetection(DetectionTask):
    """Base of the one-stage detectors, whose head gives :class:`~lightning_mtl.nn.BoxPredictions`.

    Every anchor is matched with a box, with the background, or with nothing. The focal loss is summed over all but the
    last, the box loss over the first kind, and both are divided by the number of anchors that are matched with a box:
    of the same image (``normalization="image"``, then the mean over images is taken), or of the whole batch.
    Anchors whose centre lies in a crowd region and that match no box are left out.

    Subclasses implement ``match``, ``box_terms``, ``decode`` and ``scores``.

    Args:
        num_classes: Number of classes C without background.
        class_names: Names of the classes 1 .. C; by default their numbers.
        normalization: What the sums are divided by.
        score_thresh: Predictions below are dropped.
        nms_thresh: Of two predictions of one class that overlap more than this, the worse is dropped.
        topk_candidates: Number of predictions of each pyramid level that are looked at.
        detections_per_img: Number of predictions to keep per image.
        class_metrics: Also log the average precision of every class.
        draw_score_thresh: Predictions below are not drawn.
        backend: The program that computes the average precision.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
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
            score_thresh,
            nms_thresh,
            detections_per_img,
            class_metrics,
            draw_score_thresh,
            backend,
            head,
            loss_weight,
        )
        if normalization not in ("image", "batch"):
            raise ValueError(f"{type(self).__name__}: normalization must be 'image' or 'batch', got {normalization!r}.")
        if topk_candidates < 1:
            raise ValueError(f"{type(self).__name__}: topk_candidates must be positive, got {topk_candidates}.")
        self.normalization = normalization
        self.topk_candidates = topk_candidates

    @abstractmethod
    def match(self, anchors: Sequence[Tensor], boxes: Tensor) -> Tensor:
        """Return what every anchor is matched with.

        Args:
            anchors: Anchors of each level ``(N_l, 4)``.
            boxes: Boxes of one image ``(n, 4)``, at least one.

        Returns:
            Number of the box, ``BACKGROUND`` or ``IGNORED``, ``(N,)``.
        """

    @abstractmethod
    def box_terms(self, deltas: Tensor, centerness: Tensor | None, anchors: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        """Return the losses of the matched anchors, without a mean.

        Args:
            deltas: Predicted codes ``(P, 4)``.
            centerness: Predicted centre-ness logits ``(P,)``, or None.
            anchors: Their anchors ``(P, 4)``.
            boxes: The boxes that they are matched with ``(P, 4)``.

        Returns:
            Name -> losses ``(P,)``.
        """

    @abstractmethod
    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Return the boxes ``(n, 4)`` of codes ``(n, 4)``."""

    @abstractmethod
    def scores(self, prediction: BoxPredictions) -> Tensor:
        """Return the score of every class at every anchor ``(B, N, C)``, in float32."""

    @staticmethod
    def batch_size(prediction: BoxPredictions) -> int:
        """Return how many images a raw prediction is of."""
        return len(prediction.logits)

    def loss_terms(self, prediction: BoxPredictions, targets: Sequence[BoxTarget | None]) -> dict[str, Tensor]:
        """Return the parts of the mean loss over the annotated images."""
        from torchvision.ops import sigmoid_focal_loss

        annotated = [(i, target) for i, target in enumerate(targets) if target is not None]
        rows = [i for i, _ in annotated]

        def scored(values: Tensor) -> Tensor:
            return in_float32(values if len(rows) == len(targets) else values[rows])

        logits, deltas = scored(prediction.logits), scored(prediction.deltas)
        centerness = None if prediction.centerness is None else scored(prediction.centerness)
        anchors = torch.cat(prediction.anchors)
        classes, boxes = self._expected(prediction.anchors, anchors, [target for _, target in annotated])
        foreground = classes >= 0
        image = foreground.nonzero()[:, 0]
        positives = foreground.sum(1)
        if self.normalization == "image":
            share = 1 / (positives.clamp(min=1) * max(len(annotated), 1))
        else:
            share = (1 / positives.sum().clamp(min=1)).expand(len(annotated))

        hot = torch.zeros_like(logits)
        hot[foreground, classes[foreground]] = 1
        focal = sigmoid_focal_loss(logits, hot, reduction="none").sum(2)
        focal = torch.where(classes == IGNORED, 0.0, focal)
        terms = self.box_terms(
            deltas[foreground],
            None if centerness is None else centerness.squeeze(2)[foreground],
            anchors.expand(len(annotated), -1, -1)[foreground],
            boxes,
        )
        parts = {"classification": (focal.sum(1) * share).sum()}
        return parts | {name: (values * share[image]).sum() for name, values in terms.items()}

    def _expected(
        self, levels: Sequence[Tensor], anchors: Tensor, targets: Sequence[BoxTarget]
    ) -> tuple[Tensor, Tensor]:
        """Return what every anchor is to say ``(B, N)``: a class, BACKGROUND or IGNORED; and the boxes of the first."""
        classes = torch.full((len(targets), len(anchors)), BACKGROUND, device=anchors.device)
        boxes = [anchors.new_zeros((0, 4))]
        for row, target in zip(classes, targets, strict=True):
            if len(target.boxes):
                index = self.match(levels, target.boxes)
                matched = index >= 0
                row.copy_(torch.where(matched, target.labels[index.clamp(min=0)], index))
                boxes.append(target.boxes[index[matched]])
            if len(target.crowds):
                inside = centre_inside(anchors, target.crowds)
                row.masked_fill_((row == BACKGROUND) & inside, IGNORED)
        return classes, torch.cat(boxes)

    @torch.no_grad()
    def detections(self, prediction: BoxPredictions, sizes: Sequence[tuple[int, int]] | None = None) -> Detections:
        """Return the boxes found in every image: the best of each level, clipped, without duplicates.

        Args:
            prediction: The raw prediction.
            sizes: Height and width to which the boxes of each image are clipped; None clips to the batched image.
        """
        from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

        counts = [len(level) for level in prediction.anchors]
        scores, deltas = self.scores(prediction), prediction.deltas.float()  # half precision would merge boxes
        found = []
        for i in range(self.batch_size(prediction)):
            size = prediction.size if sizes is None else sizes[i]
            boxes, values, labels = [], [], []
            parts = zip(torch.split(scores[i], counts), torch.split(deltas[i], counts), prediction.anchors, strict=True)
            for level_scores, level_deltas, level_anchors in parts:
                anchor, label = (level_scores > self.score_thresh).nonzero(as_tuple=True)
                value = level_scores[anchor, label]
                value, best = value.topk(min(self.topk_candidates, len(value)))
                anchor, label = anchor[best], label[best]
                boxes.append(clip_boxes_to_image(self.decode(level_deltas[anchor], level_anchors[anchor]), size))
                values.append(value)
                labels.append(label + 1)
            box, value, label = torch.cat(boxes), torch.cat(values), torch.cat(labels)
            solid = remove_small_boxes(box, 1e-2)  # those outside of the image
            box, value, label = box[solid], value[solid], label[solid]
            keep = batched_nms(box, value, label, self.nms_thresh)[: self.detections_per_img]
            found.append({"boxes": box[keep], "scores": value[keep], "labels": label[keep]})
        return found
