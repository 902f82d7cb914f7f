"""Gradient normalization."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from lightning_mtl.balancers import GradNorm
from tests.balancers.cases import TASKS, Toy, linear_losses, toy_batches, train


def objective(weights: Tensor, losses: list[Tensor], start: Tensor, layer: Tensor, asymmetry: float) -> Tensor:
    """The paper's objective, differentiated twice by autograd."""
    norms = torch.stack(
        [
            torch.autograd.grad(weight * loss, layer, create_graph=True)[0].norm()
            for weight, loss in zip(weights, losses, strict=True)
        ]
    )
    ratios = torch.stack(losses).detach() / start
    target = norms.mean().detach() * (ratios / ratios.mean()) ** asymmetry
    return (norms - target).abs().sum()


@pytest.mark.parametrize("asymmetry", [0.0, 0.12, 1.5])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_weights_follow_the_gradient_of_the_objective(asymmetry: float, optimizer: Any) -> None:
    model = Toy(dtype=torch.float64)
    layer = model.encoder[0].weight
    balancer = GradNorm(TASKS, asymmetry, 0.05, optimizer).double()
    weights = torch.ones(3, dtype=torch.float64, requires_grad=True)
    adam = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[optimizer]([weights], lr=0.05)
    start = None
    for inputs, targets in toy_batches(12, dtype=torch.float64):
        losses = list(model.mean_losses(inputs, targets).values())
        start = torch.stack(losses).detach() if start is None else start
        balancer(dict(zip(TASKS, losses, strict=True)), shared=model.encoder.parameters())
        torch.testing.assert_close(torch.stack(list(balancer.weights.values())), weights.detach())
        (weights.grad,) = torch.autograd.grad(objective(weights, losses, start, layer, asymmetry), weights)
        adam.step()
        with torch.no_grad():
            weights.clamp_(min=0).mul_(3 / weights.sum())
        torch.testing.assert_close(balancer.task_weights, weights.detach())


def test_without_asymmetry_the_weighted_norms_become_equal() -> None:
    balancer = GradNorm(TASKS, asymmetry=0.0, lr=0.01, parameters="all")
    values = {"a": 1.0, "b": 3.0, "c": 10.0}
    for _ in range(800):
        losses, leaf = linear_losses(values)
        balancer(losses, shared=[leaf])
    norms = {name: torch.autograd.grad(loss, leaf, retain_graph=True)[0].norm() for name, loss in losses.items()}
    weighted = torch.stack([balancer.weights[name] * norms[name] for name in TASKS])
    # sign steps of size lr keep it moving around the optimum by lr * norm
    assert float((weighted - weighted.mean()).abs().max()) < 0.02 * float(max(norms.values()))


@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_adam_makes_the_update_independent_of_the_scale(factor: float) -> None:
    found = []
    for scale in (1.0, factor):
        balancer = GradNorm(TASKS, parameters="all")
        for _ in range(5):
            losses, leaf = linear_losses({"a": scale, "b": 3 * scale, "c": 10 * scale})
            balancer(losses, shared=[leaf])
        found.append(balancer.task_weights)
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-6)


def test_a_task_whose_weight_was_clipped_at_zero_comes_back() -> None:
    balancer = GradNorm(TASKS, lr=0.1)
    balancer.task_weights.copy_(torch.tensor([0.0, 1.5, 1.5]))
    train(balancer, Toy(), toy_batches(3))
    assert balancer.task_weights[0] > 0


