"""Mixtures of experts against independent values and closed forms."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.nn import (
    CGC,
    PLE,
    ConvExpert,
    DSelectK,
    FeatureSpec,
    LinearHead,
    MLPEncoder,
    MLPExpert,
    MMoE,
    TaskExpert,
)
from lightning_mtl.nn.experts.base import Gate
from lightning_mtl.nn.experts.dselect_k import smooth_step
from lightning_mtl.nn.experts.task_expert import gate_memory_mix
from lightning_mtl.tasks import Regression
from tests.nn.cases import NAMES, SameSize, ThreeStages

GOLDEN = Path(__file__).parents[1] / "golden"


def golden(file: str, function: str) -> list[dict[str, Any]]:
    cases = json.loads((GOLDEN / file).read_text())["cases"]
    found = [case for case in cases if case["args"]["fn"] == function]
    assert found
    return found


class Inputs(nn.Module):
    """Nothing below the experts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.feature_spec = FeatureSpec("vector", (width,))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs


def tensor(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def set_linear(linear: nn.Module, weight: Any, bias: Any) -> None:
    linear.weight.data.copy_(tensor(weight))
    linear.bias.data.copy_(tensor(bias))


@pytest.mark.parametrize("case", golden("experts.json", "mmoe"))
def test_mmoe_gives_the_golden_features(case: dict[str, Any]) -> None:
    given = case["inputs"]
    x = tensor(given["x"])
    tasks = [f"t{i}" for i in range(len(given["gate_weight"]))]
    width = len(given["expert_bias"][0])
    encoder = MMoE(Inputs(x.shape[1]), tasks, len(given["expert_bias"]), lambda s: MLPExpert(s, (width,))).double()
    for expert, weight, bias in zip(encoder.experts, given["expert_weight"], given["expert_bias"], strict=True):
        set_linear(expert.layers[0], weight, bias)
    for gate, weight, bias in zip(encoder.gates.values(), given["gate_weight"], given["gate_bias"], strict=True):
        set_linear(gate.linear, weight, bias)
    output = torch.stack(list(encoder(x).values()))
    torch.testing.assert_close(output, tensor(case["expected"]["task_features"]), rtol=case["rtol"], atol=1e-8)


@pytest.mark.parametrize("case", golden("experts.json", "ple"))
def test_ple_gives_the_golden_features(case: dict[str, Any]) -> None:
    given = case["inputs"]
    x = tensor(given["x"])
    first = given["layers"][0]
    tasks = [f"t{i}" for i in range(len(first["task"]))]
    encoder = PLE(Inputs(x.shape[1]), tasks, len(given["layers"]), len(first["shared"]), len(first["task"][0])).double()
    for layer, values in zip(encoder.layers, given["layers"], strict=True):
        for expert, expert_values in zip(layer.shared, values["shared"], strict=True):
            set_linear(expert.layers[0], expert_values["w"], expert_values["b"])
        for task, own, gate in zip(tasks, values["task"], values["gate"], strict=True):
            for expert, expert_values in zip(layer.own[task], own, strict=True):
                set_linear(expert.layers[0], expert_values["w"], expert_values["b"])
            set_linear(layer.gates[task].linear, gate["w"], gate["b"])
        if layer.shared_gate is not None:
            set_linear(layer.shared_gate.linear, values["gate_shared"]["w"], values["gate_shared"]["b"])
    output = torch.stack(list(encoder(x).values()))
    torch.testing.assert_close(output, tensor(case["expected"]["task_features"]), rtol=case["rtol"], atol=1e-8)


@pytest.mark.parametrize("case", golden("task-expert.json", "gate_memory_mix"))
def test_gate_memory_mix_gives_the_golden_values(case: dict[str, Any]) -> None:
    given = case["inputs"]
    mixed, gates = gate_memory_mix(tensor(given["experts"]), tensor(given["memory"]), tensor(given["gate_logits"]))
    torch.testing.assert_close(gates, tensor(case["expected"]["gates"]), rtol=case["rtol"], atol=1e-7)
    torch.testing.assert_close(mixed, tensor(case["expected"]["decoded"]), rtol=case["rtol"], atol=1e-7)


def test_pixel_gates_that_are_constant_equal_image_gates() -> None:
    generator = torch.Generator().manual_seed(0)
    experts = torch.randn(2, 3, 4, 5, 6, generator=generator)
    memory = torch.randn(2, 4, 5, 6, generator=generator)
    logits = torch.randn(2, 4, generator=generator)
    by_image, _ = gate_memory_mix(experts, memory, logits)
    by_pixel, gates = gate_memory_mix(experts, memory, logits[:, :, None, None].expand(-1, -1, 5, 6))
    assert gates.shape == (2, 4, 5, 6)
    torch.testing.assert_close(by_pixel, by_image)


def test_gates_sum_to_one_and_dropout_keeps_at_least_one_expert() -> None:
    torch.manual_seed(0)
    gate = Gate(4, 3, dropout=0.9).train()
    weights = gate(torch.randn(500, 4))
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(500))
    used = (weights > 0).sum(dim=1)
    assert used.min() == 1
    assert (used == 1).float().mean() > 0.15
    assert (gate.eval()(torch.randn(50, 4)) > 0).all()


