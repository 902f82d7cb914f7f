"""Angles where they are hard to compute."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_mtl.metrics import MeanAngle, MedianAngle, WithinAngle


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 0.01, 30.0, 90.0, 179.99, 180.0])
def test_small_and_large_angles_are_exact(degrees: float) -> None:
    angle = math.radians(degrees)
    metric = MeanAngle()
    metric.update(torch.tensor([[math.cos(angle), math.sin(angle), 0.0]]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert metric.compute().item() == pytest.approx(degrees, rel=1e-6, abs=1e-5)


def test_a_zero_prediction_is_ninety_degrees_off() -> None:
    metric = MeanAngle()
    metric.update(torch.zeros(1, 3), torch.tensor([[1.0, 0.0, 0.0]]))
    assert metric.compute() == 90


def test_nan_and_zero_targets_are_no_labels() -> None:
    metric = MeanAngle()
    target = torch.tensor([[0.0, 0.0, 0.0], [torch.nan, 0.0, 1.0], [0.0, 0.0, 1.0]])
    metric.update(torch.tensor([[0.0, 0.0, 1.0]] * 3), target)
    assert metric.compute() == 0
    assert metric.histogram.sum() == 1


def test_median_of_an_even_number_is_the_mean_of_the_middle_two() -> None:
    metric = MedianAngle()
    angles = torch.tensor([10.0, 20.0, 40.0, 80.0]).deg2rad()
    prediction = torch.stack([angles.cos(), angles.sin(), torch.zeros(4)], 1)
    metric.update(prediction, torch.tensor([[1.0, 0.0, 0.0]] * 4))
    assert metric.compute().item() == pytest.approx(30, abs=0.0101)


@pytest.mark.parametrize("degrees", [0.0, 181.0, 11.255])
def test_bound_between_two_bins_is_refused(degrees: float) -> None:
    with pytest.raises(ValueError, match=f"WithinAngle: degrees must be a multiple of 0.01 .* got {degrees}"):
        WithinAngle(degrees)


def test_prediction_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"MeanAngle: .* got \(1, 3, 2, 2\) and \(1, 3, 4, 4\); resize"):
        MeanAngle().update(torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 4, 4))
