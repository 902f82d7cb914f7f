"""Average precision of boxes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lightning_mtl.metrics.base import ExactMetric


class BoxAveragePrecision(ExactMetric):
    """Mean average precision of boxes as COCO defines it, by torchmetrics' ``MeanAveragePrecision``.

    ``compute`` returns ``map`` (the mean over the classes of the average precision, averaged over the thresholds 0.5,
    0.55, ..., 0.95 of the intersection over union), ``map50`` and ``map75`` (at one threshold), and ``ap_<class>`` for
    every class with ``class_metrics``. Values without a true box are NaN. Crowd regions are handled as COCO does: a
    prediction inside one counts neither as right nor as wrong. At most 100 predictions an image count.

    Args:
        class_names: Names of the classes 1, 2, ...; label 0 is the background.
        class_metrics: Also give the average precision of every class, at about the cost of the rest.
        backend: The program that evaluates: ``"pycocotools"`` or the faster ``"faster_coco_eval"``.

    Shape:
        - predictions: list of ``{"boxes": (n, 4), "scores": (n,), "labels": (n,)}``, boxes x1 y1 x2 y2.
        - targets: list of ``{"boxes": (m, 4), "labels": (m,), "iscrowd": (m,)}``, the last optional; images with None
          are left out.

    Raises:
        ModuleNotFoundError: If the extra ``detection`` is not installed.
        ValueError: If the lists differ in length.

    Note:
        Boxes are gathered as flat tensors, so several processes may hold different numbers of images, or none;
        torchmetrics' own class gathers image by image and then waits for ever. Thresholds are those of pycocotools in
        float64; torchmetrics' defaults are rounded to float32, which moves values by up to 0.001 where a recall falls
        on a threshold.

    Example:
        >>> metric = BoxAveragePrecision(["cat"])
        >>> box, label = torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.tensor([1])
        >>> found = {"boxes": box + 1, "scores": torch.tensor([0.9]), "labels": label}
        >>> metric.update([found], [{"boxes": box, "labels": label}])
        >>> {name: round(value.item(), 2) for name, value in metric.compute().items()}
        {'map': 0.3, 'map50': 1.0, 'map75': 0.0}

    References:
        Lin, Maire, Belongie, Hays, Perona, Ramanan, Dollár, Zitnick. *Microsoft COCO: Common Objects in Context*.
        ECCV, 2014. https://arxiv.org/abs/1405.0312; the measures: https://cocodataset.org/#detection-eval
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    found: list[Tensor]
    found_counts: list[Tensor]
    true: list[Tensor]
    true_counts: list[Tensor]

    def __init__(
        self,
        class_names: Sequence[str],
        class_metrics: bool = False,
        backend: Literal["pycocotools", "faster_coco_eval"] = "pycocotools",
    ) -> None:
        super().__init__()
        if backend not in ("pycocotools", "faster_coco_eval"):
            raise ValueError(
                f"{type(self).__name__}: backend must be 'pycocotools' or 'faster_coco_eval', got {backend!r}."
            )
        try:
            __import__(backend)
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                f"{type(self).__name__}: needs {backend}: `pip install lightning-mtl[detection]` for pycocotools, "
                "`pip install faster-coco-eval` for the other."
            ) from error
        self.class_names = list(class_names)
        self.class_metrics = class_metrics
        self.backend = backend
        for name in ("found", "found_counts", "true", "true_counts"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @property
    def directions(self) -> dict[str, bool]:
        """Name of every value that ``compute`` returns -> whether higher is better."""
        classes = [f"ap_{name}" for name in self.class_names] if self.class_metrics else []
        return dict.fromkeys(["map", "map50", "map75", *classes], True)

    def update(
        self, predictions: Sequence[Mapping[str, Tensor]], targets: Sequence[Mapping[str, Tensor] | None]
    ) -> None:
        """Add a batch; images without annotation are left out."""
        if len(predictions) != len(targets):
            raise ValueError(
                f"{type(self).__name__}: there must be one target per prediction, got {len(predictions)} predictions "
                f"and {len(targets)} targets."
            )
        for found, true in zip(predictions, targets, strict=True):
            if true is None:
                continue
            labels = true["labels"]
            crowd = true.get("iscrowd", torch.zeros_like(labels))
            self._add("found", found["boxes"], found["scores"], found["labels"])
            self._add("true", true["boxes"], labels, crowd)

    def _add(self, name: str, boxes: Tensor, *columns: Tensor) -> None:
        # whole numbers below 2^24 are exact in float32
        rows = torch.cat([boxes.float().reshape(-1, 4), *(column.float().reshape(-1, 1) for column in columns)], 1)
        getattr(self, name).append(rows.flatten().to(self.device))
        getattr(self, f"{name}_counts").append(torch.tensor([float(len(rows))], device=self.device))

    def _images(self, name: str) -> list[Tensor]:
        """Return the rows of every image, six numbers each."""
        if len(getattr(self, f"{name}_counts")) == 0:
            return []
        counts = dim_zero_cat(getattr(self, f"{name}_counts")).long().tolist()
        return list(torch.split(dim_zero_cat(getattr(self, name)).view(-1, 6), counts))

    def compute(self) -> dict[str, Tensor]:
        """Return the value of every name."""
        values = dict.fromkeys(self.directions, -1.0)
        found, true = self._images("found"), self._images("true")
        if found:
            values |= self._evaluate(found, true)
        return {
            name: torch.tensor(torch.nan if value < 0 else value, dtype=torch.float32, device=self.device)
            for name, value in values.items()
        }

    def _evaluate(self, found: list[Tensor], true: list[Tensor]) -> dict[str, float]:
        from torchmetrics.detection import MeanAveragePrecision

        metric = MeanAveragePrecision(
            iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
            rec_thresholds=np.linspace(0, 1, 101).tolist(),
            class_metrics=self.class_metrics,
            backend=self.backend,
            sync_on_compute=False,
        )
        metric.warn_on_many_detections = False
        metric.to(self.device)
        metric.update(
            [{"boxes": rows[:, :4], "scores": rows[:, 4], "labels": rows[:, 5].long()} for rows in found],
            [{"boxes": rows[:, :4], "labels": rows[:, 4].long(), "iscrowd": rows[:, 5].long()} for rows in true],
        )
        result: dict[str, Any] = metric.compute()
        values = {"map": result["map"], "map50": result["map_50"], "map75": result["map_75"]}
        if self.class_metrics:
            observed = result["classes"].reshape(-1).tolist()
            for label, value in zip(observed, result["map_per_class"].reshape(-1).tolist(), strict=True):
                values[f"ap_{self.class_names[label - 1]}"] = value
        return {name: float(value) for name, value in values.items()}
