"""The contract of gradient balancing, with weights that are simple functions of the Gramian."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any, ClassVar

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting import (
    GradientAggregation,
    GradientBalancer,
    GradientOptions,
    GradientWeighting,
    NonFiniteGradientError,
)
from tests.balancers.trunks import Problem, flat_grads, rows_of


class InverseNorm(GradientWeighting):
    """Weights that are inverse norms, times a number that counts the calls.

    Args:
        growth: By how much the number grows in a call.
    """

    calls: Tensor

    def __init__(self, growth: float = 1.0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        self.growth = growth

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("calls", torch.full((num_tasks,), 1 - self.growth))

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        assert not torch.is_grad_enabled()
        self.calls[rows] += self.growth
        return self.calls[rows] / gramian.diagonal().sqrt()


class Median(GradientAggregation):
    """The median of every coordinate."""

    compares_at: ClassVar[tuple[str, ...]] = ("parameters", "features")

    def aggregate(self, matrix: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        return matrix.median(0).values


def expected(losses: dict[str, Tensor], leaves: list[Any], factor: float = 1.0) -> tuple[Tensor, Tensor]:
    matrix = rows_of(losses, leaves)
    weights = factor / matrix.norm(dim=1)
    return weights, weights @ matrix


def build(**options: Any) -> InverseNorm:
    balancer = InverseNorm(**options)
    balancer.register_buffer("seen", torch.zeros(()))
    return balancer


# ---------------------------------------------------------------------- the update
@pytest.mark.parametrize("engine", ["auto", "sequential", "batched", "mixed"])
def test_the_update_is_the_weighted_sum_of_the_task_gradients(engine: Any) -> None:
    problem = Problem()
    losses = problem.losses()
    weights, update = expected(losses, problem.shared)
    own = [rows_of({name: loss}, list(problem.heads[name].parameters()))[0] for name, loss in losses.items()]
    balancer = InverseNorm(engine=engine)
    total = balancer(losses, shared=problem.encoder.parameters())
    torch.testing.assert_close(
        total.detach(), sum(w * loss.detach() for w, loss in zip(weights, losses.values(), strict=True))
    )
    total.backward()
    torch.testing.assert_close(flat_grads(problem.shared), update)
    for head, gradient in zip(problem.heads.values(), own, strict=True):
        torch.testing.assert_close(flat_grads(list(head.parameters())), gradient)
    torch.testing.assert_close(torch.stack(list(balancer.weights.values())), weights)


@pytest.mark.parametrize("at", ["parameters", "features"])
def test_heads_receive_the_weighted_gradient_on_request(at: Any) -> None:
    problem = Problem()
    z = problem.encoder(problem.inputs)
    losses = problem.losses(z)
    balancer = InverseNorm(at=at, head_gradients="weighted")
    matrix = rows_of(losses, problem.shared)
    own = {name: rows_of({name: loss}, list(problem.heads[name].parameters()))[0] for name, loss in losses.items()}
    balancer(losses, shared=problem.shared, features=z).backward()
    weights = torch.stack(list(balancer.weights.values()))
    torch.testing.assert_close(flat_grads(problem.shared), weights @ matrix)
    for weight, (name, head) in zip(weights, problem.heads.items(), strict=True):
        torch.testing.assert_close(flat_grads(list(head.parameters())), weight * own[name])


@pytest.mark.parametrize("head_gradients", ["own", "weighted"])
def test_a_head_parameter_of_several_tasks_receives_the_sum(head_gradients: Any) -> None:
    problem = Problem(tasks=2)
    z = problem.encoder(problem.inputs)
    neck = nn.Linear(8, 8)
    losses = problem.losses(neck(z))
    each = rows_of(losses, list(neck.parameters()))
    balancer = InverseNorm(head_gradients=head_gradients)
    balancer(losses, shared=problem.shared).backward()
    weights = torch.stack(list(balancer.weights.values())) if head_gradients == "weighted" else torch.ones(2)
    torch.testing.assert_close(flat_grads(list(neck.parameters())), weights @ each)


def test_frozen_parameters_are_left_alone_and_unreached_ones_get_zero() -> None:
    problem = Problem()
    problem.encoder[0].weight.requires_grad_(False)
    idle = nn.Parameter(torch.ones(2))
    InverseNorm()(problem.losses(), shared=[idle, *problem.encoder.parameters()]).backward()
    assert problem.encoder[0].weight.grad is None
    torch.testing.assert_close(idle.grad, torch.zeros(2))
    assert problem.encoder[0].bias.grad is not None


def test_gradients_of_the_scalar_can_be_taken_by_autograd_grad_and_twice() -> None:
    problem = Problem()
    losses = problem.losses()
    _, update = expected(losses, problem.shared)
    total = InverseNorm()(losses, shared=problem.shared)
    for _ in range(2):
        found = torch.autograd.grad(total, problem.shared, retain_graph=True)
        torch.testing.assert_close(torch.cat([part.flatten() for part in found]), update)


def test_a_second_backward_without_keeping_the_graph_is_an_error() -> None:
    problem = Problem()
    total = InverseNorm()(problem.losses(), shared=problem.shared)
    total.backward()
    with pytest.raises(RuntimeError, match="was passed backward twice"):
        total.backward()


def test_another_loss_on_the_same_graph_can_be_added() -> None:
    problem = Problem()
    z = problem.encoder(problem.inputs)
    losses = problem.losses(z)
    _, update = expected(losses, problem.shared)
    extra = rows_of({"extra": z.square().sum()}, problem.shared)[0]
    (InverseNorm()(losses, shared=problem.shared) + z.square().sum()).backward()
    torch.testing.assert_close(flat_grads(problem.shared), update + extra)


def test_leaves_take_the_update_over_without_a_copy() -> None:
    problem = Problem()
    seen: list[int] = []
    for parameter in problem.shared:
        parameter.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    InverseNorm()(problem.losses(), shared=problem.shared).backward()
    assert sorted(seen) == sorted(parameter.grad.data_ptr() for parameter in problem.shared)  # type: ignore[union-attr]


@pytest.mark.parametrize("engine", ["sequential", "batched", "mixed"])
def test_hooks_fire_once_on_the_update(engine: Any) -> None:
    problem = Problem()
    fired: list[str] = []
    weight, bias = problem.encoder[0].weight, problem.encoder[0].bias
    head = problem.heads["t0"].weight
    weight.register_hook(lambda gradient: fired.append("tensor") or 2 * gradient)
    head.register_hook(lambda gradient: fired.append("head"))
    bias.register_post_accumulate_grad_hook(lambda parameter: fired.append("accumulated"))
    losses = problem.losses()
    _, update = expected(problem.losses(), problem.shared)
    fired.clear()
    InverseNorm(engine=engine)(losses, shared=problem.shared).backward()
    assert sorted(fired) == ["accumulated", "head", "tensor"]
    size = weight.numel()
    assert weight.grad is not None
    ratio = weight.grad.flatten() / update[:size]
    assert len(weight._backward_hooks) == 1
    assert ratio.isfinite().any()


def test_hooks_come_back_after_an_error() -> None:
    problem = Problem()
    problem.encoder[0].weight.register_hook(lambda gradient: gradient)
    losses = problem.losses()
    torch.autograd.grad(losses["t1"], problem.shared)  # frees the graph
    with pytest.raises(RuntimeError, match="second time"):
        InverseNorm(engine="sequential")(losses, shared=problem.shared)
    assert len(problem.encoder[0].weight._backward_hooks) == 1


# ---------------------------------------------------------------------- features
def test_at_features_the_trunk_is_passed_once() -> None:
    problem = Problem()
    passes: list[int] = []
    problem.encoder[0].weight.register_hook(lambda gradient: passes.append(1))
    z = problem.encoder(problem.inputs)
    losses = problem.losses(z)
    matrix, at_z = rows_of(losses, problem.shared), rows_of(losses, [z])
    passes.clear()
    balancer = InverseNorm(at="features")
    balancer(losses, features={"some": [z]}).backward()
    assert passes == [1]
    weights = 1 / at_z.norm(dim=1)
    torch.testing.assert_close(torch.stack(list(balancer.weights.values())), weights)
    torch.testing.assert_close(flat_grads(problem.shared), weights @ matrix)
    torch.testing.assert_close(balancer.last_gramian, at_z @ at_z.T)


def test_features_of_several_levels_and_of_single_tasks() -> None:
    problem = Problem(tasks=2)
    low = problem.encoder[0](problem.inputs)
    high = problem.encoder[3:](problem.encoder[2](low.relu()))
    gate = nn.Parameter(torch.full((8,), 0.5))
    mine = high * gate
    losses = {
        "t0": problem.heads["t0"](high).square().mean() + low.square().mean(),
        "t1": problem.heads["t1"](mine).square().mean(),
    }
    z = [low, high, mine]
    matrix = rows_of(losses, [*problem.shared, gate])
    at_high = torch.autograd.grad(losses["t0"], high, retain_graph=True)[0].flatten()
    at_mine = torch.autograd.grad(losses["t1"], mine, retain_graph=True)[0].flatten()
    at_low = (2 * low / low.numel()).flatten().detach()  # directly, not by way of the higher level
    gramian = torch.stack([at_high @ at_high + at_low @ at_low, at_mine @ at_mine]).diag()
    balancer = InverseNorm(at="features")
    balancer(losses, features=z).backward()
    torch.testing.assert_close(balancer.last_gramian, gramian)
    weights = torch.stack(list(balancer.weights.values()))
    torch.testing.assert_close(flat_grads([*problem.shared, gate]), weights @ matrix)


def test_aggregation_at_features() -> None:
    problem = Problem()
    z = problem.encoder(problem.inputs)
    losses = problem.losses(z)
    update = torch.autograd.grad(z, problem.shared, rows_of(losses, [z]).median(0).values.view_as(z), retain_graph=True)
    Median(at="features")(losses, features=z).backward()
    torch.testing.assert_close(flat_grads(problem.shared), torch.cat([part.flatten() for part in update]))


def test_a_way_around_the_features_is_an_error() -> None:
    problem = Problem()
    z = problem.encoder(problem.inputs)
    losses = problem.losses(z)
    losses["t1"] = losses["t1"] + problem.encoder[0].weight.square().sum()
    with pytest.raises(ValueError, match="'t1' reaches shared parameters by a way around the features"):
        InverseNorm(at="features")(losses, shared=problem.shared, features=z)


@pytest.mark.parametrize("head_gradients", ["own", "weighted"])
@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("every", [1, 2])
def test_passing_the_heads_in_the_ordinary_way_gives_the_same(
    head_gradients: Any, levels: int, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run() -> tuple[Tensor, Tensor]:
        problem = Problem()
        balancer = InverseNorm(at="features", head_gradients=head_gradients, every_n_steps=every)
        balancer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8)
        for _ in range(2):
            problem.zero_grad()
            low = problem.encoder[0](problem.inputs)
            high = problem.encoder[3:](problem.encoder[2](low.relu()))
            losses = problem.losses(high)
            if levels == 2:
                losses["t1"] = losses["t1"] + low.square().mean()
            total = balancer(losses, features=[low, high][-levels:])
            (0.25 * 2.0**8 * total).backward()
        return total.detach(), flat_grads(list(problem.parameters()))

    injected = run()
    monkeypatch.setattr(GradientBalancer, "_passing", lambda self, graph: graph)
    torch.testing.assert_close(run(), injected)


def test_tasks_are_dropped_too_where_heads_are_passed_in_the_ordinary_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientBalancer, "_passing", lambda self, graph: graph)
    problem = Problem()
    z = problem.encoder(problem.inputs)
    losses = problem.losses(z)
    losses["t1"] = losses["t1"] * float("nan")
    InverseNorm(at="features", on_nonfinite="drop")(losses, features=z).backward()
    assert flat_grads(problem.shared).isfinite().all()
    assert problem.heads["t1"].weight.grad is None


# ---------------------------------------------------------------------- aggregation
@pytest.mark.parametrize("engine", ["auto", "sequential", "batched"])
def test_aggregation_sees_the_matrix(engine: Any) -> None:
    problem = Problem()
    losses = problem.losses()
    update = rows_of(losses, problem.shared).median(0).values
    balancer = Median(engine=engine)
    total = balancer(losses, shared=problem.shared)
    torch.testing.assert_close(total.detach(), torch.stack(list(losses.values())).sum().detach())
    total.backward()
    torch.testing.assert_close(flat_grads(problem.shared), update)


@pytest.mark.parametrize(
    "options", [{"head_gradients": "weighted"}, {"every_n_steps": 2}, {"parameters": "last"}, {"engine": "mixed"}]
)
def test_aggregation_refuses_what_needs_weights(options: Any) -> None:
    with pytest.raises(ValueError, match=f"Median: .*{next(iter(options))}"):
        Median(**options)


# ---------------------------------------------------------------------- tasks
def test_one_task_gets_a_multiple_of_its_gradient() -> None:
    problem = Problem(tasks=1)
    losses = problem.losses()
    matrix = rows_of(losses, problem.shared)
    InverseNorm()(losses, shared=problem.shared).backward()
    torch.testing.assert_close(flat_grads(problem.shared), matrix[0] / matrix[0].norm())


def test_absent_tasks_keep_their_state() -> None:
    problem = Problem()
    balancer = InverseNorm(tasks=["t0", "t1", "t2"])
    losses = problem.losses()
    del losses["t1"]
    balancer(losses, shared=problem.shared)
    assert balancer.calls.tolist() == [1, 0, 1]
    assert list(balancer.norms) == ["t0", "t2"]
    assert list(balancer.cosines) == [("t0", "t2")]


def test_a_task_without_labels_here_may_touch_its_head_only() -> None:
    problem = Problem()
    losses = problem.losses()
    matrix = rows_of(losses, problem.shared)

    class Touch(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *parameters: Tensor) -> Tensor:
            ctx.save_for_backward(*parameters)
            return parameters[0].new_zeros(())

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)

    class Ones(GradientWeighting):
        def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
            return torch.ones_like(losses)

    for zero in (Touch.apply(*problem.heads["t1"].parameters()), torch.zeros(())):
        problem.zero_grad()
        losses["t1"] = zero
        balancer = Ones()
        balancer(losses, shared=problem.shared).backward(retain_graph=True)
        torch.testing.assert_close(flat_grads(problem.shared), matrix[0] + matrix[2])
        assert balancer.norms["t1"] == 0
        assert balancer.cosines["t0", "t1"] == 0
        if zero.requires_grad:
            assert not problem.heads["t1"].weight.grad.any()


def test_a_loss_that_depends_on_nothing_shared_is_an_error() -> None:
    problem = Problem()
    losses = problem.losses()
    losses["t1"] = problem.heads["t1"](torch.ones(8)).square().sum()
    for options in ({"at": "parameters"}, {"at": "features"}):
        z = problem.encoder(problem.inputs)
        losses["t0"] = losses["t2"] = z.sum()
        with pytest.raises(ValueError, match="InverseNorm: the loss of task 't1' does not depend on"):
            InverseNorm(**options)(losses, shared=problem.shared, features=z)  # type: ignore[arg-type]


def test_missing_arguments_are_named() -> None:
    problem = Problem()
    sharded = nn.Parameter(torch.zeros(2))
    sharded.device_mesh = None  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"sharded over devices \(DTensor\).*set at=\"features\""):
        InverseNorm()(problem.losses(), shared=[sharded])
    with pytest.raises(ValueError, match="needs the parameters that the tasks share, got none; call"):
        InverseNorm()(problem.losses())
    with pytest.raises(ValueError, match="got none that requires a gradient"):
        InverseNorm()(problem.losses(), shared=[torch.zeros(2)])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="needs the features of the shared part, got none; call"):
        InverseNorm(at="features")(problem.losses(), shared=problem.shared)
    losses = problem.losses()
    with torch.no_grad(), pytest.raises(ValueError, match="call it in training_step"):
        InverseNorm()(losses, shared=problem.shared)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": "nowhere"}, r"InverseNorm: at must be one of \['parameters', 'features'\], got 'nowhere'"),
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, got 0"),
        ({"parameters": "first"}, r"parameters must be \"all\", \"last\" or a list"),
        ({"at": "features", "parameters": "last"}, "has no meaning"),
        ({"balance": "accumulated", "every_n_steps": 2}, "goes with"),
        ({"engine": "fast"}, "engine must be one of"),
    ],
)
def test_wrong_options_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InverseNorm(**options)
    with pytest.raises(TypeError, match=r"unknown options \['every'\]; known are"):
        InverseNorm(every=2)  # type: ignore[call-arg]


# ---------------------------------------------------------------------- which parameters
def test_the_last_weight_decides_for_all() -> None:
    problem = Problem()
    losses = problem.losses()
    compared = [problem.encoder[5].weight]
    weights = 1 / rows_of(losses, compared).norm(dim=1)
    update = weights @ rows_of(losses, problem.shared)
    InverseNorm(parameters="last")(losses, shared=problem.shared).backward()
    torch.testing.assert_close(flat_grads(problem.shared), update)


def test_patterns_choose_parameters_by_name() -> None:
    problem = Problem()
    losses = problem.losses()
    balancer = InverseNorm(parameters=["3.*", "5.w*"])
    with pytest.raises(ValueError, match=r"call balancer.watch\(encoder\) once"):
        balancer(losses, shared=problem.shared)
    balancer.watch(problem.encoder)
    weights = 1 / rows_of(losses, [problem.encoder[3].weight, problem.encoder[5].weight]).norm(dim=1)
    balancer(losses, shared=problem.shared)
    torch.testing.assert_close(torch.stack(list(balancer.weights.values())), weights)
    wrong = InverseNorm(parameters=["layer9.*"])
    wrong.watch(problem.encoder)
    with pytest.raises(ValueError, match=r"no match for 'layer9.\*'; the names are \['0.weight'"):
        wrong(losses, shared=problem.shared)


# ---------------------------------------------------------------------- reuse and state
@pytest.mark.parametrize("at", ["parameters", "features"])
@pytest.mark.parametrize("head_gradients", ["own", "weighted"])
def test_weights_are_reused_between_steps(at: Any, head_gradients: Any) -> None:
    problem = Problem()
    balancer = InverseNorm(at=at, head_gradients=head_gradients, every_n_steps=3)
    kept: list[Tensor] = []
    for step in range(5):
        problem.zero_grad()
        z = problem.encoder(problem.inputs)
        losses = {name: loss * (1 + step) for name, loss in problem.losses(z).items()}
        matrix = rows_of(losses, problem.shared)
        head = rows_of(losses, [problem.heads["t2"].weight])[2]
        balancer(losses, shared=problem.shared, features=z).backward()
        weights = torch.stack(list(balancer.weights.values()))
        kept.append(weights)
        torch.testing.assert_close(flat_grads(problem.shared), weights @ matrix)
        factor = weights[2] if head_gradients == "weighted" else 1.0
        torch.testing.assert_close(problem.heads["t2"].weight.grad.flatten(), factor * head)
    assert torch.equal(kept[0], kept[1])
    assert torch.equal(kept[1], kept[2])
    assert not torch.equal(kept[2], kept[3])
    assert balancer.calls.tolist() == [2, 2, 2]


def test_a_task_without_weights_to_reuse_makes_new_ones() -> None:
    problem = Problem()
    balancer = InverseNorm(every_n_steps=10, tasks=["t0", "t1", "t2"])
    losses = problem.losses()
    balancer({name: losses[name] for name in ("t0", "t1")}, shared=problem.shared)
    balancer(losses, shared=problem.shared)
    assert balancer.calls.tolist() == [2, 2, 1]


@pytest.mark.parametrize("options", [{}, {"every_n_steps": 2}, {"engine": "mixed"}, {"at": "features"}], ids=str)
def test_a_resumed_balancer_goes_on_bit_by_bit(options: Any) -> None:
    def run(problem: Problem, balancer: InverseNorm, steps: int) -> Tensor:
        optimizer = torch.optim.SGD(problem.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            z = problem.encoder(problem.inputs)
            balancer(problem.losses(z), shared=problem.shared, features=z).backward()
            optimizer.step()
        return nn.utils.parameters_to_vector(problem.parameters())

    problem, balancer = Problem(), InverseNorm(**options)
    run(problem, balancer, 3)
    file = io.BytesIO()
    torch.save([problem.state_dict(), balancer.state_dict()], file)
    file.seek(0)
    states = torch.load(file, weights_only=True)
    after = run(problem, balancer, 3)
    again, fresh = Problem(), InverseNorm(**options)
    again.load_state_dict(states[0])
    fresh.load_state_dict(states[1])
    assert torch.equal(run(again, fresh, 3), after)


def test_reset_forgets() -> None:
    problem = Problem()
    balancer = InverseNorm(every_n_steps=2)
    balancer(problem.losses(), shared=problem.shared)
    balancer.reset()
    assert balancer.last_gramian is None
    assert balancer.norms == balancer.cosines == {}
    assert balancer.conflict_share is None
    assert balancer.calls.tolist() == [0, 0, 0]
    balancer(problem.losses(), shared=problem.shared)
    assert balancer.calls.tolist() == [1, 1, 1]


def test_balancers_can_be_copied_and_pickled_after_a_step() -> None:
    problem = Problem()
    balancer = InverseNorm(engine="sequential")
    balancer.watch(problem.encoder)
    balancer(problem.losses(), shared=problem.shared)
    for twin in (copy.deepcopy(balancer), pickle.loads(pickle.dumps(balancer))):
        assert twin._engines.sequential.store._matrix is None
        twin(problem.losses(), shared=problem.shared)
        assert twin.calls.tolist() == [2, 2, 2]


def test_tasks_are_bound_when_the_constructor_is_done() -> None:
    assert InverseNorm(growth=3.0, tasks=["a", "b"]).calls.tolist() == [-2, -2]


# ---------------------------------------------------------------------- numbers
@pytest.mark.parametrize("engine", ["sequential", "batched", "mixed"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_raises_and_names_the_task(engine: Any, value: float) -> None:
    problem = Problem()
    losses = problem.losses()
    losses["t1"] = losses["t1"] * value
    balancer = InverseNorm(engine=engine)
    with pytest.raises(NonFiniteGradientError, match="InverseNorm: the gradient of 't1' is not finite at step 0"):
        balancer(losses, shared=problem.shared)
    assert balancer.calls.tolist() == [0, 0, 0]


@pytest.mark.parametrize("options", [{"engine": "sequential"}, {"engine": "mixed"}, {"at": "features"}], ids=str)
def test_a_gradient_that_is_not_finite_is_dropped_on_request(options: Any) -> None:
    problem = Problem()
    z = problem.encoder(problem.inputs)
    losses = problem.losses(z)
    good = {name: losses[name] for name in ("t0", "t2")}
    twin = InverseNorm(**options, tasks=["t0", "t2"])
    twin(good, shared=problem.shared, features=z).backward(retain_graph=True)
    update = flat_grads(problem.shared)
    problem.zero_grad()
    losses["t1"] = losses["t1"] * float("nan")
    balancer = InverseNorm(**options, on_nonfinite="drop")
    total = balancer(losses, shared=problem.shared, features=z)
    total.backward()
    torch.testing.assert_close(flat_grads(problem.shared), update)
    assert total.isfinite()
    assert balancer.calls.tolist() == [1, 0, 1]
    assert balancer.weights["t1"] == 0
    assert not problem.heads["t1"].weight.grad.any()
    problem.zero_grad()
    bad = {name: loss * float("nan") for name, loss in problem.losses().items()}
    z = problem.encoder(problem.inputs)
    bad = {name: loss * float("nan") for name, loss in problem.losses(z).items()}
    balancer(bad, shared=problem.shared, features=z).backward()
    assert not flat_grads(problem.shared).any()


@pytest.fixture
def asynchronous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the path of accelerators, where the host does not look at the gradients."""
    monkeypatch.setattr(GradientBalancer, "_looks_at_once", lambda self, device: False)


