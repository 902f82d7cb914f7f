"""What holds for every optimizer that knows tasks."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_mtl.optim import TaskAwareOptimizer
from tests.optim.cases import CASES

Make = Callable[[Any], Optimizer]
cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES.keys())
TASKS = ("a", "a", "b", "a", "b", "a")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def train(net: nn.Module, optimizer: Optimizer, steps: range) -> None:
    stream = torch.Generator().manual_seed(0)
    batches = [torch.randn(7, 3, generator=stream) for _ in TASKS]
    for step in steps:
        optimizer.zero_grad()
        net(batches[step]).square().mean().backward()
        optimizer.step(task=TASKS[step])  # type: ignore[call-arg]


def values(net: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in net.parameters()]


@cases
def test_it_is_a_task_aware_optimizer(make: Make) -> None:
    assert isinstance(make(network().parameters()), TaskAwareOptimizer)


@cases
def test_training_continues_bit_by_bit_from_a_state_that_loads_with_weights_only(make: Make) -> None:
    net = network()
    optimizer = make(net.parameters())
    train(net, optimizer, range(3))
    file = io.BytesIO()
    torch.save({"net": net.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(net, optimizer, range(3, 6))
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = network()
    resumed = make(other.parameters())
    other.load_state_dict(state["net"])
    resumed.load_state_dict(state["optimizer"])
    train(other, resumed, range(3, 6))
    assert all(a.equal(b) for a, b in zip(values(net), values(other), strict=True))
    assert resumed.values_to_log() == optimizer.values_to_log()  # type: ignore[attr-defined]


@cases
def test_a_closure_is_called_once_with_gradients_and_its_loss_is_returned(make: Make) -> None:
    net = network()
    optimizer = make(net.parameters())
    calls: list[bool] = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        loss = net(torch.ones(2, 3)).square().mean()
        loss.backward()
        return loss

    found = optimizer.step(closure, task="a")  # type: ignore[call-arg]
    assert calls == [True]
    assert found.item() > 0


@cases
def test_frozen_parameters_stay_and_cost_nothing(make: Make) -> None:
    net = network()
    net[0].requires_grad_(False)  # type: ignore[index]
    optimizer = make(net.parameters())
    before = values(net)
    train(net, optimizer, range(3))
    after = values(net)
    assert [a.equal(b) for a, b in zip(before, after, strict=True)] == [True, True, False, False]
    assert len(optimizer.state) == 2


@cases
def test_float64_and_schedulers_work(make: Make) -> None:
    net = network().double()
    optimizer = make(net.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.0)
    net(torch.ones(2, 3, dtype=torch.float64)).square().mean().backward()
    optimizer.step(task="a")  # type: ignore[call-arg]
    scheduler.step()
    before = values(net)
    optimizer.step(task="a")  # type: ignore[call-arg]
    assert all(a.equal(b) for a, b in zip(before, values(net), strict=True))
