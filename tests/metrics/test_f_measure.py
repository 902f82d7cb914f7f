"""F-measures of edges and saliency."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.ndimage
import scipy.optimize
import torch
from torch import Tensor

from lightning_mtl.metrics import ODSF, MaxF
from lightning_mtl.metrics.f_measure import dilate, thin_edges


def line(angle: float, size: int = 41, width: float = 3.0) -> Tensor:
    """A blurred line through the middle of the map."""
    y, x = torch.meshgrid(torch.arange(size) - size // 2, torch.arange(size) - size // 2, indexing="ij")
    radians = np.radians(angle)
    distance = x * np.sin(radians) - y * np.cos(radians)
    return torch.exp(-(distance**2) / (2 * width**2)).float().view(1, 1, size, size)


@pytest.mark.parametrize("radius", [0.0, 0.7, 1.0, 1.5, 2.3, 4.0, 30.0])
def test_dilation_is_the_maximum_over_a_disc(radius: float) -> None:
    maps = torch.rand(2, 1, 9, 13)
    r = int(radius)
    y, x = np.mgrid[-r : r + 1, -r : r + 1]
    disc = np.hypot(y, x) <= radius
    expected = [scipy.ndimage.grey_dilation(m, footprint=disc, mode="constant", cval=0.0) for m in maps[:, 0].numpy()]
    np.testing.assert_array_equal(dilate(maps, radius)[:, 0].numpy(), np.stack(expected))


@pytest.mark.parametrize("angle", [0, 20, 45, 70, 90, 110, 135, 160])
def test_thinning_leaves_the_crest_of_a_line(angle: int) -> None:
    thinned = thin_edges(line(angle))[0, 0, 6:-6, 6:-6]
    crest = line(angle)[0, 0, 6:-6, 6:-6]
    kept = thinned > 0.01  # the lowest threshold
    assert (crest[kept] > np.exp(-(0.75**2) / 18)).all(), "pixels off the crest were kept"
    along = kept.any(1) if abs(np.sin(np.radians(angle))) > 0.7 else kept.any(0)
    assert along.all(), "the line has gaps"
    assert kept.sum() < 2 * len(kept)


def test_thinning_keeps_thin_lines() -> None:
    edge = torch.zeros(1, 1, 20, 20)
    edge[..., 7, :] = 0.8
    edge[..., :, 12] = 0.8
    assert (thin_edges(edge) > 0).sum() >= 39 - 9  # the crossing may go


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (2, 1.0), (3, 0.0)])
def test_edges_match_within_the_tolerance_only(shift: int, expected: float) -> None:
    target = torch.zeros(1, 1, 30, 40)
    target[..., 15, :] = 1
    metric = ODSF(tolerance=2 / 50)  # two pixels
    metric.update(0.5 * target.roll(shift, dims=2), target)
    assert metric.compute() == expected


@pytest.mark.parametrize("seed", range(3))
def test_ods_f_is_no_less_than_with_one_to_one_matches(seed: int) -> None:
    generator = np.random.default_rng(seed)
    prediction, target = generator.random((10, 12)) < 0.15, generator.random((10, 12)) < 0.15
    tolerance = 0.1
    metric = ODSF(tolerance, thin=False, num_thresholds=1)
    metric.update(torch.tensor(prediction).float().view(1, 1, 10, 12), torch.tensor(target).float().view(1, 1, 10, 12))
    distance = np.hypot(*(np.argwhere(prediction)[:, None] - np.argwhere(target)[None]).transpose(2, 0, 1))
    near = distance <= tolerance * np.hypot(10, 12)
    rows, columns = scipy.optimize.linear_sum_assignment(-near.astype(float))
    matched = near[rows, columns].sum()
    f = 2 * matched / (prediction.sum() + target.sum())
    assert metric.compute().item() >= f
    assert metric.compute().item() == pytest.approx(f, abs=0.3)


def test_thick_predictions_are_thinned_before_they_are_judged() -> None:
    target = torch.zeros(1, 1, 41, 41)
    target[..., 20, :] = 1
    values = []
    for thin in (True, False):
        metric = ODSF(tolerance=0.0075, thin=thin)  # less than one pixel
        metric.update(0.3 * line(0) + 0.1 * torch.rand(1, 1, 41, 41) * line(0), target)
        values.append(metric.compute().item())
    assert values[0] > values[1]


def test_ignored_pixels_count_neither_as_edges_nor_as_mistakes() -> None:
    target = torch.zeros(1, 1, 20, 20)
    target[..., 10, :] = 1
    target[..., 12:, :] = 255
    prediction = torch.zeros(1, 1, 20, 20)
    prediction[..., 10, :] = 0.6
    prediction[..., 15, :] = 0.9
    metric = ODSF()
    metric.update(prediction, target)
    assert metric.compute() == 1


@pytest.mark.parametrize("metric", [ODSF(), MaxF()], ids=["ods_f", "max_f"])
def test_predicting_nothing_where_there_is_something_is_zero_and_the_reverse_is_undefined(metric: ODSF | MaxF) -> None:
    something = torch.ones(1, 1, 8, 8)
    metric.reset()
    metric.update(0 * something, something)
    assert metric.compute() == 0
    metric.reset()
    metric.update(something, 0 * something)
    assert metric.compute().isnan()


@pytest.mark.parametrize("metric", [ODSF(), MaxF()], ids=["ods_f", "max_f"])
def test_a_single_pixel_is_enough(metric: ODSF | MaxF) -> None:
    metric.reset()
    metric.update(torch.full((1, 1, 1, 1), 0.5), torch.ones(1, 1, 1, 1))
    assert metric.compute() == 1


def test_threshold_is_the_same_for_all_images() -> None:
    metric = MaxF(beta_squared=1.0)
    # Alone each image has a perfect threshold, together they have none.
    metric.update(torch.tensor([[0.9, 0.6]]), torch.tensor([[1.0, 0.0]]))
    assert metric.compute() == 1
    metric.update(torch.tensor([[0.4, 0.1]]), torch.tensor([[1.0, 0.0]]))
    assert metric.compute().item() == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MaxF(beta_squared=0.0), "MaxF: beta_squared must be positive, got 0.0"),
        (lambda: ODSF(tolerance=1.0), r"ODSF: tolerance must be in \[0, 1\), got 1.0"),
        (lambda: ODSF(num_thresholds=0), "ODSF: num_thresholds must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range_are_refused(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]
