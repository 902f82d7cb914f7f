"""Gradients at perturbed parameters: golden values, closed forms, precision, dropout, and running on."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import (
    DBMTL,
    DWA,
    MGDA,
    SAM,
    Balancer,
    EqualWeighting,
    FlatRegions,
    GradientBalancer,
    GradVac,
    LinearScalarization,
    MoCo,
    NonFiniteGradientError,
    PCGrad,
    TrimmedMean,
)
from lightning_mtl.balancers.sharpness_aware.base import perturbations
from lightning_mtl.functional.second_pass import RandomState, second_pass
from lightning_mtl.nn import FeatureSpec
from lightning_mtl.tasks import Regression
from tests.balancers.cases import TASKS, Toy, toy_batches
from tests.toys import loader, make_trainer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "sam-mtl.json").read_text())["cases"]
AGGREGATORS: dict[str, Callable[[], GradientBalancer]] = {
    "ew": LinearScalarization,
    "pcgrad_sum": PCGrad,
    "mgda_minnorm": MGDA,
}


class Quadratics:
    """Tasks that are quadratic in a shared vector and a head each."""

    def __init__(self, inputs: dict[str, Any], scale: float = 1.0) -> None:
        self.shared = _leaf(inputs["shared"])
        self.heads = [_leaf(head) for head in inputs["heads"]]
        self.forms = [{key: _double(value) for key, value in task.items()} for task in inputs["tasks"]]
        self.scale = scale

    def losses(self, tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        found = {}
        for row, (form, head) in enumerate(zip(self.forms, self.heads, strict=True)):
            s = self.shared
            value = 0.5 * s @ form["A"] @ s + form["b"] @ s + head @ form["C"] @ s + 0.5 * form["c"] * head @ head
            if tasks is None or str(row) in tasks:
                found[str(row)] = self.scale * value
        return found

    def run(self, balancer: Balancer) -> list[Tensor]:
        self.shared.grad = None
        for head in self.heads:
            head.grad = None
        balancer(self.losses(), shared=[self.shared], recompute=self.losses).backward()
        return [self.shared.grad, *(head.grad for head in self.heads)]


def _double(value: Any) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _leaf(value: Any) -> Any:
    return _double(value).requires_grad_()


def flat(case: dict[str, Any], **changes: Any) -> FlatRegions:
    arguments = {key: value for key, value in case["args"].items() if key != "aggregator"} | changes
    return FlatRegions(AGGREGATORS[case["args"]["aggregator"]](), **arguments)


golden = pytest.mark.parametrize("case", GOLDEN, ids=lambda c: "-".join(str(v) for v in c["args"].values()))


@golden
def test_golden_updates(case: dict[str, Any]) -> None:
    problem, expected = Quadratics(case["inputs"]), case["expected"]
    balancer = flat(case)
    shared, *heads = problem.run(balancer)
    torch.testing.assert_close(shared, _double(expected["shared_update_grad"]), rtol=1e-9, atol=1e-11)
    for head, gradient in zip(heads, expected["head_grads"], strict=True):
        torch.testing.assert_close(head, _double(gradient), rtol=1e-9, atol=1e-11)
    grads, flats = _double(expected["grad_loss"]), _double(expected["grad_sam"]) - _double(expected["grad_loss"])
    torch.testing.assert_close(torch.stack([*balancer.norms.values()]), grads.norm(dim=1))
    torch.testing.assert_close(torch.stack([*balancer.flat_norms.values()]), flats.norm(dim=1))
    cosines = torch.cosine_similarity(grads, flats, dim=1)
    torch.testing.assert_close(torch.stack([*balancer.flat_cosines.values()]), cosines)
    torch.testing.assert_close(balancer.cosines["0", "1"], torch.cosine_similarity(grads[0], grads[1], dim=0))


@golden
def test_golden_perturbations(case: dict[str, Any]) -> None:
    problem, args, expected = Quadratics(case["inputs"]), case["args"], case["expected"]
    for row, loss in enumerate(problem.losses().values()):
        gradients = torch.autograd.grad(loss, [problem.shared, problem.heads[row]])
        groups = [
            (gradients[0], problem.shared.detach(), args["rho_shared"]),
            (gradients[1], problem.heads[row].detach(), args["rho_head"]),
        ]
        shared, head = perturbations(groups, args["adaptive"], joint=args["norm_scope"] == "joint")
        torch.testing.assert_close(shared, _double(expected["eps_shared"][row]), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(head, _double(expected["eps_head"][row]), rtol=1e-9, atol=1e-11)


@golden
@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_perturbations_do_not_depend_on_the_scale_of_the_losses(case: dict[str, Any], scale: float) -> None:
    plain = Quadratics(case["inputs"]).run(flat(case))
    for one, two in zip(plain, Quadratics(case["inputs"], scale).run(flat(case)), strict=True):
        torch.testing.assert_close(two / scale, one, rtol=1e-8, atol=0)


@golden
def test_sharpness_is_the_rise_of_the_loss(case: dict[str, Any]) -> None:
    problem, balancer = Quadratics(case["inputs"]), flat(case)
    problem.run(balancer)
    before = {name: loss.item() for name, loss in problem.losses().items()}
    for row, name in enumerate(before):
        moved = Quadratics(case["inputs"])
        moved.shared.data += _double(case["expected"]["eps_shared"][row])
        moved.heads[row].data += _double(case["expected"]["eps_head"][row])
        rise = moved.losses()[name].item() - before[name]
        assert float(balancer.sharpness[name]) == pytest.approx(rise, rel=1e-9)


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_linear_method_gives_the_same_decomposed_and_direct(adaptive: bool) -> None:
    inputs = GOLDEN[0]["inputs"]
    updates = [
        Quadratics(inputs).run(FlatRegions(LinearScalarization(), 0.7, 0.3, adaptive, aggregate))
        for aggregate in ("decomposed", "direct")
    ]
    for one, two in zip(*updates, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-14, atol=1e-14)


def test_sam_takes_the_gradient_of_the_sum_at_the_perturbed_parameters() -> None:
    problem = Quadratics(GOLDEN[0]["inputs"])
    leaves = [problem.shared, *problem.heads]
    for adaptive, eta in ((False, 0.01), (True, 0.01)):
        found = problem.run(SAM(rho=0.5, adaptive=adaptive, eta=eta))
        gradient = torch.cat(torch.autograd.grad(sum(problem.losses().values()), leaves))
        weights = torch.cat(leaves).detach()
        size = weights.abs() + eta if adaptive else torch.ones_like(weights)
        step = 0.5 * size**2 * gradient / (size * gradient).norm()
        moved = Quadratics(GOLDEN[0]["inputs"])
        for leaf, part in zip([moved.shared, *moved.heads], step.split([4, 2, 2]), strict=True):
            leaf.data += part
        expected = torch.autograd.grad(sum(moved.losses().values()), [moved.shared, *moved.heads])
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_sam_of_one_task_is_flat_regions_with_a_joint_norm() -> None:
    inputs = {**GOLDEN[0]["inputs"]}
    inputs = {"shared": inputs["shared"], "heads": inputs["heads"][:1], "tasks": inputs["tasks"][:1]}
    one = Quadratics(inputs).run(SAM(rho=0.3))
    two = Quadratics(inputs).run(FlatRegions(LinearScalarization(), 0.3, adaptive=False, norm_scope="joint"))
    for left, right in zip(one, two, strict=True):
        torch.testing.assert_close(left, right)


# ---------------------------------------------------------------------- networks
def step(balancer: Balancer, model: Toy, batch: tuple[Tensor, Tensor], tasks: Iterable[str] | None = None) -> Tensor:
    for parameter in model.parameters():
        parameter.grad = None
    names = list(tasks or model.heads)

    def recompute(wanted: Iterable[str] | None = None) -> dict[str, Tensor]:
        return model.mean_losses(*batch, list(wanted or names))

    total: Tensor = balancer(recompute(), shared=model.encoder.parameters(), recompute=recompute)
    total.backward()
    return total.detach()


def grads(model: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in model.parameters()]


BOTH: dict[str, Callable[[], Balancer]] = {
    "flat": lambda: FlatRegions(PCGrad(), 0.5),
    "direct": lambda: FlatRegions(MGDA(), 0.5, aggregate="direct"),
    "sam": lambda: SAM(rho=0.5),
}
both = pytest.mark.parametrize("build", BOTH.values(), ids=BOTH.keys())


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parameters_are_the_same_bits_afterwards(build: Callable[[], Balancer], dtype: torch.dtype) -> None:
    model = Toy().to(dtype)
    before = copy.deepcopy(model.state_dict())
    step(build(), model, tuple(part.to(dtype) for part in toy_batches(1)[0]))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(grad is not None and grad.dtype == dtype and grad.isfinite().all() for grad in grads(model))


@both
def test_parameters_are_put_back_when_the_second_evaluation_fails(build: Callable[[], Balancer]) -> None:
    model = Toy()
    before = copy.deepcopy(model.state_dict())
    losses = model.mean_losses(*toy_batches(1)[0])

    def fail(tasks: Any = None) -> dict[str, Tensor]:
        assert not torch.equal(next(model.encoder.parameters()), before["encoder.0.weight"])
        raise RuntimeError("no second evaluation")

    with pytest.raises(RuntimeError, match="no second evaluation"):
        build()(losses, shared=model.encoder.parameters(), recompute=fail)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@both
def test_a_graph_from_before_the_call_can_still_be_passed_backwards(build: Callable[[], Balancer]) -> None:
    model, batch = Toy(), toy_batches(1)[0]
    losses = model.mean_losses(*batch)
    expected = torch.autograd.grad(losses["a"], next(model.encoder.parameters()), retain_graph=True)[0]
    build()(
        losses, shared=model.encoder.parameters(), recompute=lambda tasks=None: model.mean_losses(*batch, list(tasks))
    )
    found = torch.autograd.grad(losses["a"], next(model.encoder.parameters()))[0]
    torch.testing.assert_close(found, expected)


@both
def test_with_a_radius_of_zero_the_update_is_the_plain_one(build: Callable[[], Balancer]) -> None:
    balancer, model, twin, batch = build(), Toy(), Toy(), toy_batches(1)[0]
    if isinstance(balancer, FlatRegions):
        balancer.rho_shared = balancer.rho_head = 0.0
        plain: Balancer = copy.deepcopy(balancer.balancer)
    else:
        balancer.rho = 0.0
        plain = EqualWeighting()
    step(balancer, model, batch)
    step(plain, twin, batch)
    assert all(float(rise) == 0 for rise in balancer.sharpness.values())
    for one, two in zip(grads(model), grads(twin), strict=True):
        torch.testing.assert_close(one, two)


def test_zero_weights_stay_where_they_are_in_the_adaptive_form() -> None:
    gradient, weights = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.0, 1.0, -2.0])
    (move,) = perturbations([(gradient, weights, 1.0)], adaptive=True)
    assert move[0] == 0
    assert move[1:].sign().tolist() == [1, 1]


def test_a_zero_gradient_moves_nothing_and_a_tiny_one_the_whole_radius() -> None:
    zero, weights = torch.zeros(3), torch.ones(3)
    assert perturbations([(zero, weights, 1.0)], adaptive=False)[0].tolist() == [0, 0, 0]
    (move,) = perturbations([(torch.full((3,), 1e-30), weights, 1.0)], adaptive=False)
    assert move.norm() == pytest.approx(1.0)


def test_a_task_with_zero_gradient_takes_no_part_in_either_aggregation() -> None:
    batch = toy_batches(1)[0]
    models = Toy(), Toy(), Toy()
    balancers = [FlatRegions(MGDA(tasks=TASKS), 0.5) for _ in models]

    def losses_with_zero(tasks: Iterable[str] | None = None) -> dict[str, Tensor]:
        found = models[0].mean_losses(*batch, list(tasks or TASKS))
        return {name: 0 * loss if name == "b" else loss for name, loss in found.items()}

    balancers[0](losses_with_zero(), shared=models[0].encoder.parameters(), recompute=losses_with_zero).backward()
    step(balancers[1], models[1], batch, ["a", "c"])
    for (name, one), two in zip(models[0].named_parameters(), grads(models[1]), strict=True):
        if name.startswith("heads.b"):
            assert one.grad is not None
            assert not one.grad.any()
            assert two is None
        else:
            torch.testing.assert_close(one.grad, two)
    assert float(balancers[0].weights["b"]) == 0
    assert float(balancers[0].sharpness["b"]) == 0


def test_a_parameter_of_two_tasks_is_treated_as_shared() -> None:
    class Half(Toy):
        def __init__(self) -> None:
            super().__init__(dtype=torch.float64)
            torch.manual_seed(1)
            self.middle = nn.Linear(5, 5, dtype=torch.float64)

        def losses(self, inputs: Tensor, targets: Tensor, tasks: Any = None) -> dict[str, Tensor]:
            features = self.encoder(inputs)
            between = self.middle(features).tanh()
            found = {
                name: (self.heads[name](features if name == "c" else between).squeeze(1) - targets[:, row]) ** 2
                for row, name in enumerate(TASKS)
            }
            return {name: found[name] for name in (tasks or TASKS)}

    batch = toy_batches(1, dtype=torch.float64)[0]
    one, two = Half(), Half()
    shared = [*two.encoder.parameters(), *two.middle.parameters()]
    for model, leaves in ((one, one.encoder.parameters()), (two, shared)):

        def recompute(tasks: Any = None, model: Half = model) -> dict[str, Tensor]:
            return model.mean_losses(*batch, None if tasks is None else list(tasks))

        FlatRegions(MGDA(), 0.5)(recompute(), shared=leaves, recompute=recompute).backward()
    for left, right in zip(grads(one), grads(two), strict=True):
        torch.testing.assert_close(left, right)


# ---------------------------------------------------------------------- precision
@both
def test_bfloat16_autocast_sees_the_perturbed_parameters(build: Callable[[], Balancer]) -> None:
    model, balancer, batch = Toy(), build(), toy_batches(1)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step(balancer, model, batch)
    full = build()
    step(full, Toy(), batch)
    for name, rise in balancer.sharpness.items():
        assert float(rise) == pytest.approx(float(full.sharpness[name]), rel=0.1, abs=0.05)


class Scaler:
    """Scales losses like ``torch.amp.GradScaler`` does."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def is_enabled(self) -> bool:
        return True

    def scale(self, value: Tensor) -> Tensor:
        return value * self.factor


