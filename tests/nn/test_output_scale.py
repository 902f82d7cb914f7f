"""The output scale and the centring of a network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.nn import CenteredOutputScale, MLPEncoder, QuadraticNetwork, scaled_lr
from lightning_mtl.tasks import Regression


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)).double()


def test_output_is_alpha_times_the_change_since_initialization() -> None:
    inner, inputs = network(), torch.randn(3, 4, dtype=torch.float64)
    before = inner(inputs).detach()
    scaled = CenteredOutputScale(inner, alpha=5.0)
    assert scaled(inputs).abs().max() == 0
    with torch.no_grad():
        inner[0].weight.add_(0.1)
    torch.testing.assert_close(scaled(inputs), 5 * (inner(inputs) - before))


def test_without_centring_it_only_scales() -> None:
    inner, inputs = network(), torch.randn(3, 4, dtype=torch.float64)
    scaled = CenteredOutputScale(inner, alpha=3.0, center=False)
    torch.testing.assert_close(scaled(inputs), 3 * inner(inputs))
    assert len(list(scaled.parameters())) == len(list(inner.parameters()))


def test_only_the_network_is_trained_and_its_start_survives_a_checkpoint() -> None:
    scaled = CenteredOutputScale(network(), alpha=2.0)
    inputs = torch.randn(3, 4, dtype=torch.float64)
    scaled(inputs).sum().backward()
    trained = {name for name, parameter in scaled.named_parameters() if parameter.grad is not None}
    assert trained == {f"module.{name}" for name, _ in scaled.module.named_parameters()}
    with torch.no_grad():
        scaled.module[0].weight.add_(0.1)
    other = CenteredOutputScale(network(), alpha=2.0)
    other.load_state_dict(scaled.state_dict())
    assert other(inputs).equal(scaled(inputs))


def test_the_initial_network_is_evaluated_without_dropout_and_shares_the_mode() -> None:
    inner = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    scaled = CenteredOutputScale(inner).train()
    inner.eval()
    assert scaled(torch.ones(50, 2)).abs().max() == 0
    assert all(child.training for child in scaled.initial.modules())


def test_several_outputs_are_scaled_each() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2))

        def forward(self, inputs: torch.Tensor) -> dict[str, object]:
            return {"a": inputs * self.weight, "b": [inputs + self.weight]}

    scaled = CenteredOutputScale(Two(), alpha=10.0)
    with torch.no_grad():
        scaled.module.weight.add_(1)
    found = scaled(torch.full((1, 2), 3.0))
    torch.testing.assert_close(found, {"a": torch.full((1, 2), 30.0), "b": [torch.full((1, 2), 10.0)]})


def test_scaled_learning_rate_makes_the_first_step_in_function_space_the_same() -> None:
    inputs, target = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    changes = []
    for alpha in (1.0, 100.0):
        torch.manual_seed(1)
        scaled = CenteredOutputScale(network(), alpha)
        optimizer = torch.optim.SGD(scaled.module.parameters(), lr=scaled_lr(1e-6, alpha))
        nn.functional.mse_loss(scaled(inputs), target).backward()
        optimizer.step()
        changes.append(scaled(inputs).detach())
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-3, atol=1e-12)


def test_it_is_the_encoder_of_a_module_with_heads_that_pass_its_output_on() -> None:
    module = MultiTaskModule(CenteredOutputScale(MLPEncoder(4, [3])), {"size": Regression(3, head=nn.Identity)})
    assert module(torch.randn(2, 4))["size"].abs().max() == 0


def test_quadratic_network_is_the_formula() -> None:
    network = QuadraticNetwork(3, hidden=5, linear=0.7, quadratic=0.2)
    inputs = torch.randn(4, 3)
    hidden = inputs @ network.weight.T
    torch.testing.assert_close(network(inputs), (0.7 * hidden + 0.1 * hidden**2).mean(1, keepdim=True))
    squares = QuadraticNetwork(3, hidden=5, out_features=2, linear=0, quadratic=2, train_readout=True)
    torch.testing.assert_close(squares(inputs), (inputs @ squares.weight.T) ** 2 @ squares.readout.T)
    assert [name for name, _ in squares.named_parameters()] == ["weight", "readout"]


def test_fixed_readouts_of_several_outputs_differ() -> None:
    readout = QuadraticNetwork(3, hidden=50, out_features=2).readout
    assert readout.abs().unique().tolist() == [1.0]
    assert not readout[0].equal(readout[1])


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: CenteredOutputScale(nn.Linear(1, 1), alpha=0), "alpha must be positive, got 0"),
        (lambda: scaled_lr(0.1, -1), "alpha must be positive, got -1"),
        (lambda: QuadraticNetwork(0), "in_features must be at least 1, got 0"),
        (lambda: QuadraticNetwork(2, weight_std=0), "weight_std must be positive, got 0"),
    ],
    ids=["alpha", "scaled_lr", "in_features", "weight_std"],
)
def test_values_out_of_range_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
