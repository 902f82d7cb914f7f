"""Average precision of boxes against pycocotools' own evaluation."""

from __future__ import annotations

import contextlib
import copy
import io
import pickle
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor

from lightning_mtl.metrics import BoxAveragePrecision, TaskMetrics

NAMES = ["a", "b", "c"]
Entry = dict[str, Tensor]


def batch(images: int, seed: int) -> tuple[list[Entry], list[Entry | None]]:
    """Predictions near to some of the true boxes, and others; crowds, and images without boxes on either side."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    found: list[Entry] = []
    true: list[Entry | None] = []
    for i in range(images):
        n = 0 if i % 5 == 3 else int(1 + 8 * rand(1))
        corner = 100 * rand(n, 2)
        boxes = torch.cat([corner, corner + 5 + 60 * rand(n, 2)], 1)
        labels = 1 + (2 * rand(n)).long()  # class 3 does not occur
        true.append({"boxes": boxes, "labels": labels, "iscrowd": rand(n) < 0.15})
        m = 0 if i % 5 == 1 else int(12 * rand(1))
        corner = 100 * rand(m, 2)
        strangers = torch.cat([corner, corner + 5 + 60 * rand(m, 2)], 1)
        moved = boxes + 6 * (rand(n, 4) - 0.5)
        found.append(
            {
                "boxes": torch.cat([moved, strangers]),
                "scores": rand(n + m),
                "labels": torch.cat([labels, 1 + (3 * rand(m)).long()]),
            }
        )
    return found, true


def pycocos(found: list[Entry], true: list[Entry]) -> dict[str, float]:
    """The same by pycocotools alone."""
    annotations, results = [], []
    for i, entry in enumerate(true):
        crowd = entry.get("iscrowd", torch.zeros(len(entry["boxes"])))
        for (x1, y1, x2, y2), label, many in zip(entry["boxes"].tolist(), entry["labels"], crowd, strict=True):
            box = [x1, y1, x2 - x1, y2 - y1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": i,
                    "category_id": int(label),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(many),
                }
            )
    for i, entry in enumerate(found):
        for (x1, y1, x2, y2), label, score in zip(
            entry["boxes"].tolist(), entry["labels"], entry["scores"].tolist(), strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": i, "category_id": int(label), "bbox": box, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = {
            "images": [{"id": i} for i in range(len(true))],
            "annotations": annotations,
            "categories": [{"id": c + 1} for c in range(len(NAMES))],
        }
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        values = dict(zip(("map", "map50", "map75"), evaluation.stats[:3], strict=True))
        precision = evaluation.eval["precision"][:, :, :, 0, 2]  # thresholds, recalls, classes
    for c, name in enumerate(NAMES):
        column = precision[:, :, c]
        values[f"ap_{name}"] = column[column > -1].mean() if (column > -1).any() else float("nan")
    return {name: float(value) for name, value in values.items()}


def computed(batches: list[tuple[list[Entry], Any]], **options: Any) -> dict[str, float]:
    metrics = TaskMetrics({"boxes": BoxAveragePrecision(NAMES, class_metrics=True, **options)})
    for found, true in batches:
        metrics.update(found, true)
    return {name: value.item() for name, value in metrics.compute().items()}


@pytest.mark.parametrize("seed", range(4))
def test_values_are_those_of_pycocotools_with_crowds_and_images_without_boxes(seed: int) -> None:
    batches = [batch(6, seed), batch(1, seed + 10), batch(9, seed + 20)]
    expected = pycocos([f for found, _ in batches for f in found], [t for _, true in batches for t in true])
    assert 0.05 < expected["map"] < 0.95
    assert computed(batches) == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_images_that_are_not_annotated_change_nothing() -> None:
    found, true = batch(6, 0)
    some = [entry if i % 2 else None for i, entry in enumerate(true)]
    rest = ([f for i, f in enumerate(found) if i % 2], [t for t in some if t is not None])
    assert computed([(found, some)]) == pytest.approx(computed([rest]), nan_ok=True)


def test_values_are_nan_without_true_boxes() -> None:
    found, _ = batch(3, 0)
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    for batches in ([], [(found, [None] * 3)], [(found, [nothing] * 3)]):
        assert all(torch.tensor(value).isnan() for value in computed(batches).values())


def test_true_boxes_that_are_all_missed_give_zero() -> None:
    _, true = batch(3, 0)
    nothing = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    assert computed([([nothing] * 3, true)])["map"] == 0


def test_the_other_program_gives_the_same_values() -> None:
    pytest.importorskip("faster_coco_eval")
    batches = [batch(6, 0)]
    expected = computed(batches)
    assert computed(batches, backend="faster_coco_eval") == pytest.approx(expected, abs=1e-6, nan_ok=True)


def test_reset_forgets_and_copies_keep_the_state() -> None:
    metric = BoxAveragePrecision(NAMES)
    metric.update(*batch(4, 0))
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        assert other.compute() == metric.compute()
    metric.reset()
    metric.to(torch.bfloat16)
    metric.half()
    metric.update(*batch(4, 1))
    assert metric.compute()["map"] == pytest.approx(computed([batch(4, 1)])["map"])


def test_more_predictions_than_targets_are_refused() -> None:
    found, true = batch(3, 0)
    with pytest.raises(ValueError, match="one target per prediction, got 3 predictions and 2 targets"):
        BoxAveragePrecision(NAMES).update(found, true[:2])