@both
def test_under_a_loss_scale_the_gradients_are_the_scaled_ones(build: Callable[[], Balancer]) -> None:
    batch = toy_batches(1)[0]
    plain, scaled = Toy(), Toy()
    step(build(), plain, batch)
    balancer = build()
    balancer.scaler = Scaler(1024.0)

    def recompute(tasks: Any = None) -> dict[str, Tensor]:
        return scaled.mean_losses(*batch, None if tasks is None else list(tasks))

    total = balancer(recompute(), shared=scaled.encoder.parameters(), recompute=recompute)
    (1024.0 * total).backward()
    for one, two in zip(grads(plain), grads(scaled), strict=True):
        torch.testing.assert_close(two / 1024.0, one, rtol=1e-4, atol=1e-6)


@both
@pytest.mark.parametrize("when", ["first", "second"])
def test_an_overflow_under_a_scaler_gives_gradients_that_make_it_skip(build: Callable[[], Balancer], when: str) -> None:
    model, balancer, batch = Toy(), build(), toy_batches(1)[0]
    balancer.scaler = Scaler(1024.0)

    def losses(tasks: Any = None) -> dict[str, Tensor]:
        found = model.mean_losses(*batch, None if tasks is None else list(tasks))
        if (tasks is None) == (when == "first"):
            found["a"] = found["a"] * float("inf") if "a" in found else found
        return {name: loss for name, loss in found.items() if isinstance(loss, Tensor)}

    balancer(losses(), shared=model.encoder.parameters(), recompute=losses).backward()
    assert all(grad is not None and grad.isnan().all() for grad in grads(model))
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@both
@pytest.mark.parametrize("when", ["first", "second"])
def test_a_gradient_that_is_no_number_stops_and_says_where(build: Callable[[], Balancer], when: str) -> None:
    model, balancer, batch = Toy(), build(), toy_batches(1)[0]

    def losses(tasks: Any = None) -> dict[str, Tensor]:
        found = model.mean_losses(*batch, None if tasks is None else list(tasks))
        bad = (tasks is None) == (when == "first")
        return {name: loss * float("nan") if bad and name == "a" else loss for name, loss in found.items()}

    where = "" if when == "first" else " at the perturbed p"
    with pytest.raises(NonFiniteGradientError, match=f"{type(balancer).__name__}: the gradient{where}.*not finite"):
        balancer(losses(), shared=model.encoder.parameters(), recompute=losses)
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_such_a_task_is_dropped_when_the_wrapped_balancer_says_so() -> None:
    model, twin, batch = Toy(), Toy(), toy_batches(1)[0]

    def losses(tasks: Any = None) -> dict[str, Tensor]:
        found = model.mean_losses(*batch, None if tasks is None else list(tasks))
        return {name: loss * float("nan") if name == "b" else loss for name, loss in found.items()}

    total = FlatRegions(MGDA(on_nonfinite="drop"), 0.5)(losses(), shared=model.encoder.parameters(), recompute=losses)
    total.backward()
    step(FlatRegions(MGDA(), 0.5), twin, batch, ["a", "c"])
    assert total.isfinite()
    for name, parameter in model.named_parameters():
        other = dict(twin.named_parameters())[name].grad
        torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter) if other is None else other)


