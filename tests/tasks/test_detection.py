"""What every detection task does."""

from __future__ import annotations

import copy
import inspect
import pickle
import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection import fcos, retinanet

from lightning_mtl.nn.recorded import describe
from lightning_mtl.tasks import FCOS, RetinaNet, Task
from tests.tasks.cases import DETECTION, FCOS_HEAD, RETINANET_HEAD, DetectionCase
from tests.tasks.detections import SIZE, SPEC, TinyMaps, annotation, boxes, built, features, target

every = pytest.mark.parametrize("case", DETECTION, ids=lambda c: c.id)


def raw(task: Any, n: int) -> Any:
    with torch.no_grad():
        return task(features(n), SIZE)


def part_of(prediction: Any, rows: slice) -> Any:
    """The raw prediction of some of the images."""
    cut = {
        name: value[rows] for name, value in prediction._asdict().items() if isinstance(value, Tensor) and value.ndim
    }
    return prediction._replace(**cut)


# ---------------------------------------------------------------------- the contract of tasks
@every
@pytest.mark.parametrize("n", [1, 4])
def test_loss_is_the_sum_of_its_parts_and_reaches_every_parameter(case: DetectionCase, n: int) -> None:
    task = built(case)
    prediction, given = task(features(n), SIZE), target(n)
    parts = task.loss_parts(prediction, given)
    assert tuple(sorted(parts)) == case.parts
    torch.manual_seed(1)
    loss = task.loss(prediction, given)
    loss.backward()
    assert loss.shape == ()
    assert torch.isfinite(loss)
    assert loss.item() == pytest.approx(sum(part.item() for part in parts.values()), rel=1e-6)
    missing = [name for name, p in task.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []


@every
def test_num_labelled_counts_the_annotated_images_and_the_loss_is_their_mean(case: DetectionCase) -> None:
    task, given = built(case), target(5)
    prediction = raw(task, 5)
    first, rest = slice(0, 2), slice(2, 5)
    counts = [task.num_labelled(given[rows]) for rows in (first, rest)]
    assert [int(count) for count in counts] == [2, 2]
    assert all(count.shape == () and count.dtype == torch.int64 for count in counts)
    if not case.joins:
        pytest.skip("divided by the positives of the batch")
    joined = sum(task.loss(part_of(prediction, rows), given[rows]) * 2 for rows in (first, rest)) / 4
    torch.testing.assert_close(task.loss(prediction, given), joined)


@every
def test_without_annotation_loss_and_gradients_are_exactly_zero_and_metrics_are_untouched(case: DetectionCase) -> None:
    task = built(case)
    prediction = task(features(3), SIZE)
    loss = task.loss(prediction, [None] * 3)
    loss.backward()
    assert loss == 0
    assert task.num_labelled([None] * 3) == 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in task.parameters())
    task.update_metrics(prediction, [None] * 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(value.isnan() for value in task.metrics.compute().values())


@every
def test_images_without_objects_are_background_and_not_skipped(case: DetectionCase) -> None:
    task = built(case)
    prediction = task(features(2), SIZE)
    assert task.num_labelled([annotation(0), annotation(0)]) == 2
    parts = task.loss_parts(prediction, [annotation(0), annotation(0)])
    assert parts["classification"] > 0
    assert parts["box"] == 0
    sum(parts.values()).backward()
    assert all(p.grad is not None for p in task.parameters())


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_scored_and_read_in_float32(case: DetectionCase, dtype: torch.dtype) -> None:
    task, given = built(case), target(4)
    prediction = raw(task, 4)
    half = prediction._replace(logits=prediction.logits.to(dtype), deltas=prediction.deltas.to(dtype))
    rounded = half._replace(logits=half.logits.float(), deltas=half.deltas.float())
    loss = task.loss(half, given)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, task.loss(rounded, given))
    for found, expected in zip(task.predict(half), task.predict(rounded), strict=True):
        torch.testing.assert_close(found, expected)
    task.update_metrics(half, given)