@pytest.mark.usefixtures("asynchronous")
def test_without_looking_a_bad_step_changes_nothing_and_the_next_one_raises() -> None:
    problem = Problem()
    balancer = InverseNorm()
    losses = problem.losses()
    _, update = expected(losses, problem.shared)
    balancer(losses, shared=problem.shared).backward()
    torch.testing.assert_close(flat_grads(problem.shared), update)
    problem.zero_grad()
    losses = problem.losses()
    losses["t2"] = losses["t2"] * float("nan")
    balancer(losses, shared=problem.shared).backward()
    assert not flat_grads(list(problem.parameters())).any()
    assert balancer.calls.tolist() == [1, 1, 1]
    with pytest.raises(NonFiniteGradientError, match="'t2' is not finite at step 1"):
        balancer(problem.losses(), shared=problem.shared)


def test_zero_gradients_pass() -> None:
    problem = Problem()

    class Sum(GradientWeighting):
        def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
            return torch.ones_like(losses)

    losses = {name: 0 * loss for name, loss in problem.losses().items()}
    balancer = Sum()
    balancer(losses, shared=problem.shared).backward()
    assert not flat_grads(problem.shared).any()
    assert balancer.conflict_share == 0
    assert all(value == 0 for value in balancer.cosines.values())


# ---------------------------------------------------------------------- precision
def test_float16_without_a_scaler_is_refused() -> None:
    problem = Problem()
    with torch.autocast("cpu", dtype=torch.float16):
        losses = problem.losses()
        with pytest.raises(RuntimeError, match=r"call balancer.attach\(trainer\), or set balancer.scaler"):
            InverseNorm()(losses, shared=problem.shared)