def test_float16_autocast_without_a_scaler_is_refused() -> None:
    model, batch = Toy(), toy_batches(1)[0]
    with (
        torch.autocast("cpu", dtype=torch.float16),
        pytest.raises(RuntimeError, match=r"SAM: float16 autocast .*attach\(trainer\)"),
    ):
        step(SAM(), model, batch)


# ---------------------------------------------------------------------- dropout and running statistics
class Noisy(nn.Module):
    """Dropout and running statistics in the shared part."""

    feature_spec = FeatureSpec("vector", (6,))

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5))

    def forward(self, inputs: Tensor) -> Tensor:
        features: Tensor = self.layers(inputs)
        return features


def noisy_head(spec: FeatureSpec, out_channels: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), nn.Linear(spec.channels[0], out_channels))


@both
@pytest.mark.parametrize("head", [None, noisy_head], ids=["plain heads", "heads with dropout"])
def test_both_passes_see_the_same_dropout_and_statistics_move_once(build: Callable[[], Balancer], head: Any) -> None:
    torch.manual_seed(0)
    balancer = build()
    for radius in ("rho", "rho_shared", "rho_head"):
        if hasattr(balancer, radius):
            setattr(balancer, radius, 0.0)
    module = MultiTaskModule(Noisy(), {"size": Regression(head=head), "age": Regression(head=head)}, balancer)
    inputs, targets = next(iter(loader()))
    batch = inputs, {name: targets[name] for name in ("size", "age")}
    module.training_step(batch).backward()
    assert {name: float(rise) for name, rise in balancer.sharpness.items()} == {"size": 0.0, "age": 0.0}
    assert int(module.encoder.layers[1].num_batches_tracked) == 1


