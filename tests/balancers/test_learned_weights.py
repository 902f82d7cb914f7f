"""Weights that the model's optimizer learns."""

from __future__ import annotations

import pytest
import torch

from lightning_mtl.balancers import IMTLL, UncertaintyWeighting

LOSSES = {"a": 0.25, "b": 4.0, "c": 1.0}


def settle(balancer: UncertaintyWeighting | IMTLL, steps: int = 400) -> dict[str, float]:
    optimizer = torch.optim.Adam(balancer.parameters(), lr=0.05)
    for _ in range(steps):
        optimizer.zero_grad()
        balancer({name: torch.tensor(value) for name, value in LOSSES.items()}).backward()
        optimizer.step()
    return {name: float(weight) for name, weight in balancer.weights.items()}


@pytest.mark.parametrize(
    ("likelihood", "factor"), [("gaussian", 0.5), ("laplace", 1.0), ("softmax", 0.5)]
)  # at the minimum c e^-s L = r
def test_uncertainty_weights_settle_at_the_inverse_losses(likelihood: str, factor: float) -> None:
    found = settle(UncertaintyWeighting(list(LOSSES), likelihood))  # type: ignore[arg-type]
    assert found == pytest.approx({name: factor / value for name, value in LOSSES.items()}, rel=1e-3)


def test_imtl_l_brings_all_weighted_losses_to_one() -> None:
    found = settle(IMTLL(list(LOSSES)))
    assert found == pytest.approx({name: 1 / value for name, value in LOSSES.items()}, rel=1e-3)


def test_gradient_is_that_of_the_likelihood_while_the_value_is_the_weighted_sum() -> None:
    kinds = {"c": "softmax", "a": "gaussian", "b": "laplace"}
    balancer = UncertaintyWeighting(["a", "b", "c"], kinds, initial_log_variance=0.3)  # type: ignore[arg-type]
    total = balancer({name: torch.tensor(value) for name, value in LOSSES.items()})
    (found,) = torch.autograd.grad(total, balancer.log_variances)
    s = torch.full((3,), 0.3, requires_grad=True)
    terms = [
        0.5 * torch.exp(-s[0]) * 0.25 + 0.5 * s[0],
        torch.exp(-s[1]) * 4.0 + s[1],
        torch.exp(-s[2]) * 1.0 + 0.5 * s[2],
    ]
    torch.testing.assert_close(found, torch.autograd.grad(sum(terms), s)[0])
    weighted = sum(float(balancer.weights[name]) * value for name, value in LOSSES.items())
    assert total.item() == pytest.approx(weighted)


def test_start_values_are_arguments() -> None:
    assert UncertaintyWeighting(["a"], initial_log_variance=-0.5).log_variances.tolist() == [-0.5]
    assert IMTLL(["a"], initial_log_scale=0.5).log_scales.tolist() == [0.5]


def test_likelihoods_are_checked() -> None:
    with pytest.raises(ValueError, match=r"UncertaintyWeighting: likelihood must be one of .*, got \['poisson'\]"):
        UncertaintyWeighting(["a"], "poisson")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="UncertaintyWeighting: likelihood must have one entry for each of the tasks"):
        UncertaintyWeighting(["a", "b"], {"a": "laplace"})