@pytest.mark.parametrize("options", [{"engine": "sequential"}, {"engine": "mixed"}, {"at": "features"}], ids=str)
def test_the_loss_scale_drops_out_of_weights_and_update(options: Any) -> None:
    problem = Problem()
    losses = problem.losses()
    plain = InverseNorm(**options)
    z = problem.encoder(problem.inputs)
    plain(problem.losses(z), shared=problem.shared, features=z).backward()
    expected_grads = flat_grads(list(problem.parameters()))
    problem.zero_grad()
    balancer = InverseNorm(**options)
    balancer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    optimizer = torch.optim.SGD(problem.parameters(), lr=0.1)
    z = problem.encoder(problem.inputs)
    total = balancer(problem.losses(z), shared=problem.shared, features=z)
    balancer.scaler.scale(total).backward()
    balancer.scaler.unscale_(optimizer)
    torch.testing.assert_close(flat_grads(list(problem.parameters())), expected_grads)
    assert torch.equal(torch.stack(list(balancer.weights.values())), torch.stack(list(plain.weights.values())))
    assert losses


@pytest.mark.parametrize("looks", [True, False])
def test_an_overflow_makes_the_scaler_skip_and_leaves_the_state(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GradientBalancer, "_looks_at_once", lambda self, device: looks)
    problem = Problem()
    balancer = InverseNorm()
    scaler = balancer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    optimizer = torch.optim.SGD(problem.parameters(), lr=0.1)
    before = nn.utils.parameters_to_vector(problem.parameters()).detach().clone()
    scales = []
    for _ in range(8):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            total = balancer(problem.losses(), shared=problem.shared)
        scaler.scale(total).backward()
        moved = torch.isfinite(flat_grads(problem.shared)).all()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
        after = nn.utils.parameters_to_vector(problem.parameters()).detach()
        assert torch.equal(before, after) is not bool(moved)
        before = after.clone()
    assert scales[0] < 2.0**20
    assert scales[-1] == scales[-2], "a scale that fits was found"
    steps = sum(1 for earlier, later in zip([2.0**20, *scales], scales, strict=False) if earlier == later)
    assert balancer.calls.tolist() == [steps] * 3
    assert all(weight.isfinite() for weight in balancer.weights.values())


