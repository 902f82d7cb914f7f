"""Division by the first losses."""

from __future__ import annotations

import pytest
import torch

from lightning_mtl.balancers import InitialLossNormalization


def step(balancer: InitialLossNormalization, **values: float) -> dict[str, float]:
    balancer({name: torch.tensor(value) for name, value in values.items()})
    return {name: float(weight) for name, weight in balancer.weights.items()}


def test_weights_stay_after_the_first_losses() -> None:
    balancer = InitialLossNormalization(num_steps=2)
    assert step(balancer, a=2.0, b=8.0) == pytest.approx({"a": 1 / 2, "b": 1 / 8})
    assert step(balancer, a=6.0, b=8.0) == pytest.approx({"a": 1 / 4, "b": 1 / 8})
    assert step(balancer, a=1.0, b=1.0) == pytest.approx({"a": 1 / 4, "b": 1 / 8})


def test_zero_and_infinite_losses_do_not_count_as_the_first() -> None:
    balancer = InitialLossNormalization()
    assert step(balancer, a=0.0, b=float("inf")) == {"a": 1.0, "b": 1.0}
    assert step(balancer, a=4.0, b=2.0) == {"a": 0.25, "b": 0.5}
    assert step(balancer, a=0.0, b=1.0) == {"a": 0.25, "b": 0.5}


def test_a_negative_loss_counts_with_its_magnitude() -> None:
    assert step(InitialLossNormalization(), a=-4.0) == {"a": 0.25}


def test_num_steps_must_be_positive() -> None:
    with pytest.raises(ValueError, match="InitialLossNormalization: num_steps must be positive, got 0"):
        InitialLossNormalization(num_steps=0)