@every
def test_forward_runs_under_autocast_with_exact_anchors(case: DetectionCase) -> None:
    task = built(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = task(features(4), SIZE)
        loss = task.loss(prediction, target(4))
    assert prediction.logits.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(prediction.anchors, raw(task, 1).anchors, strict=True))
    assert loss.dtype == torch.float32
    loss.backward()


@every
def test_detections_are_sorted_valid_and_few(case: DetectionCase) -> None:
    task = built(case)
    task.score_thresh, task.detections_per_img = 0.005, 7
    for found in task.predict(raw(task, 2)):
        assert sorted(found) == ["boxes", "labels", "scores"]
        assert 0 < len(found["boxes"]) <= 7
        assert found["labels"].dtype == torch.int64
        assert ((found["labels"] >= 1) & (found["labels"] <= 3)).all()
        assert (found["scores"].diff() <= 0).all()
        assert (found["scores"] > 0.005).all()
        assert (found["boxes"] >= 0).all()
        assert (found["boxes"][:, 2] <= SIZE[1]).all()
        assert (found["boxes"][:, 3] <= SIZE[0]).all()
        assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()


@every
def test_predictions_are_clipped_to_the_image_before_padding_in_the_metrics(case: DetectionCase) -> None:
    task = built(case)
    task.score_thresh = 0.005
    (found,) = task.detections(raw(task, 1), [(32, 40)])
    assert len(found["boxes"]) > 0
    assert found["boxes"][:, 2].max() <= 40
    assert found["boxes"][:, 3].max() <= 32
    seen = []
    task.metrics.update = lambda predictions, targets: seen.extend(predictions)  # type: ignore[method-assign]
    task.update_metrics(raw(task, 2), [annotation(2, size=torch.tensor([32, 40])), annotation(2)])
    assert seen[0]["boxes"][:, 2].max() <= 40
    assert seen[1]["boxes"][:, 2].max() > 40


@every
def test_crowds_are_neither_objects_nor_background(case: DetectionCase) -> None:
    task = built(case)
    prediction = raw(task, 1)
    whole = torch.tensor([[0.0, 0.0, SIZE[1], SIZE[0]]])
    only_crowd = {"boxes": whole, "labels": torch.tensor([1]), "iscrowd": torch.tensor([True])}
    background = task.loss_parts(prediction, [annotation(0)])["classification"]
    parts = task.loss_parts(prediction, [only_crowd])
    assert parts["box"] == 0
    # what remains is the border, whose anchors have their centre on the edge of the region
    assert parts["classification"] < 0.5 * background
    both = {key: torch.cat([only_crowd[key], value]) for key, value in annotation(1).items()}
    one = {key: value[1:] for key, value in both.items()}
    both["iscrowd"] = torch.tensor([True, False])
    torch.testing.assert_close(
        task.loss_parts(prediction, [both])["box"], task.loss_parts(prediction, [one])["box"], rtol=0, atol=0
    )


@every
def test_metrics_have_names_and_directions(case: DetectionCase) -> None:
    task = built(case)
    from lightning_mtl.metrics import directions

    names = ["map", "map50", "map75"]
    if "batch" in case.id:
        names += ["ap_a", "ap_b", "ap_c"]
    assert directions(task.metrics) == dict.fromkeys(names, True)
    task.update_metrics(raw(task, 4), target(4))
    values = task.metrics.compute()
    assert list(values) == names
    assert all(value.shape == () and value.dtype == torch.float32 for value in values.values())


@every
def test_true_boxes_as_predictions_are_perfect(case: DetectionCase) -> None:
    task, given = case.build(), target(8)
    perfect = [{key: value for key, value in (entry or annotation(0)).items() if key != "iscrowd"} for entry in given]
    perfect = [entry | {"scores": torch.ones(len(entry["labels"]))} for entry in perfect]
    task.metrics.update(perfect, given)
    assert task.metrics.compute()["map"] == 1
    assert set(task.class_ap().values()) == {1.0}
    assert list(task.class_ap()) == task.class_names


