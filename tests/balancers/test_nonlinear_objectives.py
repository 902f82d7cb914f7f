"""Weights of methods with a nonlinear objective are its partial derivatives."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lightning_mtl.balancers import (
    COSMOS,
    PBI,
    GeometricLoss,
    LogSmoothTchebycheff,
    LogTransform,
    LossWeighting,
    SmoothTchebycheff,
)

P = {"a": 0.5, "b": 1.5, "c": 1.0}
Z = {"a": 0.125, "b": 0.25, "c": 0.5}
VECTOR, IDEAL = (torch.tensor(list(values.values()), dtype=torch.float64) for values in (P, Z))
UNIT = VECTOR / VECTOR.norm()


def boundary_intersection(losses: Tensor) -> Tensor:
    along = UNIT @ (losses - IDEAL)
    return along + 2 * (losses - IDEAL - along * UNIT).norm()


OBJECTIVES: dict[str, tuple[LossWeighting, Callable[[Tensor], Tensor]]] = {
    "geometric": (GeometricLoss(list(P)), lambda x: x.prod() ** (1 / 3)),
    "log": (LogTransform(list(P)), lambda x: x.log().sum()),
    "stch": (
        SmoothTchebycheff(list(P), 0.25, P, Z),
        lambda x: 0.25 * torch.logsumexp(VECTOR * (x - IDEAL) / 0.25, dim=0),
    ),
    "stch-log": (
        LogSmoothTchebycheff(list(P), 0.25, nadir=P),
        lambda x: 3 * 0.25 * torch.logsumexp((x / VECTOR).log() / 0.25, dim=0),
    ),
    "cosmos": (
        COSMOS(P, penalty=2.0),
        lambda x: VECTOR @ x - 2 * torch.cosine_similarity(VECTOR, x, dim=0),
    ),
    "pbi": (PBI(P, 2.0, Z), boundary_intersection),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@given(values=st.lists(st.floats(0.01, 100.0), min_size=3, max_size=3))
def test_weights_are_the_partial_derivatives(name: str, values: list[float]) -> None:
    balancer, objective = OBJECTIVES[name]
    losses = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    expected = torch.autograd.grad(objective(losses), losses)[0]
    balancer(dict(zip(P, losses.unbind(), strict=True)))
    found = torch.stack(list(balancer.weights.values()))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6 * float(expected.abs().max()))


def weights(balancer: LossWeighting, **values: float) -> dict[str, float]:
    balancer({name: torch.tensor(value) for name, value in values.items()})
    return {name: float(weight) for name, weight in balancer.weights.items()}


@pytest.mark.parametrize("build", [GeometricLoss, LogTransform, lambda: LogSmoothTchebycheff(nadir={"a": 1, "b": 1})])
def test_a_loss_of_zero_counts_as_absent(build: Callable[[], LossWeighting]) -> None:
    both, alone = build(), build()
    both.bind(["a", "b"])
    alone.bind(["a", "b"])
    found = weights(both, a=0.5, b=0.0)
    assert found["b"] == 0
    assert found["a"] == pytest.approx(weights(alone, a=0.5)["a"])


@pytest.mark.parametrize("build", [GeometricLoss, LogTransform])
@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_scaling_a_loss_changes_no_trade_off(build: type[LossWeighting], factor: float) -> None:
    plain, scaled = weights(build(), a=0.5, b=2.0), weights(build(), a=0.5 * factor, b=2.0)
    assert scaled["a"] * factor / scaled["b"] == pytest.approx(plain["a"] / plain["b"], rel=1e-4)


def test_small_smoothing_trains_the_worst_task_alone() -> None:
    found = weights(SmoothTchebycheff(smoothing=1e-6), a=1e10, b=1.001e10)
    assert found == pytest.approx({"a": 0.0, "b": 0.5})


def test_no_preference_for_the_only_present_task_gives_zero() -> None:
    balancer = COSMOS({"a": 0.0, "b": 1.0}, penalty=1.0)
    assert weights(balancer, a=2.0) == {"a": 0.0}


def test_losses_on_the_direction_are_not_pushed_aside_by_rounding() -> None:
    preferences = {"a": 0.1, "b": 0.7, "c": 0.3}
    length = math.sqrt(sum(value**2 for value in preferences.values()))
    for scale in (1e-10, 1.0, 1e10):
        found = weights(PBI(preferences, penalty=5.0), **{name: scale * p for name, p in preferences.items()})
        assert found == pytest.approx({name: p / length for name, p in preferences.items()}, rel=1e-5)


def test_the_penalty_pushes_towards_the_preferences() -> None:
    for balancer in (COSMOS({"a": 1.0, "b": 1.0}, penalty=1.0), PBI({"a": 1.0, "b": 1.0}, penalty=1.0)):
        found = weights(balancer, a=1.0, b=3.0)
        assert found["b"] > found["a"]


def test_preferences_can_change_between_steps_and_are_saved() -> None:
    balancer, other = COSMOS({"a": 1.0, "b": 1.0}, penalty=0.0), COSMOS({"a": 1.0, "b": 1.0}, penalty=0.0)
    balancer.set_preferences({"b": 0.25, "a": 0.75})
    assert weights(balancer, a=1.0, b=1.0) == {"a": 0.75, "b": 0.25}
    other.load_state_dict(balancer.state_dict())
    assert weights(other, a=1.0, b=1.0) == {"a": 0.75, "b": 0.25}
    balancer.reset()
    assert weights(balancer, a=1.0, b=1.0) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize("bad", [{"a": -1.0, "b": 1.0}, {"a": 0.0, "b": 0.0}, {"a": float("nan"), "b": 1.0}])
def test_preferences_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="PBI: preferences must be finite, not negative, and not all zero"):
        PBI(bad)
    with pytest.raises(ValueError, match="SmoothTchebycheff: preferences must be finite"):
        SmoothTchebycheff(["a", "b"], preferences={"a": 1.0, "b": 1.0}).set_preferences(bad)
    with pytest.raises(ValueError, match="COSMOS: preferences must have one entry for each"):
        COSMOS({"a": 1.0}, penalty=0.0).set_preferences(bad)


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match=r"SmoothTchebycheff: smoothing must be positive, got 0"):
        SmoothTchebycheff(smoothing=0)
    with pytest.raises(ValueError, match=r"LogSmoothTchebycheff: smoothing must be positive, got -1"):
        LogSmoothTchebycheff(smoothing=-1)
    with pytest.raises(ValueError, match=r"LogSmoothTchebycheff: warmup_epochs must not be negative, got -1"):
        LogSmoothTchebycheff(warmup_epochs=-1)
    with pytest.raises(ValueError, match="LogSmoothTchebycheff: nadir must be positive"):
        LogSmoothTchebycheff(nadir={"a": 0.0})
    with pytest.raises(ValueError, match=r"COSMOS: penalty must not be negative, got -1"):
        COSMOS({"a": 1.0}, -1)
    with pytest.raises(ValueError, match=r"PBI: penalty must not be negative, got -1"):
        PBI({"a": 1.0}, -1)


def test_the_nadir_is_the_mean_loss_of_the_last_epoch_of_the_warm_up() -> None:
    balancer = LogSmoothTchebycheff(["a", "b", "late"], warmup_epochs=1)
    for losses in [(8.0, 9.0), (7.0, 6.0)], [(1.0, 2.0), (3.0, 6.0)]:
        for a, b in losses:
            assert weights(balancer, a=a, b=b) == pytest.approx({"a": 1 / a, "b": 1 / b})
        balancer.end_epoch()
    assert balancer.nadir_point.tolist() == [2.0, 4.0, 0.0]
    assert weights(balancer, a=2.0, b=4.0) == pytest.approx({"a": 0.5, "b": 0.25})
    assert weights(balancer, a=4.0, b=4.0) == pytest.approx({"a": 2 * 2 / 3 / 4, "b": 2 * 1 / 3 / 4})
    assert balancer.nadir_point.tolist() == [2.0, 4.0, 0.0]
    weights(balancer, a=4.0, late=5.0)
    weights(balancer, a=4.0, late=9.0)
    assert balancer.nadir_point.tolist() == [2.0, 4.0, 5.0]