def test_second_pass_serves_an_own_loop() -> None:
    torch.manual_seed(0)
    encoder, head = Noisy(), nn.Linear(6, 1)
    inputs = torch.randn(8, 8)
    state = RandomState.now()

    def losses() -> dict[str, Tensor]:
        return {"a": head(encoder(inputs)).square().mean()}

    def recompute(tasks: Any = None) -> dict[str, Tensor]:
        with second_pass(encoder, state):
            return losses()

    balancer = SAM(rho=0.0)
    balancer(losses(), recompute=recompute).backward()
    assert float(balancer.sharpness["a"]) == 0
    assert int(encoder.layers[1].num_batches_tracked) == 1


# ---------------------------------------------------------------------- hooks, state, wrapped methods
@both
def test_hooks_of_parameters_fire_once(build: Callable[[], Balancer]) -> None:
    model, seen = Toy(), []
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.register_hook(lambda grad: seen.append(grad.clone()))
    step(build(), model, toy_batches(1)[0])
    assert len(seen) == len(parameters)


STATEFUL: dict[str, Callable[[], GradientBalancer]] = {
    "gradvac": GradVac,
    "moco": MoCo,
    "pcgrad": PCGrad,
    "trimmed mean": lambda: TrimmedMean(trim_number=1),
}