@every
def test_task_survives_deepcopy_pickle_and_state_dict(case: DetectionCase) -> None:
    task, given = built(case), target(4)
    prediction = raw(task, 4)
    task.update_metrics(prediction, given)
    inputs = features(2)
    other = built(case)
    other.load_state_dict(task.state_dict())
    assert set(task.state_dict()) == {name for name, _ in task.named_parameters()}
    for twin in (copy.deepcopy(task), pickle.loads(pickle.dumps(task)), other):
        assert torch.equal(twin(inputs, SIZE).logits, task(inputs, SIZE).logits)
        assert twin.loss(prediction, given) == task.loss(prediction, given)
    torch.testing.assert_close(copy.deepcopy(task).metrics.compute(), task.metrics.compute(), equal_nan=True)


@every
def test_task_is_rebuilt_from_its_recorded_arguments(case: DetectionCase) -> None:
    parser = ArgumentParser()
    parser.add_argument("--task", type=Task)
    task = case.build()
    again = parser.instantiate_classes(parser.parse_object({"task": describe(task)})).task
    assert type(again) is type(task)
    assert again.class_names == task.class_names
    again.build_head(SPEC)
    again.head.load_state_dict(built(case).head.state_dict())


@every
def test_forward_exports_in_one_graph(case: DetectionCase) -> None:
    if not case.joins:
        pytest.skip("the same graph as with the other normalisation")
    task = built(case).eval()

    class Deployed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.task = task

        def forward(self, inputs: Any) -> Any:
            prediction = self.task(inputs, SIZE)
            return prediction.logits, prediction.deltas, torch.cat(prediction.anchors)

    inputs = features(1)
    exported = torch.export.export(Deployed(), (inputs,))
    torch.testing.assert_close(exported.module()(inputs), Deployed()(inputs))


@every
def test_boxes_are_drawn_over_their_images_in_the_colour_of_their_class(case: DetectionCase) -> None:
    task = case.build()
    images = torch.full((2, 3, 2 * SIZE[0], 2 * SIZE[1]), 255, dtype=torch.uint8)
    entry = {"boxes": torch.tensor([[10.0, 20.0, 40.0, 50.0]]), "labels": torch.tensor([2])}
    drawn = task.draw(images, [entry, None], scale=2)
    assert drawn.shape == images.shape
    assert drawn[0, :, 99, 40].tolist() == [0, 128, 0]  # lower edge of the box
    assert (drawn[0, :, 60, 50] == 255).all()
    assert (drawn[1] == 127).all()
    assert (images == 255).all()
    weak = entry | {"scores": torch.tensor([task.draw_score_thresh - 0.01])}
    assert (task.draw(images[:1], [weak], 2) == 255).all()
    strong = entry | {"scores": torch.tensor([0.99])}
    assert not (task.draw(images[:1], [strong], 2) == 255).all()
    assert task.render([entry]).shape == (0, 3, 1, 1)


# ---------------------------------------------------------------------- targets
BAD: list[tuple[Any, type[Exception], str]] = [
    ({"boxes": torch.zeros(1, 4)}, TypeError, r"target\[1\] must be None or a mapping with 'boxes' and 'labels'"),
    (annotation(2) | {"boxes": torch.zeros(2, 5)}, ValueError, r"target\[1\]\['boxes'\] must have the shape \(n, 4\)"),
    (annotation(2) | {"boxes": boxes(2).long()}, TypeError, r"\['boxes'\] must be float32, got torch.int64"),
    (annotation(2) | {"labels": torch.ones(2)}, TypeError, r"\['labels'\] must be int64, got torch.float32"),
    (annotation(2) | {"labels": torch.ones(3).long()}, ValueError, r"\['labels'\] must have the shape \(2,\)"),
    (annotation(2) | {"labels": torch.tensor([1, 0])}, ValueError, r"labels in 1..3, got 0 in row 1; 0 is the back"),
    (annotation(2) | {"labels": torch.tensor([1, 4])}, ValueError, r"labels in 1..3, got 4 in row 1"),
    (annotation(2) | {"boxes": torch.tensor([[0, 0, 5.0, 5], [0, 0, torch.nan, 5]])}, ValueError, "finite x1 < x2"),
    (annotation(1) | {"boxes": torch.tensor([[8.0, 0, 4, 5]])}, ValueError, r"got \[8.0, 0.0, 4.0, 5.0\] in row 0"),
    (annotation(2) | {"iscrowd": torch.zeros(1)}, ValueError, r"\['iscrowd'\] must have the shape \(2,\)"),
    (annotation(2) | {"labels": [1, 2]}, TypeError, r"\['labels'\] must be a tensor, got list"),
]


