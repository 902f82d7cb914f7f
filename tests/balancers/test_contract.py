"""What every balancer does."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_mtl.balancers import Balancer
from lightning_mtl.nn.recorded import describe
from tests.balancers.cases import CASES, TASKS, BalancerCase, Toy, linear_losses, tensors_of, toy_batches, train


def those_with(property: Callable[[BalancerCase], bool]) -> pytest.MarkDecorator:
    """Run a test over the cases that have this property."""
    return pytest.mark.parametrize("case", [case for case in CASES if property(case)], ids=lambda case: case.id)


every = those_with(lambda case: True)
SCALES = [(1.0, 1.0, 1.0), (1e-10, 1e-10, 1e-10), (1e10, 1e10, 1e10), (1e-10, 1.0, 1e10)]
ZEROS = [(0.0, 1.0, 2.0), (0.0, 0.0, 1.0), (0.0, 0.0, 0.0)]


def call(balancer: Balancer, values: dict[str, float], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    losses, leaf = linear_losses(values, dtype)
    return balancer(losses, shared=[leaf], recompute=lambda tasks=None: linear_losses(values, dtype, leaf)[0]), leaf


def gradient(balancer: Balancer, values: dict[str, float]) -> Tensor:
    total, leaf = call(balancer, values)
    return torch.autograd.grad(total, leaf)[0]


def assert_same_weights(left: list[dict[str, Tensor]], right: list[dict[str, Tensor]], **tolerance: float) -> None:
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        assert set(one) == set(other)
        for name, weight in one.items():
            torch.testing.assert_close(weight, other[name], **tolerance)


@those_with(lambda case: case.fewest == 1)
@pytest.mark.parametrize("value", [1.0, 1e-10, 1e10])
def test_one_task_gives_a_positive_multiple_of_the_plain_gradient(case: BalancerCase, value: float) -> None:
    balancer = case.build(["a"])
    for _ in range(3):
        plain = torch.autograd.grad(*_plain(value))[0]
        update = gradient(balancer, {"a": value})
        factor = (update @ plain) / (plain @ plain)
        assert factor > 0
        torch.testing.assert_close(update, factor * plain)
        balancer.end_epoch()


def _plain(value: float) -> tuple[Tensor, Tensor]:
    losses, leaf = linear_losses({"a": value})
    return losses["a"], leaf


@every
def test_order_of_the_losses_does_not_matter(case: BalancerCase) -> None:
    balancer, other = case.build(TASKS), case.build(TASKS)
    reverse = Toy(TASKS[::-1])
    straight = train(balancer, Toy(), toy_batches(5))
    assert_same_weights(train(other, reverse, toy_batches(5)), straight, rtol=1e-4, atol=1e-6)


@those_with(lambda case: case.permutable)
def test_order_of_the_binding_does_not_matter(case: BalancerCase) -> None:
    straight = train(case.build(TASKS), Toy(), toy_batches(5))
    assert_same_weights(train(case.build(TASKS[::-1]), Toy(), toy_batches(5)), straight, rtol=1e-4, atol=1e-6)


@every
def test_returns_a_scalar_whose_value_is_the_weighted_sum(case: BalancerCase) -> None:
    balancer = case.build(TASKS)
    values = {"a": 1.0, "b": 2.0, "c": 0.5}
    for _ in range(3):
        total, leaf = call(balancer, values)
        assert total.shape == ()
        assert total.device == leaf.device
        assert set(balancer.weights) == set(TASKS)
        assert all(weight.shape == () for weight in balancer.weights.values())
        expected = sum(float(balancer.weights[name]) * value for name, value in values.items())
        assert total.item() == pytest.approx(expected, rel=1e-5)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_returns_the_losses_precision_and_at_least_float32(case: BalancerCase, dtype: torch.dtype) -> None:
    total, leaf = call(case.build(TASKS), {"a": 1.0, "b": 2.0, "c": 0.5}, dtype)
    assert total.dtype == torch.promote_types(dtype, torch.float32)
    (found,) = torch.autograd.grad(total, leaf)
    assert found.dtype == dtype
    assert found.isfinite().all()


@every
def test_state_stays_at_float32_in_a_half_precision_model(case: BalancerCase) -> None:
    holder = torch.nn.ModuleList([case.build(TASKS)]).to(torch.bfloat16)
    assert all(tensor.dtype == torch.float32 for tensor in tensors_of(holder[0]).values())
    assert all(tensor.dtype == torch.float64 for tensor in tensors_of(holder.double()[0]).values())


@every
@pytest.mark.parametrize("values", SCALES + ZEROS, ids=str)
def test_weights_and_gradients_are_finite_at_every_scale(case: BalancerCase, values: tuple[float, ...]) -> None:
    balancer = case.build(TASKS)
    losses = dict(zip(TASKS, values, strict=True))
    for _ in range(3):
        assert gradient(balancer, losses).isfinite().all()
        assert all(weight.isfinite() for weight in balancer.weights.values())
        if not case.signed:
            assert all(weight >= 0 for weight in balancer.weights.values())
        if balancer.needs_losses_after_step:
            balancer.after_step({name: torch.tensor(0.5 * value) for name, value in losses.items()})
        balancer.end_epoch()
    assert all(tensor.isfinite().all() for tensor in tensors_of(balancer).values())


@those_with(lambda case: case.total is not None)
def test_weights_have_the_declared_sum(case: BalancerCase) -> None:
    assert case.total is not None
    for weights in train(case.build(TASKS), Toy(), toy_batches(5)):
        assert float(sum(weights.values())) == pytest.approx(case.total(len(TASKS)), rel=1e-5)


@every
def test_weights_carry_no_gradient_unless_learned(case: BalancerCase) -> None:
    balancer = case.build(TASKS)
    total, leaf = call(balancer, {"a": 1.0, "b": 2.0, "c": 0.5})
    assert not any(weight.requires_grad for weight in balancer.weights.values())
    learned = list(balancer.parameters())
    assert bool(learned) == balancer.learns_parameters
    total.backward()
    assert all(parameter.grad is not None and (parameter.grad != 0).any() for parameter in learned)
    if not case.combines:
        return
    # with the weights held, the scalar is linear in the losses: its gradient is the weighted sum of theirs
    losses, twin = linear_losses({"a": 1.0, "b": 2.0, "c": 0.5})
    weighted = sum(balancer.weights[name] * loss for name, loss in losses.items())
    torch.testing.assert_close(leaf.grad, torch.autograd.grad(weighted, twin)[0])


def save_and_load(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def assert_goes_on_alike(case: BalancerCase, fresh: Balancer) -> None:
    balancer, model = case.build(TASKS), Toy()
    batches = toy_batches(8)
    train(balancer, model, batches[:5])
    fresh.load_state_dict(save_and_load(balancer.state_dict()))
    twin = copy.deepcopy(model)
    assert_same_weights(train(fresh, twin, batches[5:]), train(balancer, model, batches[5:]), rtol=0, atol=0)
    for one, two in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


@every
def test_a_loaded_state_goes_on_alike(case: BalancerCase) -> None:
    assert_goes_on_alike(case, case.build(TASKS))


@those_with(lambda case: case.unbound is not None)
def test_a_state_loaded_before_the_tasks_are_known_goes_on_alike(case: BalancerCase) -> None:
    assert case.unbound is not None
    assert_goes_on_alike(case, case.unbound())


@every
def test_a_copy_goes_on_alike(case: BalancerCase) -> None:
    balancer, model = case.build(TASKS), Toy()
    batches = toy_batches(8)
    train(balancer, model, batches[:4])
    other, twin = copy.deepcopy(balancer), copy.deepcopy(model)
    assert_same_weights(train(other, twin, batches[4:]), train(balancer, model, batches[4:]), rtol=0, atol=0)


@every
def test_reset_makes_it_as_new(case: BalancerCase) -> None:
    balancer = case.build(TASKS)
    parameters = list(balancer.parameters())
    train(balancer, Toy(), toy_batches(5))
    balancer.reset()
    assert all(one is two for one, two in zip(balancer.parameters(), parameters, strict=True))
    assert balancer.weights == {}
    assert balancer.get_extra_state() == case.build(TASKS).get_extra_state()
    for key, value in tensors_of(case.build(TASKS)).items():
        assert torch.equal(tensors_of(balancer)[key], value)
    again = train(case.build(TASKS), Toy(), toy_batches(5))
    assert_same_weights(train(balancer, Toy(), toy_batches(5)), again, rtol=0, atol=0)


@every
def test_an_absent_task_keeps_its_state(case: BalancerCase) -> None:
    balancer, model = case.build(TASKS), Toy()
    batches = toy_batches(5)
    train(balancer, model, batches[:4])
    before = {key: value.clone() for key, value in tensors_of(balancer).items()}
    total = model.balance(balancer, *batches[4], ["a", "c"])
    assert set(balancer.weights) == {"a", "c"}
    parameters = list(balancer.parameters())
    assert all(grad[1] == 0 for grad in (torch.autograd.grad(total, parameters) if parameters else ()))
    if balancer.needs_losses_after_step:
        balancer.after_step({"a": torch.tensor(0.9), "c": torch.tensor(1.0)})
    for key, value in tensors_of(balancer).items():
        for axis in (axis for axis, size in enumerate(value.shape) if size == len(TASKS)):
            assert torch.equal(value.select(axis, 1), before[key].select(axis, 1)), key


@every
def test_trains_when_a_task_comes_and_goes(case: BalancerCase) -> None:
    weights = train(case.build(TASKS), Toy(), toy_batches(5), skip="b")
    assert [len(found) for found in weights] == [3, 2, 3, 2, 3]
    assert all(weight.isfinite() for found in weights for weight in found.values())


@every
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_leaves_the_state_finite(case: BalancerCase, bad: float) -> None:
    balancer = case.build(TASKS)
    for values in ({"a": bad, "b": 1.0, "c": 2.0}, {"a": 1.0, "b": 2.0, "c": 1.0}):
        if case.refuses is not None and values["a"] != 1.0:
            with pytest.raises(case.refuses, match="gradient of 'a' is not finite"):
                call(balancer, values)
            continue
        total, _ = call(balancer, values)
        assert total.isfinite() == (values["a"] == 1.0)
        if balancer.needs_losses_after_step:
            balancer.after_step({name: torch.tensor(value) for name, value in {**values, "c": bad}.items()})
        balancer.end_epoch()
        assert all(tensor.isfinite().all() for tensor in tensors_of(balancer).values())
    assert all(weight.isfinite() for weight in balancer.weights.values())


@every
def test_its_written_down_form_builds_it_again(case: BalancerCase) -> None:
    balancer = case.build(TASKS)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Balancer, "balancer")
    again = parser.instantiate_classes(parser.parse_object({"balancer": describe(balancer)})).balancer
    assert type(again) is type(balancer)
    assert again.task_names == TASKS
    assert_same_weights(train(again, Toy(), toy_batches(2)), train(balancer, Toy(), toy_batches(2)), rtol=0, atol=0)


@every
def test_refuses_losses_that_it_cannot_read(case: BalancerCase) -> None:
    balancer = case.build(TASKS)
    name = type(balancer).__name__
    with pytest.raises(TypeError, match=f"{name}: losses must be a mapping"):
        balancer([torch.tensor(1.0)])
    with pytest.raises(TypeError, match=f"{name}: the loss of task 'a' must be a scalar tensor, got shape"):
        balancer({"a": torch.ones(2)})
    with pytest.raises(ValueError, match=f"{name}: losses must hold at least one task"):
        balancer({})
    with pytest.raises(ValueError, match=rf"{name}: unknown tasks \['z'\]"):
        balancer({"z": torch.tensor(1.0)})


class ForeignModule(pl.LightningModule):
    """Somebody's own module, with the balancer as one line of it."""

    def __init__(self, balancer: Balancer) -> None:
        super().__init__()
        self.model = Toy()
        self.balancer = balancer
        self.seen: list[dict[str, Tensor]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.model.balance(self.balancer, *batch)

    def on_train_batch_end(self, outputs: Any, batch: list[Tensor], batch_idx: int) -> None:
        if self.balancer.needs_losses_after_step:
            with torch.no_grad():
                self.balancer.after_step(self.model.mean_losses(*batch))
        self.seen.append(self.balancer.weights)

    def on_train_epoch_end(self) -> None:
        self.balancer.end_epoch()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.02)


@every
def test_trains_two_steps_in_a_trainer_like_in_an_own_loop(case: BalancerCase) -> None:
    batches = toy_batches(2)
    data = TensorDataset(*(torch.cat(parts) for parts in zip(*batches, strict=True)))
    module = ForeignModule(case.build(TASKS))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*`log_every_n_steps`.*|.*lower value for log_every_n_steps.*")
        trainer.fit(module, DataLoader(data, batch_size=len(batches[0][0])))
    assert module.balancer.steps == 2
    assert module.balancer.epochs == 1
    model = Toy()
    assert_same_weights(module.seen, train(case.build(TASKS), model, batches, epoch=2), rtol=1e-6, atol=0)
    for one, two in zip(module.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(one, two)
