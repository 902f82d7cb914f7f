"""Weights and gradients computed by LibMTL and TorchJD on known task gradients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mtl.balancers import (
    COSMOS,
    DWA,
    FAMO,
    IMTLL,
    PBI,
    Balancer,
    EqualWeighting,
    FixedWeighting,
    GeometricLoss,
    GradNorm,
    LogSmoothTchebycheff,
    RandomLossWeighting,
    SmoothTchebycheff,
    UncertaintyWeighting,
)

FILE = Path(__file__).parents[1] / "golden" / "gradient-weightings.json"
CASES = json.loads(FILE.read_text())["cases"]


def cases(*methods: str) -> pytest.MarkDecorator:
    found = [case for case in CASES if case["method"] in methods]
    assert found
    ids = [f"{case['method']}-{case['kind']}-{len(case['inputs']['J'])}" for case in found]
    return pytest.mark.parametrize("case", found, ids=ids)


def names(case: dict[str, Any]) -> list[str]:
    return [f"task{row}" for row in range(len(case["inputs"]["J"]))]


def named(case: dict[str, Any], values: list[float]) -> dict[str, float]:
    return dict(zip(names(case), values, strict=True))


def step(balancer: Balancer, case: dict[str, Any], losses: list[float] | None = None) -> Tensor:
    """Return the gradient at a leaf where the losses have their values and gradients of the case."""
    rows = torch.tensor(case["inputs"]["J"], dtype=torch.float64)
    values = torch.tensor(losses or case["inputs"].get("losses", [1.0] * len(rows)), dtype=torch.float64)
    leaf = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    total = balancer(dict(zip(names(case), rows @ leaf + values, strict=True)), shared=[leaf])
    return torch.autograd.grad(total, leaf)[0]


def assert_golden(balancer: Balancer, gradient: Tensor, case: dict[str, Any], expected: dict[str, Any]) -> None:
    for key, got in (("grad", gradient), ("weights", torch.stack(list(balancer.weights.values())))):
        wanted = torch.tensor(expected[key], dtype=torch.float64)
        torch.testing.assert_close(got.double(), wanted, rtol=case["rtol"], atol=case["atol"])


def check(balancer: Balancer, case: dict[str, Any]) -> None:
    assert_golden(balancer, step(balancer, case), case, case["expected"])


@cases("Sum")
def test_equal_weighting_is_the_sum(case: dict[str, Any]) -> None:
    check(EqualWeighting(names(case)), case)


@cases("Mean", "Constant")
def test_fixed_weighting_is_a_constant(case: dict[str, Any]) -> None:
    weights = case["args"].get("weights", [1 / len(names(case))] * len(names(case)))
    balancer = FixedWeighting(named(case, weights))
    balancer.fixed = torch.tensor(weights, dtype=torch.float64)  # the constants in the precision of the file
    check(balancer, case)


@cases("RLW")
def test_random_loss_weighting_is_the_softmax_of_the_draw(
    case: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = torch.tensor(case["inputs"]["noise"], dtype=torch.float64)
    balancer = RandomLossWeighting(names(case))
    monkeypatch.setattr(balancer, "draw", lambda num_tasks: noise)
    check(balancer, case)


@cases("UW")
def test_uncertainty_weighting(case: dict[str, Any]) -> None:
    balancer = UncertaintyWeighting(names(case)).double()
    with torch.no_grad():
        balancer.log_variances.copy_(torch.tensor(case["inputs"]["log_var"], dtype=torch.float64))
    check(balancer, case)


@cases("IMTL-L")
def test_imtl_l(case: dict[str, Any]) -> None:
    balancer = IMTLL(names(case)).double()
    with torch.no_grad():
        balancer.log_scales.copy_(torch.tensor(case["inputs"]["log_scale"], dtype=torch.float64))
    check(balancer, case)


@cases("GLS")
def test_geometric_loss(case: dict[str, Any]) -> None:
    check(GeometricLoss(names(case)).double(), case)


@cases("DWA")
def test_dwa_after_two_epochs(case: dict[str, Any]) -> None:
    balancer = DWA(names(case), **case["args"]).double()
    for losses in case["inputs"]["epoch_losses"]:
        step(balancer, case, [0.5 * loss for loss in losses])  # two steps that average to the epoch's loss
        step(balancer, case, [1.5 * loss for loss in losses])
        balancer.end_epoch()
    check(balancer, case)


@cases("FAMO")
def test_famo_before_and_after_one_update(case: dict[str, Any]) -> None:
    arguments = case["args"]
    assert arguments["min_losses"] == 0.0
    balancer = FAMO(names(case), arguments["lr"], arguments["weight_decay"]).double()
    first, second = case["expected"]["steps"]
    assert_golden(balancer, step(balancer, case), case, first)
    after = named(case, case["inputs"]["losses_after_step"])
    balancer.after_step({name: torch.tensor(loss, dtype=torch.float64) for name, loss in after.items()})
    assert_golden(balancer, step(balancer, case), case, second)


@cases("STCH")
def test_smooth_tchebycheff(case: dict[str, Any]) -> None:
    balancer = SmoothTchebycheff(names(case), case["args"]["mu"])
    balancer.preferences = torch.full((len(names(case)),), 1 / len(names(case)), dtype=torch.float64)
    check(balancer, case)


@cases("STCH-log")
def test_log_smooth_tchebycheff(case: dict[str, Any]) -> None:
    balancer = LogSmoothTchebycheff(names(case), case["args"]["mu"], warmup_epochs=0).double()
    step(balancer, case, case["inputs"]["nadir"])  # the epoch in which the nadir is measured
    balancer.end_epoch()
    check(balancer, case)


@cases("COSMOS")
def test_cosmos(case: dict[str, Any]) -> None:
    balancer = COSMOS(named(case, case["args"]["weights"]), case["args"]["lambda"])
    balancer.preferences = torch.tensor(case["args"]["weights"], dtype=torch.float64)
    check(balancer, case)


@cases("PBI")
def test_pbi(case: dict[str, Any]) -> None:
    balancer = PBI(named(case, case["args"]["weights"]), case["args"]["theta"])
    balancer.preferences = torch.tensor(case["args"]["weights"], dtype=torch.float64)
    check(balancer, case)


@cases("GradNorm")
def test_gradnorm_update_and_gradient_of_its_objective(case: dict[str, Any]) -> None:
    """The file learns the logits of ``K softmax``; the chain rule leads from our gradient to theirs."""
    inputs, tasks = case["inputs"], names(case)
    balancer = GradNorm(tasks, case["args"]["alpha"], parameters="all").double()
    logits = torch.tensor(inputs["loss_scale_logits"], dtype=torch.float64)
    weights = len(tasks) * torch.softmax(logits, dim=0)
    balancer.task_weights.copy_(weights)
    check(balancer, case)
    norms = torch.tensor(inputs["J"], dtype=torch.float64).norm(dim=1)
    losses, start = (torch.tensor(inputs[key], dtype=torch.float64) for key in ("losses", "initial_losses"))
    gradient = balancer.balancing_gradient(weights, norms, losses, start)
    chained = weights * gradient - weights * (weights @ gradient) / len(tasks)
    expected = torch.tensor(case["expected"]["logit_grad"], dtype=torch.float64)
    torch.testing.assert_close(chained, expected, rtol=case["rtol"], atol=case["atol"])