def test_bfloat16_autocast_is_close_and_the_gramian_is_in_float32() -> None:
    problem = Problem()
    weights, _ = expected(problem.losses(), problem.shared)
    for engine in ("sequential", "mixed", "auto"):
        balancer = InverseNorm(engine=engine)  # type: ignore[arg-type]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            total = balancer(problem.losses(), shared=problem.shared)
        total.backward()
        assert balancer.last_gramian is not None
        assert balancer.last_gramian.dtype == torch.float32
        torch.testing.assert_close(torch.stack(list(balancer.weights.values())), weights, rtol=0.05, atol=0.0)
        assert problem.encoder[0].weight.grad.dtype == torch.float32


@pytest.mark.parametrize("engine", ["sequential", "batched", "mixed"])
def test_models_in_half_precision_keep_their_dtype(engine: Any) -> None:
    problem = Problem(dtype=torch.bfloat16)
    balancer = InverseNorm(engine=engine)
    balancer(problem.losses(), shared=problem.shared).backward()
    assert {parameter.grad.dtype for parameter in problem.parameters()} == {torch.bfloat16}  # type: ignore[union-attr]
    assert balancer.last_gramian is not None
    assert balancer.last_gramian.dtype == torch.float32


# ---------------------------------------------------------------------- graphs of other kinds
def test_activation_checkpointing_works_without_reentrance() -> None:
    problem = Problem()
    _, update = expected(problem.losses(), problem.shared)
    for at in ("parameters", "features"):
        problem.zero_grad()
        z = checkpoint(problem.encoder, problem.inputs, use_reentrant=False)
        InverseNorm(at=at)(problem.losses(z), shared=problem.shared, features=z).backward()  # type: ignore[arg-type]
        if at == "parameters":
            torch.testing.assert_close(flat_grads(problem.shared), update)