def gradient_shapes(balancer: GradNorm, monkeypatch: pytest.MonkeyPatch) -> list[list[tuple[int, ...]]]:
    """Return the shapes of the parameters that each task was differentiated with respect to."""
    found: list[list[tuple[int, ...]]] = []
    grad = torch.autograd.grad

    def spy(outputs: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        found.append([tuple(tensor.shape) for tensor in inputs])
        return grad(outputs, inputs, *args, **kwargs)

    monkeypatch.setattr(torch.autograd, "grad", spy)
    model = Toy()
    balancer(model.mean_losses(*toy_batches(1)[0]), shared=model.encoder.parameters())
    return found


def test_last_means_the_weight_of_the_last_shared_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gradient_shapes(GradNorm(TASKS), monkeypatch) == [[(5, 4)]] * 3


def test_all_means_every_shared_parameter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert gradient_shapes(GradNorm(TASKS, parameters="all"), monkeypatch) == [[(5, 4), (5,)]] * 3


class Holder(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = Toy()


def fake_trainer(**attributes: Any) -> Any:
    defaults = {"lightning_module": Holder(), "precision_plugin": SimpleNamespace(), "strategy": object()}
    return SimpleNamespace(**(defaults | attributes))


def test_named_parameters_are_looked_up_in_the_module() -> None:
    trainer = fake_trainer()
    model = trainer.lightning_module.model
    named = GradNorm(TASKS, parameters=["model.encoder.0.weight"])
    named.attach(trainer)
    last = GradNorm(TASKS)
    losses = model.mean_losses(*toy_batches(1)[0])
    for balancer in (named, last):
        balancer(losses, shared=model.encoder.parameters())
    assert torch.equal(named.task_weights, last.task_weights)
    with pytest.raises(ValueError, match=r"GradNorm: Holder has no parameters \['model\.x'\]; choose among"):
        GradNorm(parameters=["model.x"]).attach(trainer)


def test_the_loss_scale_of_mixed_precision_is_taken_out_again() -> None:
    class Scaler:
        def scale(self, value: Tensor) -> Tensor:
            return value * 2.0**16

    scaled = GradNorm(TASKS, optimizer="sgd")
    scaled.attach(fake_trainer(precision_plugin=SimpleNamespace(scaler=Scaler())))
    plain = GradNorm(TASKS, optimizer="sgd")
    for balancer in (scaled, plain):
        train(balancer, Toy(), toy_batches(3))
    torch.testing.assert_close(scaled.task_weights, plain.task_weights)


def test_strategies_that_shard_parameters_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"GradNorm: needs the whole gradient .* FSDPStrategy shards"):
        GradNorm().attach(fake_trainer(strategy=FSDPStrategy()))


def test_given_start_losses_are_used() -> None:
    balancer = GradNorm(["a", "b"], initial_losses={"b": 4.0, "a": 2.0}, parameters="all")
    losses, leaf = linear_losses({"a": 1.0, "b": 1.0})
    balancer(losses, shared=[leaf])
    assert balancer.start_losses.tolist() == [2.0, 4.0]


def _call(balancer: GradNorm, shared: list[Tensor] | None) -> None:
    losses, _ = linear_losses({"a": 1.0})
    balancer(losses, shared=shared)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: GradNorm(asymmetry=-1), "GradNorm: asymmetry must not be negative, got -1"),
        (lambda: GradNorm(lr=0), "GradNorm: lr must be positive, got 0"),
        (lambda: GradNorm(optimizer="rms"), "GradNorm: optimizer must be 'adam' or 'sgd', got 'rms'"),
        (lambda: GradNorm(parameters="first"), "GradNorm: parameters must be 'last', 'all' or a list"),
        (lambda: GradNorm(parameters=[]), "GradNorm: parameters must be 'last', 'all' or a list"),
        (lambda: GradNorm(initial_losses={"a": 0.0}), "GradNorm: initial_losses must be positive"),
        (lambda: _call(GradNorm(), None), "GradNorm: needs shared parameters that are trained; pass shared="),
        (lambda: _call(GradNorm(), [torch.ones(1)]), "GradNorm: needs shared parameters that are trained"),
        (lambda: _call(GradNorm(parameters=["x"]), None), r"GradNorm: parameters given by name .* attach\(trainer\)"),
        (
            lambda: _call(GradNorm(), [torch.ones(1, requires_grad=True)]),
            "GradNorm: no loss depends on the chosen parameters",
        ),
    ],
)
def test_mistakes_are_explained(act: Callable[[], None], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        act()