def run(balancer: Balancer, model: Toy, batches: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    totals = []
    for batch in batches:
        totals.append(step(balancer, model, batch))
        optimizer.step()
    return totals


@pytest.mark.parametrize("wrapped", STATEFUL.values(), ids=STATEFUL.keys())
@pytest.mark.parametrize("aggregate", ["decomposed", "direct"])
def test_a_run_taken_up_from_its_state_goes_on_alike(wrapped: Callable[[], GradientBalancer], aggregate: Any) -> None:
    balancer, model, batches = FlatRegions(wrapped(), 0.5, aggregate=aggregate), Toy(), toy_batches(56)
    run(balancer, model, batches[:6])
    fresh, twin = FlatRegions(wrapped(), 0.5, aggregate=aggregate), copy.deepcopy(model)
    fresh.load_state_dict(copy.deepcopy(balancer.state_dict()))
    assert run(fresh, twin, batches[6:]) == run(balancer, model, batches[6:])
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))


def test_the_two_aggregations_keep_states_of_their_own() -> None:
    balancer = FlatRegions(GradVac(), 0.5)
    run(balancer, Toy(), toy_batches(4))
    assert balancer.flat_balancer is not None
    first = {key: value for key, value in balancer.balancer.state_dict().items() if isinstance(value, Tensor)}
    assert first
    assert any(not torch.equal(value, balancer.flat_balancer.state_dict()[key]) for key, value in first.items())
    assert balancer.balancer.steps == balancer.flat_balancer.steps == 4
    balancer.reset()
    assert all(not value.any() for value in balancer.state_dict().values() if isinstance(value, Tensor))
    assert (balancer.balancer.steps, balancer.sharpness, balancer.weights, balancer.norms) == (0, {}, {}, {})


