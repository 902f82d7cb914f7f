"""Regression metrics where they are hard to define."""

from __future__ import annotations

import pytest
import torch
from torchmetrics import Metric

from lightning_mtl.metrics import LabelledMAE, LabelledPearson, LabelledR2, LabelledSpearman

CONSTANT = torch.full((5,), 0.1)
VARYING = torch.arange(5.0)


@pytest.mark.parametrize("metric", [LabelledPearson(), LabelledSpearman()], ids=["pearson", "spearman"])
@pytest.mark.parametrize(("prediction", "target"), [(CONSTANT, VARYING), (VARYING, CONSTANT), (CONSTANT, CONSTANT)])
def test_correlation_with_a_constant_is_nan(metric: Metric, prediction: torch.Tensor, target: torch.Tensor) -> None:
    metric.reset()
    metric.update(prediction, target)
    assert metric.compute().isnan()


def test_r2_of_a_constant_target_or_a_single_sample_is_nan() -> None:
    for prediction, target in ((VARYING, CONSTANT), (VARYING[:1], VARYING[:1])):
        metric = LabelledR2()
        metric.update(prediction, target)
        assert metric.compute().isnan()


def test_r2_of_the_mean_is_zero() -> None:
    metric = LabelledR2()
    metric.update(torch.full((5,), 2.0), VARYING)
    assert metric.compute() == 0


def test_r2_and_pearson_hold_for_values_far_from_zero() -> None:
    target = 1e5 + torch.randn(1000, dtype=torch.float64)
    prediction = target + 0.5 * torch.randn(1000, dtype=torch.float64)
    expected = 1 - (prediction - target).square().sum() / (target - target.mean()).square().sum()
    r2, pearson = LabelledR2(), LabelledPearson()
    r2.update(prediction, target)
    pearson.update(prediction, target)
    assert r2.compute().item() == pytest.approx(expected.item(), abs=1e-5)
    assert pearson.compute().item() == pytest.approx(
        torch.corrcoef(torch.stack([prediction, target]))[0, 1].item(), abs=1e-5
    )


def test_output_without_labels_is_left_out_of_the_mean() -> None:
    target = torch.stack([VARYING, torch.full((5,), torch.nan)], 1)
    for metric in (LabelledR2(2), LabelledPearson(2), LabelledSpearman(2)):
        metric.update(target.nan_to_num(), target)
        assert metric.compute().item() == pytest.approx(1)


def test_metrics_of_one_output_read_vectors_and_columns() -> None:
    for shape in ((5,), (5, 1)):
        metric = LabelledMAE()
        metric.update(VARYING.view(5, 1), (VARYING + 1).view(shape))
        assert metric.compute() == 1