def test_reentrant_checkpointing_is_explained() -> None:
    problem = Problem()
    z = checkpoint(problem.encoder, problem.inputs.requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        InverseNorm()(problem.losses(z), shared=problem.shared)


def test_compiled_encoders_work() -> None:
    problem = Problem()
    _, update = expected(problem.losses(), problem.shared)
    balancer = InverseNorm()
    balancer.watch(problem.encoder)
    compiled = torch.compile(problem.encoder, backend="aot_eager")
    for _ in range(2):
        problem.zero_grad()
        fresh = InverseNorm()
        fresh(problem.losses(compiled(problem.inputs)), shared=problem.shared).backward()
        torch.testing.assert_close(flat_grads(problem.shared), update)
    assert "compiled" in fresh.engine_report


# ---------------------------------------------------------------------- what others read
def test_norms_cosines_and_conflicts_come_from_the_gramian() -> None:
    problem = Problem()
    losses = problem.losses()
    matrix = rows_of(losses, problem.shared)
    balancer = InverseNorm()
    balancer(losses, shared=problem.shared)
    unit = matrix / matrix.norm(dim=1, keepdim=True)
    torch.testing.assert_close(torch.stack(list(balancer.norms.values())), matrix.norm(dim=1))
    torch.testing.assert_close(balancer.cosines["t0", "t2"], unit[0] @ unit[2])
    pairs = torch.stack([unit[i] @ unit[j] for i, j in ((0, 1), (0, 2), (1, 2))])
    torch.testing.assert_close(balancer.conflict_share, (pairs < 0).float().mean())


def test_the_engine_is_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    problem = Problem()
    balancer = InverseNorm()
    with caplog.at_level("INFO"):
        for _ in range(2):
            balancer(problem.losses(), shared=problem.shared)
    told = [record.message for record in caplog.records if "computes the gradients" in record.message]
    assert len(told) == 1
    assert balancer.engine_report in told[0]


# ---------------------------------------------------------------------- command line
def test_options_are_parsed_shown_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(GradientBalancer, "balancer")
    path = f"{__name__}.InverseNorm"
    given = {"growth": 2.0, "at": "features", "parameters": "all", "tasks": ["a", "b"]}
    config = parser.parse_object({"balancer": {"class_path": path, "init_args": given}})
    balancer = parser.instantiate(config).balancer
    assert (balancer.growth, balancer.at, balancer.task_names) == (2.0, "features", ("a", "b"))
    assert balancer._recorded_arguments == given
    for wrong in ({"every": 2}, {"at": "nowhere"}, {"every_n_steps": "x"}):
        with pytest.raises(Exception, match=next(iter(wrong))):
            parser.parse_object({"balancer": {"class_path": path, "init_args": wrong}})
    with pytest.raises(SystemExit):
        parser.parse_args([f"--balancer.help={path}"])
    shown = " ".join(capsys.readouterr().out.split())
    for option in GradientOptions.__annotations__:
        assert f"--balancer.{option}" in shown
    assert "Compute new weights in every n-th call" in shown


# ---------------------------------------------------------------------- in a Trainer
class Module(pl.LightningModule):
    def __init__(self, balancer: GradientBalancer | None, **options: Any) -> None:
        super().__init__()
        self.problem = Problem()
        self.balancer = InverseNorm(**options) if balancer is None else balancer

    def setup(self, stage: str) -> None:
        self.balancer.attach(self.trainer)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        z = self.problem.encoder(batch)
        return self.balancer(self.problem.losses(z), shared=self.problem.shared, features=z)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.problem.parameters(), lr=0.01, momentum=0.9)


