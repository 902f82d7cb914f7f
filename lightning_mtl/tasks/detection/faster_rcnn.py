"""Faster R-CNN: boxes are proposed, then classified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_mtl.nn import ProposalPredictions
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.detection.base import Detections, DetectionTask
from lightning_mtl.tasks.detection.targets import BoxTarget, centre_inside
from lightning_mtl.tasks.supervised import in_float32


class FasterRCNN(DetectionTask):
    """Find objects in two stages, by torchvision's region proposal network and box head (Ren et al., NeurIPS 2015).

    The loss is the mean over the images of the sum of four parts, logged under ``train/<task>/``: ``objectness`` and
    ``proposal_box`` of a sample of 256 anchors, ``classification`` and ``box`` of a sample of 512 proposals, to which
    the true boxes are added. Anchors and proposals whose centre lies in a crowd region are not sampled as background.

    Target, metrics and the form of predictions are those of all detection tasks, see
    :class:`~lightning_mtl.tasks.DetectionTask`.

    Args:
        num_classes: Number of classes C without background.
        class_names: Names of the classes 1 .. C; by default their numbers.
        score_thresh: Predictions below are dropped.
        nms_thresh: Of two predictions of one class that overlap more than this, the worse is dropped.
        detections_per_img: Number of predictions to keep per image.
        class_metrics: Also log the average precision of every class.
        draw_score_thresh: Predictions below are not drawn.
        backend: The program that computes the average precision.
        head: A :class:`~lightning_mtl.nn.FasterRCNNHead`, or a callable that builds one from the encoder's features;
            None takes its defaults.
        loss_weight: Constant factor of this task's loss.

    Raises:
        ValueError: If an argument is out of range.
        ModuleNotFoundError: If the extra ``detection`` is not installed.

    Note:
        The samples are random, so two evaluations of the loss differ; methods that evaluate a loss twice draw the same
        samples again. torchvision divides by the number of samples in the batch, this task by those of each image: the
        two differ only where images have fewer anchors or proposals than the sample. Part of the network runs in
        ``loss`` and ``predict``, so an exported graph ends with the proposals.

    References:
        Ren, He, Girshick, Sun. *Faster R-CNN: Towards Real-Time Object Detection with Region Proposal Networks*.
        NeurIPS, 2015. https://arxiv.org/abs/1506.01497
    """

    def __init__(
        self,
        num_classes: int,
        class_names: Sequence[str] | None = None,
        score_thresh: float = 0.05,
        nms_thresh: float = 0.5,
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

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return a :class:`~lightning_mtl.nn.FasterRCNNHead`."""
        from lightning_mtl.nn import FasterRCNNHead

        return FasterRCNNHead(spec, out_channels)

    @staticmethod
    def batch_size(prediction: ProposalPredictions) -> int:
        """Return how many images a raw prediction is of."""
        return len(prediction.objectness)

    def loss_terms(self, prediction: ProposalPredictions, targets: Sequence[BoxTarget | None]) -> dict[str, Tensor]:
        """Return the parts of the mean loss over the annotated images."""
        from torchvision.models.detection.roi_heads import fastrcnn_loss

        head: Any = self.head
        annotated = [(i, target) for i, target in enumerate(targets) if target is not None]
        rows = [i for i, _ in annotated]
        first = [self._proposal_terms(prediction, i, target) for i, target in annotated]
        samples = [self._sample(prediction.proposals[i], target) for i, target in annotated]

        levels = prediction.levels if len(rows) == len(targets) else [level[rows] for level in prediction.levels]
        boxes = [proposals for proposals, _, _ in samples]
        if not rows:  # nothing to judge, but the second stage takes part with zero gradients
            levels, boxes = [level[:1] for level in prediction.levels], [prediction.anchors[0][:0]]
        logits, codes = (in_float32(values) for values in head.classify(levels, boxes, prediction.size))
        counts = [len(part) for part in boxes]
        second = [
            fastrcnn_loss(a, b, [labels], [expected])
            for a, b, (_, labels, expected) in zip(
                torch.split(logits, counts), torch.split(codes, counts), samples, strict=False
            )
        ]
        nothing = (prediction.objectness[:0], prediction.deltas[:0], logits[:0], codes[:0])
        parts = zip(
            ("objectness", "proposal_box", "classification", "box"),
            zip(*(one + two for one, two in zip(first, second, strict=True)), strict=True) if rows else [()] * 4,
            nothing,
            strict=True,
        )
        return {name: torch.stack(values).mean() if values else empty.sum() for name, values, empty in parts}

    def _proposal_terms(self, prediction: ProposalPredictions, i: int, target: BoxTarget) -> tuple[Tensor, Tensor]:
        """Return the losses of the first stage on one image."""
        rpn: Any = self.head.rpn  # type: ignore[union-attr]
        anchors = torch.cat(prediction.anchors)
        labels, boxes = rpn.assign_targets_to_anchors([anchors], [{"boxes": target.boxes}])
        if len(target.crowds):
            labels[0][(labels[0] == 0) & centre_inside(anchors, target.crowds)] = -1
        expected = rpn.box_coder.encode(boxes, [anchors])
        objectness, box = rpn.compute_loss(
            in_float32(prediction.objectness[i]), in_float32(prediction.deltas[i]), labels, expected
        )
        return objectness, box

    def _sample(self, proposals: Tensor, target: BoxTarget) -> tuple[Tensor, Tensor, Tensor]:
        """Return the proposals to train on, their labels with 0 for background, and the codes of their boxes."""
        if len(target.crowds):
            proposals = proposals[~centre_inside(proposals, target.crowds)]
        roi_heads: Any = self.head.roi_heads  # type: ignore[union-attr]
        chosen, _, labels, expected = roi_heads.select_training_samples(
            [proposals], [{"boxes": target.boxes, "labels": target.labels + 1}]
        )
        return chosen[0], labels[0], expected[0]

    @torch.no_grad()
    def detections(self, prediction: ProposalPredictions, sizes: Sequence[tuple[int, int]] | None = None) -> Detections:
        """Return the boxes found in every image.

        Args:
            prediction: The raw prediction.
            sizes: Height and width to which the boxes of each image are clipped; None clips to the batched image.
        """
        head: Any = self.head
        roi_heads = head.roi_heads
        roi_heads.score_thresh = self.score_thresh
        roi_heads.nms_thresh = self.nms_thresh
        roi_heads.detections_per_img = self.detections_per_img
        proposals = list(prediction.proposals)
        logits, codes = head.classify(prediction.levels, proposals, prediction.size)
        limits = [prediction.size] * len(proposals) if sizes is None else list(sizes)
        found = roi_heads.postprocess_detections(logits.float(), codes.float(), proposals, limits)
        return [{"boxes": b, "scores": s, "labels": c} for b, s, c in zip(*found, strict=True)]
