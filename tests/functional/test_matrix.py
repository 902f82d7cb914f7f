"""Aggregators of the gradient matrix itself."""

from __future__ import annotations

import torch

from lightning_mtl import functional as F


def test_graddrop_is_the_sum_where_all_signs_agree() -> None:
    rows = torch.rand(4, 9, dtype=torch.float64) + 0.1
    torch.testing.assert_close(F.graddrop(rows, torch.rand(9)), rows.sum(0))
    torch.testing.assert_close(F.graddrop(-rows, torch.rand(9)), -rows.sum(0))


def test_graddrop_keeps_one_sign_per_column() -> None:
    rows = torch.randn(5, 50, dtype=torch.float64)
    got = F.graddrop(rows, torch.rand(50))
    positive, negative = rows.clamp(min=0).sum(0), rows.clamp(max=0).sum(0)
    assert (torch.isclose(got, positive) | torch.isclose(got, negative)).all()


def test_graddrop_is_the_expected_share_on_average() -> None:
    """A column is positive with probability P: the mean is P times its positive and 1 - P times its negative part."""
    rows = torch.tensor([[3.0], [-1.0]], dtype=torch.float64).expand(2, 20000)
    got = F.graddrop(rows, torch.linspace(0, 1, 20000, dtype=torch.float64)).mean()
    torch.testing.assert_close(got, torch.tensor(0.75 * 3 - 0.25 * 1, dtype=torch.float64), rtol=1e-3, atol=0.0)


def test_graddrop_with_full_leak_is_the_sum() -> None:
    rows = torch.randn(3, 7, dtype=torch.float64)
    torch.testing.assert_close(F.graddrop(rows, torch.rand(7), torch.ones(3)), rows.sum(0))
    features = torch.randn(4, 7, dtype=torch.float64)
    gradients = torch.randn(3, 4, 7, dtype=torch.float64)
    torch.testing.assert_close(F.graddrop_features(features, gradients, torch.rand(7), 1.0), gradients.sum(0))


def test_graddrop_of_zero_columns_is_zero() -> None:
    assert torch.equal(F.graddrop(torch.zeros(3, 4), torch.rand(4)), torch.zeros(4))
    assert torch.equal(F.graddrop_features(torch.zeros(2, 4), torch.zeros(3, 2, 4), torch.rand(4)), torch.zeros(2, 4))


def test_graddrop_features_takes_maps_and_a_leak_per_task() -> None:
    features = torch.randn(2, 3, 4, 4)
    gradients = torch.randn(5, 2, 3, 4, 4)
    got = F.graddrop_features(features, gradients, torch.rand(3, 4, 4), torch.linspace(0, 1, 5))
    assert got.shape == features.shape
    assert torch.isfinite(got).all()


def test_trimmed_mean_ignores_outliers() -> None:
    rows = torch.tensor([[1.0, 5.0], [2.0, -1e9], [3.0, 6.0], [1e9, 7.0], [-1e9, 6.0]])
    torch.testing.assert_close(F.trimmed_mean(rows, 1), torch.tensor([2.0, 17 / 3]))
    torch.testing.assert_close(F.trimmed_mean(rows, 2), rows.median(0).values)
    torch.testing.assert_close(F.trimmed_mean(rows[:1], 0), rows[0])
