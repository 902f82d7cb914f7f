"""Dynamic weight average."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_mtl.balancers import DWA


def step(balancer: DWA, **values: float) -> dict[str, float]:
    balancer({name: torch.tensor(value) for name, value in values.items()})
    return {name: float(weight) for name, weight in balancer.weights.items()}


def test_the_first_two_epochs_have_equal_weights() -> None:
    balancer = DWA()
    for epoch in range(2):
        assert step(balancer, a=1.0 + epoch, b=9.0) == {"a": 1.0, "b": 1.0}
        balancer.end_epoch()
    assert step(balancer, a=1.0, b=9.0) != {"a": 1.0, "b": 1.0}


def test_the_slower_task_has_the_larger_weight_and_more_so_at_low_temperature() -> None:
    weights = []
    for temperature in (0.5, 2.0, 1e6):
        balancer = DWA(temperature=temperature)
        for a, b in [(4.0, 4.0), (1.0, 4.0)]:
            step(balancer, a=a, b=b)
            balancer.end_epoch()
        weights.append(step(balancer, a=1.0, b=1.0)["b"])
    assert weights[0] > weights[1] > weights[2] == pytest.approx(1.0, abs=1e-5)


def test_a_task_that_comes_late_has_rate_one_until_two_of_its_epochs_are_known() -> None:
    balancer = DWA(["a", "late"])
    for a in (4.0, 1.0, 1.0):
        step(balancer, a=a)
        balancer.end_epoch()
    for late in (8.0, 4.0):
        assert step(balancer, a=1.0, late=late) == {"a": 1.0, "late": 1.0}
        balancer.end_epoch()
    half, one = math.exp(0.5 / 2), math.exp(1 / 2)
    assert step(balancer, a=1.0, late=1.0)["late"] == pytest.approx(2 * half / (half + one), rel=1e-6)


def test_an_epoch_without_steps_changes_nothing() -> None:
    balancer = DWA()
    for a, b in [(4.0, 4.0), (1.0, 4.0)]:
        step(balancer, a=a, b=b)
        balancer.end_epoch()
    before = balancer.epoch_means.clone()
    balancer.end_epoch()
    assert torch.equal(balancer.epoch_means, before)


def test_end_epoch_before_the_first_call_is_harmless() -> None:
    balancer = DWA()
    balancer.end_epoch()
    assert step(balancer, a=1.0) == {"a": 1.0}


def test_temperature_must_be_positive() -> None:
    with pytest.raises(ValueError, match=r"DWA: temperature must be positive, got -1\.0\."):
        DWA(temperature=-1.0)
