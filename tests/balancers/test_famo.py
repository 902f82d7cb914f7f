"""Fast adaptive multitask optimization."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_mtl.balancers import FAMO


def named(values: Tensor) -> dict[str, Tensor]:
    return dict(zip("abc", values.unbind(), strict=True))


def test_the_logits_follow_adam_on_the_gradient_through_the_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    balancer = FAMO(lr=0.05, weight_decay=0.01)
    balancer.bind("abc")
    balancer.double()
    logits = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.05, weight_decay=0.01)
    for _ in range(50):
        before, after = torch.rand(2, 3, generator=generator, dtype=torch.float64) + 0.5
        balancer(named(before))
        shares = torch.softmax(logits, dim=0)
        expected = shares / before / (shares / before).sum()
        torch.testing.assert_close(torch.stack(list(balancer.weights.values())), expected.detach())
        balancer.after_step(named(after))
        (logits.grad,) = torch.autograd.grad(shares, logits, before.log() - after.log())
        adam.step()
        torch.testing.assert_close(balancer.logits, logits.detach())


def test_the_task_that_falls_slowest_gains_weight() -> None:
    balancer = FAMO()
    for _ in range(20):
        balancer(named(torch.tensor([1.0, 1.0, 1.0])))
        balancer.after_step(named(torch.tensor([0.5, 0.9, 1.1])))
    weights = [float(weight) for weight in balancer.weights.values()]
    assert weights == sorted(weights)
    assert weights[0] < weights[1] < weights[2]


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_the_scale_of_the_losses_changes_no_logit(factor: float) -> None:
    plain, scaled = FAMO(), FAMO()
    for balancer, scale in ((plain, 1.0), (scaled, factor)):
        for _ in range(5):
            balancer(named(scale * torch.tensor([1.0, 2.0, 3.0])))
            balancer.after_step(named(scale * torch.tensor([0.5, 1.9, 3.1])))
    torch.testing.assert_close(scaled.logits, plain.logits, rtol=1e-4, atol=1e-6)


def test_bounds_are_subtracted() -> None:
    balancer = FAMO(["a", "b"], min_losses={"b": 1.0, "a": 0.0})
    balancer({"a": torch.tensor(1.0), "b": torch.tensor(4.0)})
    assert float(balancer.weights["a"]) == pytest.approx(0.75)
    balancer({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})  # b is at its bound
    assert [float(weight) for weight in balancer.weights.values()] == [1.0, 0.0]


def test_only_tasks_of_the_last_call_are_updated() -> None:
    balancer = FAMO(["a", "b", "c"])
    balancer({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
    balancer.after_step({"c": torch.tensor(1.0)})
    assert balancer.adam.count.tolist() == [0, 0, 0]
    balancer.after_step({"c": torch.tensor(1.0), "b": torch.tensor(0.5), "a": torch.tensor(1.0)})
    assert balancer.adam.count.tolist() == [1, 1, 0]
    assert balancer.logits[0] > 0 > balancer.logits[1]


def test_after_step_needs_a_call_before() -> None:
    with pytest.raises(ValueError, match="FAMO: after_step was called before any losses were balanced"):
        FAMO(["a"]).after_step({"a": torch.tensor(1.0)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"lr": 0.0}, "FAMO: lr must be positive, got 0.0"), ({"weight_decay": -1.0}, "FAMO: weight_decay must not be")],
)
def test_arguments_are_checked(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FAMO(**arguments)  # type: ignore[arg-type]
