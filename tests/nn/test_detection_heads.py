"""The detection heads and their feature pyramid."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mtl.nn import BoxPredictions, FCOSHead, FeaturePyramid, FeatureSpec, RetinaNetHead, TimmEncoder
from tests.nn.cases import FLAT, MAPS, VECTOR, features

HEADS: dict[str, tuple[Callable[..., Any], int]] = {  # with the number of anchors per location
    "FCOS": (functools.partial(FCOSHead, pyramid_channels=64, num_convs=1), 1),
    "RetinaNet": (functools.partial(RetinaNetHead, pyramid_channels=8, scales_per_octave=2), 6),
}
heads = pytest.mark.parametrize("name", HEADS)


def predict(head: Any, batch: int = 2, size: int = 64) -> BoxPredictions:
    prediction: BoxPredictions = head(features(MAPS, batch, size))
    return prediction


@heads
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("min_stride", "extra"), [(4, 0), (8, 1), (8, 2)])
def test_head_gives_one_prediction_per_anchor(name: str, batch: int, min_stride: int, extra: int) -> None:
    build, per_location = HEADS[name]
    head = build(MAPS, 5, min_stride=min_stride, extra_levels=extra)
    prediction = predict(head, batch)
    strides = [s for s in (4, 8, 16, 32, 64, 128) if min_stride <= s <= 32 * 2**extra]
    assert list(head.pyramid.strides) == strides
    counts = [per_location * math.ceil(64 / s) ** 2 for s in strides]
    assert [len(level) for level in prediction.anchors] == counts
    assert prediction.logits.shape == (batch, sum(counts), 5)
    assert prediction.deltas.shape == (batch, sum(counts), 4)
    assert (prediction.centerness is None) == (name == "RetinaNet")
    assert prediction.size == (64, 64)


@heads
def test_every_parameter_gets_a_gradient_and_features_stay_as_they_are(name: str) -> None:
    head = HEADS[name][0](MAPS, 5)
    inputs = features(MAPS, 1)
    before = copy.deepcopy(inputs)
    prediction = head(inputs, (64, 64))
    values = [v for v in (prediction.logits, prediction.deltas, prediction.centerness) if v is not None]
    sum((v * torch.randn_like(v)).sum() for v in values).backward()
    assert [key for key, p in head.named_parameters() if p.grad is None] == []
    torch.testing.assert_close(inputs, before, rtol=0, atol=0)


@heads
def test_eval_is_deterministic_and_survives_state_dict_and_deepcopy(name: str) -> None:
    head, other = (HEADS[name][0](MAPS, 5).eval() for _ in range(2))
    other.load_state_dict(head.state_dict())
    for twin in (head, other, copy.deepcopy(head)):
        assert torch.equal(predict(twin).logits, predict(head).logits)


@heads
def test_classes_start_at_the_prior_probability(name: str) -> None:
    head = HEADS[name][0](MAPS, 5, prior_probability=0.02)
    assert predict(head).logits.sigmoid().mean().item() == pytest.approx(0.02, abs=0.002)


@heads
def test_anchors_lie_at_multiples_of_the_strides_also_when_these_do_not_divide_the_image(name: str) -> None:
    build, per_location = HEADS[name]
    head = build(FeatureSpec("maps", (4, 6), (8, 16)), 3, extra_levels=0)
    prediction = head([torch.zeros(1, 4, 5, 7), torch.zeros(1, 6, 3, 4)], (36, 52))
    assert prediction.size == (36, 52)
    for level, stride, (height, width) in zip(prediction.anchors, (8, 16), ((5, 7), (3, 4)), strict=True):
        centre = ((level[:, :2] + level[:, 2:]) / 2).view(height, width, per_location, 2)
        expected = torch.stack(torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"), -1) * stride
        torch.testing.assert_close(centre, expected.flip(-1)[:, :, None].expand_as(centre).float(), atol=0.5, rtol=0)


def test_anchors_of_retinanet_have_the_papers_sizes_and_shapes() -> None:
    head = RetinaNetHead(FeatureSpec("maps", (4, 6), (8, 16)), 3, pyramid_channels=8, extra_levels=0)
    anchors = predict_anchors(head)
    extent = anchors[0][:9, 2:] - anchors[0][:9, :2]
    area, ratio = extent.prod(1).sqrt().view(3, 3), (extent[:, 1] / extent[:, 0]).view(3, 3)
    torch.testing.assert_close(area.mean(0), 32 * torch.tensor([1, 2 ** (1 / 3), 2 ** (2 / 3)]), atol=1.0, rtol=0)
    torch.testing.assert_close(ratio.mean(1), torch.tensor([0.5, 1, 2]), atol=0.05, rtol=0)


def predict_anchors(head: Any) -> tuple[Tensor, ...]:
    anchors: tuple[Tensor, ...] = head([torch.zeros(1, 4, 4, 4), torch.zeros(1, 6, 2, 2)]).anchors
    return anchors


@heads
def test_anchors_are_exact_in_half_precision(name: str) -> None:
    head = HEADS[name][0](MAPS, 5)
    expected = predict(head).anchors
    head.bfloat16()
    half = head([f.bfloat16() for f in features(MAPS, 1)])
    assert half.logits.dtype == torch.bfloat16
    assert all(torch.equal(a, b) for a, b in zip(half.anchors, expected, strict=True))


@heads
def test_timm_maps_are_read(name: str) -> None:
    encoder = TimmEncoder("mobilenetv3_small_050", "maps")
    head = HEADS[name][0](encoder.feature_spec, 2)
    assert head(encoder(torch.randn(2, 3, 64, 96)), (64, 96)).logits.isfinite().all()


@heads
@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (VECTOR, {}, "features must be of kind 'maps', got 'vector'"),
        (FLAT, {}, r"must have strides that double from min_stride=8 on, got strides \(16, 16, 16\)"),
        (MAPS, {"min_stride": 6}, "must have strides that double from min_stride=6"),
        (MAPS, {"extra_levels": 3}, "extra_levels must be 0, 1 or 2, got 3"),
        (MAPS, {"prior_probability": 1.0}, r"prior_probability must be in \(0, 1\), got 1.0"),
        (MAPS, {"out_channels": 0}, "out_channels must be positive, got 0"),
    ],
    ids=["vector", "flat", "min_stride", "extra_levels", "prior", "out_channels"],
)
def test_wrong_argument_raises(name: str, spec: FeatureSpec, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HEADS[name][0](spec, **({"out_channels": 2} | options))


def test_arguments_of_one_head_are_checked() -> None:
    with pytest.raises(ValueError, match="pyramid_channels must be a multiple of 32, got 48"):
        FCOSHead(MAPS, 2, pyramid_channels=48)
    with pytest.raises(ValueError, match="num_convs must not be negative, got -1"):
        FCOSHead(MAPS, 2, num_convs=-1)
    with pytest.raises(ValueError, match=r"must be positive, got 4\.0, 0"):
        RetinaNetHead(MAPS, 2, scales_per_octave=0)


def test_pyramid_has_one_width_and_its_strides() -> None:
    pyramid = FeaturePyramid(MAPS, 16, min_stride=4, extra_levels=1)
    levels = pyramid(features(MAPS, 2))
    assert [tuple(level.shape) for level in levels] == [(2, 16, 64 // s, 64 // s) for s in (4, 8, 16, 32, 64)]
    assert pyramid.image_size(levels) == (64, 64)