@pytest.mark.parametrize(("entry", "error", "message"), BAD, ids=[m[-25:] for _, _, m in BAD])
def test_bad_target_is_refused_with_its_place(entry: Any, error: type[Exception], message: str) -> None:
    task = built(DETECTION[0])
    with pytest.raises(error, match=f"^FCOS: .*{message}"):
        task.loss(raw(task, 2), [annotation(3), entry])


def test_target_of_another_form_is_refused() -> None:
    task = built(DETECTION[0])
    with pytest.raises(TypeError, match="FCOS: target must be a list with one mapping per image, got dict"):
        task.loss(raw(task, 2), {"boxes": boxes(2)})
    with pytest.raises(ValueError, match="FCOS: target must have one entry per image, got 3 for 2"):
        task.loss(raw(task, 2), [annotation(1)] * 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be positive, got 0"),
        ({"class_names": ["a", "a", "b"]}, "class_names must be 3 different names"),
        ({"score_thresh": 1.5}, r"score_thresh must be in \[0, 1\], got 1.5"),
        ({"detections_per_img": 0}, "detections_per_img must be positive, got 0"),
        ({"topk_candidates": 0}, "topk_candidates must be positive, got 0"),
        ({"normalization": "none"}, "normalization must be 'image' or 'batch', got 'none'"),
        ({"center_sampling_radius": 0.0}, "center_sampling_radius must be positive, got 0.0"),
        ({"backend": "mine"}, "backend must be 'pycocotools' or 'faster_coco_eval', got 'mine'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_argument_raises(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FCOS(**({"num_classes": 3} | arguments))


def test_thresholds_of_the_matcher_must_be_in_order() -> None:
    with pytest.raises(ValueError, match=r"0 < bg_iou_thresh <= fg_iou_thresh <= 1, got 0.6 and 0.5"):
        RetinaNet(3, bg_iou_thresh=0.6)


# ---------------------------------------------------------------------- torchvision as the oracle
class Backbone(nn.Module):
    def __init__(self, encoder: nn.Module, pyramid: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder, self.pyramid, self.out_channels = encoder, pyramid, channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return OrderedDict((str(i), level) for i, level in enumerate(self.pyramid(self.encoder(images))))


def torchvisions(kind: str, encoder: nn.Module, head: Any, size: tuple[int, int]) -> nn.Module:
    """torchvision's model on these layers."""
    channels = 32 if kind == "FCOS" else 8
    theirs: Any = fcos.FCOSHead(32, 1, 3, 1) if kind == "FCOS" else retinanet.RetinaNetHead(8, 9, 3)
    theirs.classification_head, theirs.regression_head = head.classification, head.regression
    return getattr(detection, kind)(
        Backbone(encoder, head.pyramid, channels),
        3,
        min_size=min(size),
        max_size=max(size),
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        anchor_generator=head.anchors,
        head=theirs,
        score_thresh=0.0101,
        nms_thresh=0.6,
        detections_per_img=20,
    )


def pair(kind: str, normalization: str) -> tuple[TinyMaps, Any, nn.Module]:
    encoder = TinyMaps()
    head = FCOS_HEAD if kind == "FCOS" else RETINANET_HEAD
    cls: Any = FCOS if kind == "FCOS" else RetinaNet
    options = {"score_thresh": 0.0101, "nms_thresh": 0.6, "detections_per_img": 20}
    task = cls(3, head=head, normalization=normalization, **options)
    task.build_head(SPEC)
    for layer in task.head.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # so that scores and boxes differ
    if kind == "FCOS":  # no empty boxes, which torchvision keeps
        nn.init.constant_(task.head.regression.bbox_reg.bias, 3.0)
    return encoder, task, torchvisions(kind, encoder, task.head, SIZE)


@pytest.mark.parametrize("kind", ["FCOS", "RetinaNet"])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_gradient_equal_those_of_torchvisions_model_on_the_same_weights(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    encoder, task, model = pair(kind, "batch" if kind == "FCOS" else "image")
    images, given = torch.randn(3, 3, *SIZE), [annotation(5), annotation(0), annotation(2)]
    ours = task.loss_parts(task(encoder(images), SIZE), given)
    shifted = [{"boxes": t["boxes"], "labels": t["labels"] - 1} for t in given]
    theirs = model.train()(list(images), shifted)
    names = {"classification": "classification", "box": "bbox_regression", "centerness": "bbox_ctrness"}
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[names[name]], rtol=1e-5, atol=1e-6)
    assert len(ours) == len(theirs)
    mine = torch.autograd.grad(sum(ours.values()), encoder.fine.weight)[0]
    other = torch.autograd.grad(sum(theirs.values()), encoder.fine.weight)[0]
    torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["FCOS", "RetinaNet"])
def test_detections_equal_those_of_torchvisions_model_on_the_same_weights(kind: str) -> None:
    encoder, task, model = pair(kind, "image")
    images = torch.randn(2, 3, *SIZE)
    with torch.no_grad():
        ours, theirs = task.predict(task(encoder(images), SIZE)), model.eval()(list(images))
    for mine, other in zip(ours, theirs, strict=True):
        assert 10 < len(mine["boxes"]) <= 20
        torch.testing.assert_close(mine["boxes"], other["boxes"])
        torch.testing.assert_close(mine["scores"], other["scores"])
        assert torch.equal(mine["labels"], other["labels"] + 1)


def test_one_image_is_normalised_alike_by_image_and_by_batch() -> None:
    task = built(DETECTION[0])
    prediction, given = raw(task, 1), [annotation(5)]
    by_image = task.loss(prediction, given)
    task.normalization = "batch"
    torch.testing.assert_close(task.loss(prediction, given), by_image)


def test_a_location_is_trained_on_the_smallest_box_in_the_range_of_its_level() -> None:
    task = built(DETECTION[0])
    levels = raw(task, 1).anchors
    middle = torch.tensor([48.0, 32.0])
    nested = torch.stack([torch.cat([middle - half, middle + half]) for half in (36.0, 24.0, 10.0)])
    match = task.match(levels, nested)
    fine = {tuple(((a[:2] + a[2:]) / 2).tolist()): int(m) for a, m in zip(levels[0], match, strict=False)}
    assert fine[(48.0, 32.0)] == 2
    assert fine[(40.0, 32.0)] == 2  # within 1.5 strides of the centre and inside
    assert fine[(40.0, 24.0)] == 2
    assert fine[(32.0, 32.0)] == -1  # 2 strides away
    assert fine[(0.0, 0.0)] == -1
    coarse = match[len(levels[0]) :]
    assert (coarse == -1).all()  # 36 + 24 < 4 * 16
    big = torch.tensor([[-40.0, -40.0, 130.0, 110.0]])
    assert (task.match(levels, big)[len(levels[0]) :] == 0).any()


def test_the_extra_is_named_when_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install lightning-mtl\[detection\]"):
        FCOS(3)


def test_abstract_base_names_what_is_missing() -> None:
    from lightning_mtl.tasks import DetectionTask

    assert inspect.isabstract(DetectionTask)