# --------------------------------------------------------------------------- DSelect-k
def test_smooth_step_is_exact_outside_and_smooth_inside() -> None:
    width = 1.5
    t = torch.tensor([-10.0, -0.75, 0.0, 0.75, 10.0], dtype=torch.float64)
    torch.testing.assert_close(smooth_step(t, width), tensor([0, 0, 0.5, 1, 1]), rtol=0, atol=0)
    inside = torch.linspace(-0.7, 0.7, 9, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: smooth_step(x, width), inside)
    edge = torch.tensor([-0.75, 0.75], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(smooth_step(edge, width).sum(), edge)
    torch.testing.assert_close(slope, torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("num_experts", [2, 4, 5, 8])
def test_decided_bits_choose_the_expert_whose_number_they_spell(num_experts: int) -> None:
    encoder = DSelectK(MLPEncoder(3, [4]), ["a"], num_experts, k=1, static=True)
    gate = encoder.gates["a"]
    for number in range(num_experts):
        bits = [(number >> j) & 1 for j in range(gate.num_bits)]
        gate.bit_logits.data.copy_(2.0 * torch.tensor([bits]) - 1)
        weights, _ = gate(torch.zeros(1, 4))
        torch.testing.assert_close(weights, torch.eye(num_experts)[number : number + 1], rtol=0, atol=0)


def test_no_more_than_k_experts_have_weight_once_the_bits_are_decided() -> None:
    torch.manual_seed(0)
    encoder = DSelectK(MLPEncoder(3, [16]), ["a"], num_experts=8, k=2)
    gate = encoder.gates["a"]
    gate.bits.weight.data.mul_(1e4)
    weights, chosen = gate(torch.randn(200, 16))
    decided = ((chosen == 0) | (chosen == 1)).all(dim=-1).all(dim=-1)
    assert decided.float().mean() > 0.9
    assert ((weights > 0).sum(dim=1)[decided] <= 2).all()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(200))


def test_entropy_term_decides_the_bits_and_capacity_term_avoids_missing_experts() -> None:
    torch.manual_seed(0)
    encoder = DSelectK(MLPEncoder(3, [4]), ["a", "b"], num_experts=5, k=1, static=True, entropy=1.0, capacity=1.0)
    inputs = torch.randn(4, 3)
    optimizer = torch.optim.Adam(encoder.gates.parameters(), 0.05)
    for gate in encoder.gates.values():
        gate.bit_logits.data.fill_(0.2)  # leans to number 7, which does not exist
    start = None
    for _ in range(200):
        optimizer.zero_grad()
        encoder(inputs)
        loss = encoder.auxiliary_loss()
        start = loss.item() if start is None else start
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01 < start
    for gate in encoder.gates.values():
        weights, _ = gate(torch.zeros(1, 4))
        torch.testing.assert_close(weights.sum(), torch.tensor(1.0))
        assert (weights > 0).sum() == 1


def test_auxiliary_loss_before_any_pass_raises() -> None:
    with pytest.raises(RuntimeError, match="must follow a forward pass"):
        DSelectK(MLPEncoder(3, [4]), ["a"]).auxiliary_loss()


def test_auxiliary_loss_is_added_to_the_scalar_of_the_balancer() -> None:
    torch.manual_seed(0)
    encoder = DSelectK(MLPEncoder(3, [4]), ["a"], num_experts=3, entropy=1.0)
    module = MultiTaskModule(encoder, {"a": Regression(head=LinearHead)}).train()
    batch = (torch.randn(5, 3), {"a": torch.randn(5, 1)})
    total = module.training_step(batch)
    extra = encoder.auxiliary_loss()
    assert extra > 0
    torch.testing.assert_close(total, module.task_losses(batch)["a"] + extra)
    copy.deepcopy(module)  # as averaging callbacks do between steps


# --------------------------------------------------------------------------- TaskExpert
def test_balanced_gates_have_no_penalty_and_one_sided_ones_do() -> None:
    encoder = TaskExpert(SameSize(), ["a"], memory_channels=4, num_experts=3, load_balance=0.5)
    encoder.gates = [{"a": torch.full((6, 4), 0.25)}]
    assert encoder.auxiliary_loss() == 0
    encoder.gates = [{"a": torch.eye(4)[:1].expand(6, -1)}]  # squared coefficient of variation of (1, 0, 0, 0) is 3
    torch.testing.assert_close(encoder.auxiliary_loss(), torch.tensor(1.5))


def test_fixed_gates_weigh_everything_alike() -> None:
    encoder = TaskExpert(SameSize(), NAMES, memory_channels=4, num_experts=3, fixed_gates=True).eval()
    encoder(torch.randn(2, 3, 16, 16))
    assert len(encoder.gates) == 2
    for depth in encoder.gates:
        torch.testing.assert_close(depth["a"], torch.full((2, 4), 0.25), rtol=0, atol=0)


# --------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MMoE(MLPEncoder(4, [4]), NAMES, num_experts=0), "MMoE: num_experts must be at least 1, got 0"),
        (lambda: MMoE(MLPEncoder(4, [4]), NAMES, 2, ConvExpert), "features must be maps, got 'vector'"),
        (lambda: MMoE(ThreeStages(), NAMES, 2, MLPExpert), "features must be a vector or tokens, got maps"),
        (lambda: MMoE(MLPEncoder(4, [4]), NAMES, 2, lambda s: nn.Linear(4, 4)), "experts must have a feature_spec"),
        (lambda: MMoE(MLPEncoder(4, [4]), NAMES, gate_dropout=1.0), r"dropout must be in \[0, 1\)"),
        (lambda: PLE(MLPEncoder(4, [4]), NAMES, num_layers=0), "PLE: num_layers must be at least 1, got 0"),
        (lambda: CGC(MLPEncoder(4, [4]), NAMES, task_experts=0), "CGC: task_experts must be at least 1, got 0"),
        (lambda: DSelectK(MLPEncoder(4, [4]), NAMES, 4, k=5), "1 <= k <= num_experts"),
        (lambda: DSelectK(MLPEncoder(4, [4]), NAMES, width=0.0), "width must be positive"),
        (lambda: DSelectK(MLPEncoder(4, [4]), NAMES, entropy=-1.0), "must not be negative"),
        (lambda: MLPExpert(FeatureSpec("vector", (4,)), ()), "widths must be one or more positive numbers"),
        (lambda: ConvExpert(FeatureSpec("maps", (4,), (2,)), kernel_size=2), "kernel_size must be odd"),
        (lambda: ConvExpert(FeatureSpec("maps", (4,), (2,)), channels=0), "channels must be positive"),
        (lambda: TaskExpert(MLPEncoder(4, [4]), NAMES), "the encoder must give feature maps, got 'vector'"),
        (lambda: TaskExpert(ThreeStages(), NAMES), "the maps must have one size.*resize='bilinear'"),
        (lambda: TaskExpert(SameSize(), NAMES, gate="row"), "gate must be 'image' or 'pixel'"),  # type: ignore[arg-type]
        (lambda: TaskExpert(SameSize(), NAMES, num_experts=0), "num_experts must be at least 1"),
        (lambda: TaskExpert(SameSize(), NAMES, noise=-1.0), "must not be negative"),
    ],
)
def test_arguments_that_do_not_fit_raise(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