DATA = torch.randn(12, 5, generator=torch.Generator().manual_seed(1))


def fit(module: Module, callbacks: list[Callback] | None = None, **arguments: Any) -> Tensor:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=callbacks,
        **arguments,
    )
    trainer.fit(module, DataLoader(DATA, batch_size=3))  # type: ignore[arg-type]
    return nn.utils.parameters_to_vector(module.problem.parameters()).detach()


def by_hand(window: int, clip: float | None, joined: bool, head_gradients: str = "own") -> Tensor:
    """Train with explicit gradients of every task; ``joined`` balances the sum over the window."""
    problem = Problem()
    optimizer = torch.optim.SGD(problem.parameters(), lr=0.01, momentum=0.9)
    calls = 0
    for _ in range(2):
        for batches in DATA.split(3 * window):
            optimizer.zero_grad()
            parts = []
            for batch in batches.split(3):
                losses = problem.losses(problem.encoder(batch))
                matrix = rows_of(losses, problem.shared)
                heads = rows_of(losses, list(problem.heads.parameters()))
                parts.append((matrix / window, heads / window))
            if joined:
                parts = [(torch.stack([m for m, _ in parts]).sum(0), torch.stack([h for _, h in parts]).sum(0))]
            update = torch.zeros_like(parts[0][0][0])
            own = torch.zeros_like(parts[0][1][0])
            for matrix, heads in parts:
                calls += 1
                weights = calls / (matrix.norm(dim=1) * (1 if joined else window))
                update += weights @ matrix
                own += heads.sum(0) if head_gradients == "own" else weights @ heads
            nn.utils.vector_to_parameters(update, [p.grad for p in _with_grads(problem.shared)])  # type: ignore[misc]
            nn.utils.vector_to_parameters(own, [p.grad for p in _with_grads(problem.heads.parameters())])  # type: ignore[misc]
            if clip is not None:
                nn.utils.clip_grad_norm_(problem.parameters(), clip)
            optimizer.step()
    return nn.utils.parameters_to_vector(problem.parameters()).detach()


