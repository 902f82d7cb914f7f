"""Boxes follow the pixels of their objects through every joint transform."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Generator, Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from lightning_mtl.data import (
    Compose,
    FitInside,
    JointTransform,
    PhotometricJitter,
    RandomBoxCrop,
    RandomHorizontalFlip,
    RandomScaleCrop,
    Resize,
    TorchvisionTransform,
)
from lightning_mtl.data.boxes import box_area

BOXES = [(6, 5, 22, 19), (40, 8, 52, 40), (25, 30, 37, 46), (58, 20, 64, 28)]
CODES = [10, 20, 30, 40]


def sample(size: tuple[int, int] = (48, 64)) -> dict[str, Any]:
    """Four rectangles that do not touch, each of its own grey, in an image, a class map and boxes."""
    plane = torch.zeros(size, dtype=torch.uint8)
    for (x1, y1, x2, y2), code in zip(BOXES, CODES, strict=True):
        plane[y1:y2, x1:x2] = code
    return {
        "image": (plane * 6).expand(3, -1, -1).contiguous(),
        "segmentation": plane.clone(),
        "boxes": tv_tensors.BoundingBoxes(torch.tensor(BOXES).float(), format="XYXY", canvas_size=size),
        "rows": torch.arange(100, 104),
        "crowd": torch.zeros(4, dtype=torch.bool),
    }


def extent(seen: Tensor) -> list[float]:
    """The box around the pixels that are set, its lower and right end exclusive."""
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    return [float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


TRANSFORMS: dict[str, JointTransform] = {
    "RandomHorizontalFlip": RandomHorizontalFlip(1.0),
    "RandomBoxCrop": RandomBoxCrop(p=1.0),
    "RandomScaleCrop": RandomScaleCrop((1.5,)),
    "Resize-up": Resize((96, 160)),
    "Resize-down": Resize((36, 40)),
    "FitInside-wide": FitInside((100, 100)),
    "FitInside-tall": FitInside((40, 200)),
    "PhotometricJitter": PhotometricJitter(),
    "Compose": Compose([RandomBoxCrop(p=1.0), FitInside((60, 60)), RandomHorizontalFlip(1.0), PhotometricJitter()]),
    "RandomIoUCrop": TorchvisionTransform(v2.RandomIoUCrop()),
    "RandomZoomOut": TorchvisionTransform(v2.RandomZoomOut(p=1.0)),
    "RandomResizedCrop": TorchvisionTransform(
        v2.RandomResizedCrop((40, 48), interpolation=v2.InterpolationMode.NEAREST)
    ),
    "RandomRotation-90": TorchvisionTransform(v2.RandomRotation((90, 90), expand=True)),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_boxes_follow_pixels(transform: JointTransform, seed: int) -> None:
    before = sample()
    out = transform(before, Generator().manual_seed(seed))
    height, width = out["image"].shape[-2:]
    assert out["segmentation"].shape == (height, width)
    assert out["boxes"].canvas_size == (height, width)
    assert len(out["boxes"]) == len(out["rows"]) == len(out["crowd"])
    pixel = max(1.0, height / 48, width / 64)  # a resized edge may fall on either side of a pixel
    for box, row in zip(out["boxes"].tolist(), out["rows"].tolist(), strict=True):
        seen = out["segmentation"] == CODES[row - 100]
        if not seen.any():
            assert min(box[2] - box[0], box[3] - box[1]) <= pixel
            continue
        assert extent(seen) == pytest.approx(box, abs=pixel)


GEOMETRIC = {name: t for name, t in TRANSFORMS.items() if name not in ("PhotometricJitter", "Compose")}


@pytest.mark.parametrize("transform", GEOMETRIC.values(), ids=GEOMETRIC)
def test_the_image_and_its_class_map_stay_together(transform: JointTransform) -> None:
    out = transform(sample(), Generator().manual_seed(1))
    inside = torch.nn.functional.max_pool2d(out["segmentation"][None, None].float(), 5, 1, 2)[0, 0]
    flat = inside == -torch.nn.functional.max_pool2d(-out["segmentation"][None, None].float(), 5, 1, 2)[0, 0]
    assert flat.any()
    assert (out["image"][0].float() - 6 * out["segmentation"].float())[flat].abs().max() <= 6


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_a_transform_follows_its_generator_and_leaves_its_input_and_the_global_state(transform: JointTransform) -> None:
    before, state = sample(), torch.get_rng_state()
    first, again = (transform(before, Generator().manual_seed(7)) for _ in range(2))
    assert torch.get_rng_state().equal(state)
    for key, value in sample().items():
        assert before[key].equal(value)
        assert first[key].equal(again[key])


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_an_image_without_boxes_goes_through(transform: JointTransform) -> None:
    empty = {key: value[:0] if key in ("rows", "crowd") else value for key, value in sample().items()}
    empty["boxes"] = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=(48, 64))
    out = transform(empty, Generator().manual_seed(0))
    assert out["boxes"].shape == (0, 4)
    assert len(out["rows"]) == 0


def test_mirrored_twice_is_the_sample() -> None:
    flip = RandomHorizontalFlip(1.0)
    once = flip(sample(), Generator())
    twice = flip(once, Generator())
    assert once["boxes"][0].tolist() == [64 - 22, 5, 64 - 6, 19]
    assert all(twice[key].equal(value) for key, value in sample().items())


@pytest.mark.parametrize(
    ("size", "expected"), [((96, 96), (72, 96)), ((24, 200), (24, 32)), ((48, 64), (48, 64)), ((10, 9), (7, 9))]
)
def test_a_letterbox_keeps_the_shape_of_the_image(size: tuple[int, int], expected: tuple[int, int]) -> None:
    out = FitInside(size)(sample(), Generator())
    assert tuple(out["image"].shape[-2:]) == expected
    scale = torch.tensor([expected[1] / 64, expected[0] / 48] * 2)
    torch.testing.assert_close(out["boxes"].as_subclass(Tensor), torch.tensor(BOXES) * scale)


@pytest.mark.parametrize("min_visible", [0.1, 0.3, 0.9])
def test_a_crop_clips_boxes_and_makes_crowds_of_those_hardly_seen(min_visible: float) -> None:
    crowds = whole = gone = 0
    for seed in range(40):
        out = RandomBoxCrop((0.2, 0.6), min_visible=min_visible, p=1.0)(sample(), Generator().manual_seed(seed))
        height, width = out["image"].shape[-2:]
        boxes = out["boxes"].as_subclass(Tensor)
        assert (boxes >= 0).all()
        assert (boxes <= torch.tensor([width, height, width, height])).all()
        assert (box_area(boxes) > 0).all()
        visible = {code: int((out["segmentation"] == code).sum()) for code in CODES}
        assert {100 + i for i, code in enumerate(CODES) if visible[code]} == set(out["rows"].tolist())
        for row, crowd in zip(out["rows"].tolist(), out["crowd"].tolist(), strict=True):
            x1, y1, x2, y2 = BOXES[row - 100]
            share = visible[CODES[row - 100]] / ((x2 - x1) * (y2 - y1))
            assert crowd == (share < min_visible)
            crowds, whole = crowds + crowd, whole + (share == 1)
        gone += 4 - len(boxes)
    assert whole
    assert gone
    assert crowds


def test_a_crop_has_the_size_it_was_asked_for() -> None:
    for seed in range(30):
        out = RandomBoxCrop((0.4, 0.4), ratio=(0.8, 1.25), p=1.0)(sample((300, 400)), Generator().manual_seed(seed))
        height, width = out["image"].shape[-2:]
        assert height * width == pytest.approx(0.4 * 300 * 400, rel=0.01)
        assert 0.79 <= (width / 400) / (height / 300) <= 1.26


def test_a_crop_takes_place_as_often_as_told() -> None:
    out = [RandomBoxCrop((0.5, 0.5), p=0.25)(sample(), Generator().manual_seed(seed)) for seed in range(200)]
    cropped = sum(tuple(x["image"].shape[-2:]) != (48, 64) for x in out)
    assert abs(cropped / 200 - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 200)


def test_crowd_boxes_stay_crowd_boxes() -> None:
    given = {**sample(), "crowd": torch.tensor([True, False, False, False])}
    for transform in TRANSFORMS.values():
        out = transform(given, Generator().manual_seed(3))
        assert all(crowd for row, crowd in zip(out["rows"].tolist(), out["crowd"].tolist(), strict=True) if row == 100)


def test_torchvision_removes_boxes_with_their_rows() -> None:
    crop = TorchvisionTransform(v2.Compose([v2.CenterCrop((40, 30)), v2.SanitizeBoundingBoxes(min_size=6)]))
    out = crop(sample(), Generator())
    assert out["rows"].tolist() == [101, 102]  # the first is cut to 5 x 14, the last is outside


def test_torchvision_does_not_know_dense_targets() -> None:
    with pytest.raises(ValueError, match=r"image, boxes and segmentation alone, got \['depth'\]"):
        TorchvisionTransform(v2.CenterCrop(8))({**sample(), "depth": torch.ones(1, 48, 64)}, Generator())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FitInside((0, 3)), "FitInside: size must be positive"),
        (lambda: RandomBoxCrop(scale=(0.0, 1.0)), "scale must be increasing and in"),
        (lambda: RandomBoxCrop(scale=(0.5, 1.5)), "scale must be increasing and in"),
        (lambda: RandomBoxCrop(ratio=(2.0, 1.0)), "ratio must be increasing and positive"),
        (lambda: RandomBoxCrop(min_visible=2.0), r"min_visible must be in \[0, 1\]"),
        (lambda: RandomBoxCrop(p=-0.1), r"p must be in \[0, 1\]"),
    ],
)
def test_arguments_out_of_range_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