@both
def test_trains_in_a_trainer_with_accumulation_and_clipping(build: Callable[[], Balancer]) -> None:
    torch.manual_seed(0)
    module = MultiTaskModule(Noisy(), {"size": Regression(), "age": Regression()}, build())
    batches = [(x, {"size": y["size"], "age": y["age"]}) for x, y in loader()]
    before = copy.deepcopy(module.state_dict())
    trainer = make_trainer(accumulate_grad_batches=2, gradient_clip_val=1.0, precision="bf16-mixed")
    trainer.fit(module, DataLoader(batches, batch_size=None))
    assert trainer.global_step == len(batches) // 2
    assert module.balancer.steps == len(batches)
    changed = [not torch.equal(value, before[key]) for key, value in module.named_parameters()]
    assert all(changed)


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize("inner", [DWA(), EqualWeighting(), SAM(), DBMTL()], ids=lambda inner: type(inner).__name__)
def test_a_balancer_that_does_not_aggregate_gradients_is_refused(inner: Any) -> None:
    with pytest.raises(TypeError, match=rf"FlatRegions: .*MGDA, PCGrad, CAGrad.*got {type(inner).__name__}"):
        FlatRegions(inner)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"at": "features"}, "at='parameters', got 'features'"),
        ({"every_n_steps": 2}, "every_n_steps=1, got 2"),
        ({"head_gradients": "weighted"}, "head_gradients='own'"),
        ({"parameters": "last"}, "parameters='all', got 'last'"),
        ({"store_dtype": "bfloat16"}, "store_dtype='parameters'"),
        ({"balance": "accumulated"}, "balance='micro_batch'"),
    ],
    ids=str,
)
def test_options_without_a_meaning_here_are_refused(options: Any, named: str) -> None:
    with pytest.raises(ValueError, match=rf"FlatRegions: the wrapped MGDA must have {named}"):
        FlatRegions(MGDA(**options))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FlatRegions(MGDA(), -1.0), "FlatRegions: rho_shared must not be negative and be finite, got -1.0"),
        (lambda: FlatRegions(MGDA(), 1.0, -0.5), "FlatRegions: rho_head must not be negative and be finite, got -0.5"),
        (lambda: FlatRegions(MGDA(), float("nan")), "rho_shared must not be negative and be finite, got nan"),
        (lambda: FlatRegions(MGDA(), aggregate="each"), "aggregate must be 'decomposed' or 'direct', got 'each'"),
        (lambda: FlatRegions(MGDA(), norm_scope="all"), "norm_scope must be 'separate' or 'joint', got 'all'"),
        (lambda: SAM(rho=-0.1), "SAM: rho must not be negative and be finite, got -0.1"),
        (lambda: SAM(eta=-0.1), "SAM: eta must not be negative"),
    ],
)
def test_arguments_out_of_range_are_refused(build: Callable[[], Balancer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@both
def test_a_call_that_lacks_something_is_refused(build: Callable[[], Balancer]) -> None:
    model, balancer, batch = Toy(), build(), toy_batches(1)[0]
    name = type(balancer).__name__
    with pytest.raises(ValueError, match=f"{name}: needs recompute, .*functional.second_pass"):
        balancer(model.mean_losses(*batch), shared=model.encoder.parameters())
    with torch.no_grad(), pytest.raises(ValueError, match=f"{name}: gradients are switched off"):
        step(balancer, model, batch)
    with pytest.raises(ValueError, match=rf"{name}: recompute must return the losses of .* missing"):
        balancer(model.mean_losses(*batch), shared=model.encoder.parameters(), recompute=lambda tasks=None: {})
    if isinstance(balancer, FlatRegions):
        with pytest.raises(ValueError, match="FlatRegions: needs the parameters that the tasks share, got none"):
            balancer(model.mean_losses(*batch), recompute=lambda tasks=None: {})
        detached = {name: head.weight.sum() for name, head in model.heads.items()}
        with pytest.raises(ValueError, match="the loss of task 'a' does not depend on any shared parameter"):
            balancer(detached, shared=model.encoder.parameters(), recompute=lambda tasks=None: {})