def _with_grads(parameters: Any) -> list[nn.Parameter]:
    found = list(parameters)
    for parameter in found:
        parameter.grad = torch.zeros_like(parameter)
    return found


@pytest.mark.parametrize(("window", "clip"), [(1, None), (2, None), (2, 0.5)])
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_accumulation_and_clipping_in_a_trainer(window: int, clip: float | None) -> None:
    found = fit(Module(None), accumulate_grad_batches=window, gradient_clip_val=clip)
    torch.testing.assert_close(found, by_hand(window, clip, joined=False))


@pytest.mark.parametrize("head_gradients", ["own", "weighted"])
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_accumulated_gradients_are_balanced_together_on_request(head_gradients: Any) -> None:
    module = Module(None, balance="accumulated", head_gradients=head_gradients)
    found = fit(module, accumulate_grad_batches=2)
    torch.testing.assert_close(found, by_hand(2, None, joined=True, head_gradients=head_gradients))
    assert module.balancer.calls.tolist() == [4, 4, 4]  # type: ignore[attr-defined,union-attr,operator]
    with pytest.raises(ValueError, match="needs to know when the optimizer steps"):
        InverseNorm(balance="accumulated")(module.problem.losses(), shared=module.problem.shared)


@pytest.mark.parametrize("strategy", ["FSDPStrategy", "ModelParallelStrategy", "DeepSpeedStrategy"])
def test_strategies_that_shard_are_refused_at_parameters(strategy: str) -> None:
    import lightning.pytorch.strategies as strategies

    class Trainer:
        precision_plugin = None

    trainer: Any = Trainer()
    trainer.strategy = object.__new__(getattr(strategies, strategy))
    with pytest.raises(MisconfigurationException, match='set at="features"'):
        InverseNorm().attach(trainer)
    InverseNorm(at="features").attach(trainer)
