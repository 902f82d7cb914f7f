"""What all detection tasks share: targets, metrics and pictures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_mtl.metrics import BoxAveragePrecision, TaskMetrics
from lightning_mtl.tasks.base import HeadCallable, Task, nothing_to_draw
from lightning_mtl.tasks.detection.drawing import draw_boxes
from lightning_mtl.tasks.detection.targets import BoxTarget, TargetCheck

Detections = list[dict[str, Tensor]]
"""For every image ``boxes`` (n, 4), ``scores`` (n,) and ``labels`` (n,), best first."""


class DetectionTask(Task):
    """Base of the tasks that find objects: their boxes and classes.

    A target is a list with one entry per image: ``None`` for an image that is not annotated, otherwise a mapping with
    ``boxes`` ``(n, 4)``, x1 y1 x2 y2 in pixels of the batched image, and ``labels`` ``(n,)`` in 1 .. C, where 0 is kept
    for the background; n = 0 is an image without objects. Optional: ``iscrowd`` ``(n,)`` marks regions that hold many
    objects, on which nothing is trained, and ``size``, height and width of the image before padding, to which the
    predictions are clipped in the metrics.

    The labelled unit is the annotated image. Metrics: ``map``, ``map50`` and ``map75`` of COCO, and ``ap_<class>`` with
    ``class_metrics``; they need the extra ``detection``.

    Subclasses implement ``loss_terms`` and ``detections``.

    Args:
        num_classes: Number of classes C without background.
        class_names: Names of the classes 1 .. C; by default their numbers.
        score_thresh: Predictions below are dropped.
        nms_thresh: Of two predictions of one class that overlap more than this, the worse is dropped.
        detections_per_img: Number of predictions to keep per image.
        class_metrics: Also log the average precision of every class. Δm then averages over these as well; without it,
            :meth:`class_ap` gives them on demand.
        draw_score_thresh: Predictions below are not drawn.
        backend: The program that computes the average precision.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.
    """

    draws_on_input = True

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
        super().__init__(head, loss_weight)
        name = type(self).__name__
        if num_classes < 1:
            raise ValueError(f"{name}: num_classes must be positive, got {num_classes}.")
        if class_names is not None and len(set(class_names)) != num_classes:
            raise ValueError(f"{name}: class_names must be {num_classes} different names, got {list(class_names)}.")
        thresholds = {"score_thresh": score_thresh, "nms_thresh": nms_thresh, "draw_score_thresh": draw_score_thresh}
        for argument, value in thresholds.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name}: {argument} must be in [0, 1], got {value}.")
        if detections_per_img < 1:
            raise ValueError(f"{name}: detections_per_img must be positive, got {detections_per_img}.")
        self.out_channels = num_classes
        self.class_names = (
            [str(i) for i in range(1, num_classes + 1)] if class_names is None else [str(c) for c in class_names]
        )
        self.score_thresh = score_thresh
        self.nms_thresh = nms_thresh
        self.detections_per_img = detections_per_img
        self.draw_score_thresh = draw_score_thresh
        self._check = TargetCheck(name, num_classes)
        self.metrics = TaskMetrics({"boxes": BoxAveragePrecision(self.class_names, class_metrics, backend)})

    def forward(self, features: Any, size: tuple[int, int] | None = None) -> Any:
        """Return the raw prediction.

        Args:
            features: What the encoder gave: a list of maps.
            size: Height and width of the input image; None takes that of the maps.
        """
        if self.head is None:
            raise RuntimeError(f"{type(self).__name__}: build_head() was not called.")
        return self.head(features, size)

    @abstractmethod
    def loss_terms(self, prediction: Any, targets: Sequence[BoxTarget | None]) -> dict[str, Tensor]:
        """Return the parts of the mean loss over the annotated images; zero, with a graph, when there are none."""

    @abstractmethod
    def detections(self, prediction: Any, sizes: Sequence[tuple[int, int]] | None = None) -> Detections:
        """Return the boxes found in every image, in pixels of the batched image.

        Args:
            prediction: The raw prediction.
            sizes: Height and width to which the boxes of each image are clipped; None clips to the batched image.
        """

    def loss_parts(self, prediction: Any, target: Any) -> dict[str, Tensor]:
        """Return the parts of the loss, which is their sum.

        Raises:
            ValueError: If the target has another form, or a box or label is no valid one.
            TypeError: If boxes or labels have another type.
        """
        return self.loss_terms(prediction, self._check(target, self.batch_size(prediction)))

    def loss(self, prediction: Any, target: Any) -> Tensor:
        """Return the mean loss over the annotated images, exactly zero without any.

        Raises:
            ValueError: If the target has another form, or a box or label is no valid one.
            TypeError: If boxes or labels have another type.
        """
        return torch.stack(list(self.loss_parts(prediction, target).values())).sum()

    @staticmethod
    @abstractmethod
    def batch_size(prediction: Any) -> int:
        """Return how many images a raw prediction is of."""

    def num_labelled(self, target: Any) -> Tensor:
        """Return how many images are annotated."""
        annotated = [entry for entry in target if entry is not None]
        device = annotated[0]["boxes"].device if annotated else None
        return torch.tensor(len(annotated), device=device)

    def predict(self, prediction: Any) -> Detections:
        """Return a list of ``{"boxes", "scores", "labels"}`` per image, in pixels of the batched image, best first."""
        return self.detections(prediction)

    def update_metrics(self, prediction: Any, target: Any) -> None:
        """Add a batch to ``metrics``, with the predictions clipped to the image before padding."""
        self._check(target, self.batch_size(prediction))
        if all(entry is None for entry in target):
            return
        self.metrics.update(self.detections(prediction, self._sizes(prediction, target)), target)

    def _sizes(self, prediction: Any, target: Any) -> list[tuple[int, int]]:
        whole: tuple[int, int] = prediction.size
        given = [None if entry is None else entry.get("size") for entry in target]
        return [whole if size is None else (int(size[0]), int(size[1])) for size in given]

    def class_ap(self) -> dict[str, float]:
        """Return the average precision of every class since the metrics were reset; NaN for absent classes.

        With several processes it is over all of them, and is then called on all of them together.
        """
        metric: Any = self.metrics["boxes"]
        before, metric.class_metrics, metric._computed = metric.class_metrics, True, None
        try:
            values = metric.compute()
        finally:
            metric.class_metrics, metric._computed = before, None
        return {name: values[f"ap_{name}"].item() for name in self.class_names}

    def render(self, value: Any) -> Tensor:
        """Return no picture: boxes are drawn over their image, by :meth:`draw`."""
        return nothing_to_draw()

    def draw(self, images: Tensor, value: Any, scale: int = 1) -> Tensor:
        """Draw boxes over their images in the colours of their classes, with names and scores.

        Args:
            images: Images ``(B, 3, scale H, scale W)``, uint8.
            value: What ``predict`` returned, or a target; an image with None is grey.
            scale: By how much the images are larger than the pixels that the boxes are in.

        Returns:
            Images of the same shape.
        """
        pictures = [
            torch.full_like(image, 127)
            if entry is None
            else draw_boxes(image, self._shown(entry), self.class_names, float(scale))
            for image, entry in zip(images, value, strict=True)
        ]
        return torch.stack(pictures)

    def _shown(self, entry: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        if "scores" not in entry:
            return entry
        keep = entry["scores"] >= self.draw_score_thresh
        return {key: entry[key][keep] for key in ("boxes", "scores", "labels")}
