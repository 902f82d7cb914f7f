"""TorchJD as an oracle on random gradients, where it is exact."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from lightning_mtl import functional as F
from tests.functional.cases import gradients

torchjd = pytest.importorskip("torchjd.aggregation", reason="torchjd is not installed")

KINDS = ["random", "conflicting", "aligned", "dependent", "identical"]
every = pytest.mark.parametrize("kind", KINDS)


def draws(kind: str) -> list[Tensor]:
    return [gradients(kind, tasks, seed) for tasks in (2, 4, 9) for seed in range(3)]


def compare(rows: Tensor, weights: Tensor, expected: Tensor, rtol: float = 1e-6) -> None:
    torch.testing.assert_close(rows.T @ weights, expected, rtol=rtol, atol=rtol * float(expected.abs().max()))


@every
@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_aligned_mtl(kind: str, mode) -> None:
    for rows in draws(kind):
        compare(rows, F.aligned_mtl(rows @ rows.T, mode), torchjd.AlignedMTL(scale_mode=mode)(rows))


@pytest.mark.parametrize("kind", ["random", "conflicting", "aligned"])
def test_imtl_g(kind: str) -> None:
    for rows in draws(kind):
        compare(rows, F.imtl_g(rows @ rows.T), torchjd.IMTLG()(rows))


@every
def test_config(kind: str) -> None:
    for rows in draws(kind):
        compare(rows, F.config(rows @ rows.T), torchjd.ConFIG()(rows))


@every
def test_krum(kind: str) -> None:
    for rows in draws(kind)[3:]:
        compare(rows, F.krum(rows @ rows.T, 1, 2), torchjd.Krum(1, 2)(rows))


@every
@pytest.mark.parametrize("tau", [0.0, 0.1])
def test_pcd(kind: str, tau: float) -> None:
    for rows in draws(kind):
        compare(rows, F.pcd(rows @ rows.T, tau), torchjd.PCD(tau=tau, eps=0.0)(rows), rtol=1e-5)


def test_trimmed_mean() -> None:
    rows = gradients("random", 7)
    torch.testing.assert_close(F.trimmed_mean(rows, 2), torchjd.TrimmedMean(2)(rows))


def test_sdmgrad_and_modo() -> None:
    first, second = gradients("random", 5, 1), gradients("random", 5, 2)
    even = torch.full((5,), 0.2, dtype=torch.float64)
    expected = torchjd.SDMGradWeighting()(first @ second.T)
    torch.testing.assert_close(F.sdmgrad(first @ second.T, even)[0], expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(F.modo(first @ second.T, even), torchjd.MoDoWeighting(0.1, 0.1)(first @ second.T))


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_fairgrad_solves_the_equation_at_least_as_well(alpha: float) -> None:
    for rows in draws("aligned"):
        gramian = rows @ rows.T
        ours, theirs = F.fairgrad(gramian, alpha), torchjd.FairGradWeighting(alpha)(gramian)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
        residuals = [((gramian @ w) * w ** (1 / alpha) - 1).abs().max() for w in (ours, theirs)]
        assert residuals[0] <= residuals[1] + 1e-12


def test_mgda_is_never_longer() -> None:
    for kind in KINDS:
        for rows in draws(kind):
            assert (rows.T @ F.mgda(rows @ rows.T)).norm() <= torchjd.MGDA()(rows).norm() + 1e-12


@pytest.mark.parametrize(("ours", "theirs"), [(F.upgrad, "UPGrad"), (F.dualproj, "DualProj")])
def test_projections_on_the_dual_cone(ours, theirs: str) -> None:
    pytest.importorskip("quadprog", reason="TorchJD's projector needs quadprog")
    pytest.importorskip("qpsolvers", reason="TorchJD's projector needs qpsolvers")
    projector = importlib.import_module("torchjd.linalg").QuadprogProjector(norm_eps=0.0, reg_eps=1e-12)
    for kind in ("random", "conflicting", "aligned"):
        for rows in draws(kind):
            compare(rows, ours(rows @ rows.T), getattr(torchjd, theirs)(projector=projector)(rows))
