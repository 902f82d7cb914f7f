"""Learning rates by fan-in, and decay that does not follow the learning rate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_mtl.functional import IndependentAdamW, independent_weight_decay, mup_simple_groups

GOLDEN = [
    case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "instability.json").read_text())["cases"]
    if case["inputs"]["function"] == "adamw_first_step"
]


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
@pytest.mark.parametrize("how", ["optimizer", "helper", "coupled"])
def test_golden_first_steps(how: str, case: dict[str, Any]) -> None:
    inputs, betas = case["inputs"], tuple(case["args"]["betas"])
    parameter = nn.Parameter(torch.tensor(inputs["param"], dtype=torch.float64))
    parameter.grad = torch.tensor(inputs["grad"], dtype=torch.float64)
    rate, decay = inputs["lr"], inputs["weight_decay"]
    kind: Any = IndependentAdamW if how == "optimizer" else torch.optim.AdamW
    used = {"optimizer": decay, "helper": independent_weight_decay(rate, decay), "coupled": decay}[how]
    optimizer = kind([parameter], lr=rate, betas=betas, eps=case["args"]["eps"], weight_decay=used)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: inputs["schedule"])
    optimizer.step()
    expected = case["expected"]["coupled" if how == "coupled" else "independent"]
    assert parameter.tolist() == pytest.approx(expected, rel=1e-7)
    assert optimizer.param_groups[0]["weight_decay"] == used


def test_decay_alone_does_not_depend_on_the_learning_rate() -> None:
    for rate in (1e-4, 1e-1):
        parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
        optimizer = IndependentAdamW([parameter], lr=rate, weight_decay=0.01)
        parameter.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.step()
        assert float(parameter.detach()) == pytest.approx(0.99)


def test_a_closure_is_evaluated_once_and_its_value_returned() -> None:
    parameter, calls = nn.Parameter(torch.ones(1)), []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert float(IndependentAdamW([parameter]).step(closure).detach()) == 1.0
    assert calls == [True]


def test_every_parameter_is_in_one_group_with_the_rate_of_its_fan_in() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(7, 16), nn.Linear(16, 7, bias=False)
            self.head.weight = self.embedding.weight
            self.attention = nn.MultiheadAttention(16, 2)
            self.conv, self.up = nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(4, 8, 2)

    net = Net()
    groups = mup_simple_groups(net, learning_rate=0.1, base_fan_in=8, weight_decay=1e-3)
    of = {id(p): group for group in groups for p in group["params"]}
    assert len(of) == sum(len(group["params"]) for group in groups) == len(list(net.parameters()))
    assert of[id(net.embedding.weight)]["name"] == of[id(net.conv.bias)]["name"] == "other"
    assert of[id(net.attention.in_proj_weight)]["name"] == of[id(net.up.weight)]["name"] == "fan_in_16"
    assert of[id(net.conv.weight)]["name"] == "fan_in_18"
    assert of[id(net.attention.out_proj.weight)]["lr"] == pytest.approx(0.05)
    assert [group["lr"] * group["weight_decay"] for group in groups] == pytest.approx([1e-3] * len(groups))


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="learning_rate must be positive, got 0"):
        independent_weight_decay(0, 1.0)
    with pytest.raises(ValueError, match="weight_decay must not be negative, got -1"):
        independent_weight_decay(1.0, -1)
    with pytest.raises(ValueError, match="learning_rate must be positive"):
        mup_simple_groups(nn.Linear(1, 1), 0.0, 1)
    with pytest.raises(ValueError, match="base_fan_in must be positive, got 0"):
        mup_simple_groups(nn.Linear(1, 1), 1.0, 0)
    with pytest.raises(ValueError, match="must have parameters that are trained"):
        mup_simple_groups(nn.ReLU(), 1.0, 1)
