"""TorchJD's objects as balancers, and balancers as TorchJD's weightings."""

from __future__ import annotations

import copy
import functools
import io
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor, nn

from lightning_mtl import functional
from lightning_mtl.balancers import (
    DBMTL,
    MGDA,
    Balancer,
    FlatRegions,
    GradVac,
    PCGrad,
    TorchJDAggregator,
    TorchJDScalarizer,
    TorchJDWeighting,
    UPGrad,
    as_torchjd,
)
from lightning_mtl.nn.recorded import describe
from tests.balancers.cases import TASKS, Toy, toy_batches, train
from tests.balancers.trunks import rows_of
from tests.toys import loader, make_module, make_trainer

aggregation = pytest.importorskip("torchjd.aggregation", reason="torchjd is not installed")
scalarization = pytest.importorskip("torchjd.scalarization", reason="torchjd is not installed")

WEIGHTINGS: dict[str, Callable[[], nn.Module]] = {
    "imtl-g": aggregation.IMTLGWeighting,
    "mgda": aggregation.MGDAWeighting,
    "aligned": aggregation.AlignedMTLWeighting,
    "gradvac": aggregation.GradVacWeighting,
    "pcd": lambda: aggregation.PCDWeighting(beta=0.5),
    "excess": lambda: aggregation.ExcessMTLWeighting(n_warmup_steps=3),
    "constant": lambda: aggregation.ConstantWeighting(torch.tensor([1.0, 2.0, 0.5])),
    "random": aggregation.RandomWeighting,
    "cr-mogm": lambda: aggregation.CRMOGMWeighting(aggregation.GradVacWeighting()),
    "composed": lambda: aggregation.MGDAWeighting() << _gramian,
}
AGGREGATORS: dict[str, Callable[[], nn.Module]] = {
    "aligned": aggregation.AlignedMTL,
    "pcgrad": aggregation.PCGrad,
    "gradvac": aggregation.GradVac,
    "pcd": lambda: aggregation.PCD(beta=0.5),
    "excess": aggregation.ExcessMTL,
    "mean": aggregation.Mean,
    "graddrop": aggregation.GradDrop,
    "trimmed": lambda: aggregation.TrimmedMean(trim_number=1),
    "config": aggregation.ConFIG,
}
SCALARIZERS: dict[str, Callable[[], nn.Module]] = {
    "mean": scalarization.Mean,
    "geometric": scalarization.GeometricMean,
    "dwa": scalarization.DWA,
    "random": scalarization.Random,
    "famo": lambda: scalarization.FAMO(3),
    "imtl-l": lambda: scalarization.IMTLL(3),
    "uw": lambda: scalarization.UW(3),
}


def _gramian(matrix: Tensor) -> Tensor:
    return matrix @ matrix.T


def named(table: dict[str, Any], argument: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(argument, table.values(), ids=table.keys())


def grads(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters()]


def step(balancer: Balancer, model: Toy, batch: tuple[Tensor, Tensor]) -> Tensor:
    model.zero_grad()
    total = model.balance(balancer, *batch)
    total.backward()
    return total


def jacobian(model: Toy, batch: tuple[Tensor, Tensor]) -> Tensor:
    return rows_of(model.mean_losses(*batch), list(model.encoder.parameters()))


def seeded(balancer: Balancer) -> None:
    torch.manual_seed(balancer.generator().initial_seed())


# ---------------------------------------------------------------------- the same numbers
@named(WEIGHTINGS, "build")
def test_a_weighting_gives_torchjds_own_weights_step_after_step(build: Callable[[], nn.Module]) -> None:
    balancer, oracle, model = TorchJDWeighting(build()), build(), Toy()
    for batch in toy_batches(5):
        matrix = jacobian(model, batch)
        with torch.random.fork_rng():
            seeded(balancer)
            expected = oracle(matrix if balancer.needs_matrix else matrix @ matrix.T)
        step(balancer, model, batch)
        torch.testing.assert_close(torch.stack([*balancer.weights.values()]), expected, rtol=1e-3, atol=1e-5)
        found = torch.cat([parameter.grad.flatten() for parameter in model.encoder.parameters()])
        torch.testing.assert_close(found, expected @ matrix, rtol=1e-3, atol=1e-5)


@named(AGGREGATORS, "build")
def test_an_aggregator_gives_torchjds_own_update_step_after_step(build: Callable[[], nn.Module]) -> None:
    balancer, oracle, model = TorchJDAggregator(build()), build(), Toy()
    for batch in toy_batches(5):
        matrix = jacobian(model, batch)
        with torch.random.fork_rng():
            seeded(balancer)
            expected = oracle(matrix)
        step(balancer, model, batch)
        found = torch.cat([parameter.grad.flatten() for parameter in model.encoder.parameters()])
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@named(SCALARIZERS, "build")
def test_a_scalarizer_gives_torchjds_own_gradient(build: Callable[[], nn.Module]) -> None:
    balancer, oracle, model, twin = TorchJDScalarizer(build(), TASKS), build(), Toy(), Toy()
    for number, batch in enumerate(toy_batches(6)):
        total = step(balancer, model, batch)
        losses = model.mean_losses(*batch)
        assert total.item() == pytest.approx(
            sum(balancer.weights[name].item() * losses[name].item() for name in TASKS), rel=1e-5
        )
        twin.zero_grad()
        with torch.random.fork_rng():
            torch.manual_seed(number)  # seed 0: the number of the step
            oracle(torch.stack([*twin.mean_losses(*batch).values()])).backward()
        for one, two in zip(grads(model), grads(twin), strict=True):
            torch.testing.assert_close(one, two)
        if balancer.learns_parameters:
            for one, two in zip(balancer.parameters(), oracle.parameters(), strict=True):
                torch.testing.assert_close(one.grad, two.grad)
                one.grad = two.grad = None
        after = {name: 0.9 * loss.detach() for name, loss in losses.items()}
        balancer.after_step(after)
        if hasattr(oracle, "update"):
            oracle.update(torch.stack([*after.values()]))
        if number % 2:
            balancer.end_epoch()
            if hasattr(oracle, "step"):
                oracle.step()


def test_aggregators_on_the_gramian_do_not_ask_for_the_matrix() -> None:
    assert not TorchJDAggregator(aggregation.IMTLG()).needs_matrix
    assert not TorchJDWeighting(aggregation.MGDAWeighting()).needs_matrix
    assert TorchJDAggregator(aggregation.GradDrop()).needs_matrix
    assert TorchJDWeighting(aggregation.RandomWeighting()).needs_matrix


def test_draws_are_alike_whatever_the_global_generator() -> None:
    batch, found = toy_batches(1)[0], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        balancer, model = TorchJDAggregator(aggregation.GradDrop(), seed=5), Toy()
        before = torch.get_rng_state()
        step(balancer, model, batch)
        assert torch.equal(torch.get_rng_state(), before)
        found.append(grads(model)[0])
    assert torch.equal(*found)


# ---------------------------------------------------------------------- state
def everything() -> dict[str, Callable[[], Balancer]]:
    built: dict[str, Callable[[], Balancer]] = {}
    for prefix, adapter, table in (
        ("weighting", TorchJDWeighting, WEIGHTINGS),
        ("aggregator", TorchJDAggregator, AGGREGATORS),
    ):
        built |= {f"{prefix}-{name}": functools.partial(_make, adapter, build) for name, build in table.items()}
    scalarizer = functools.partial(TorchJDScalarizer, tasks=TASKS)
    return built | {f"scalarizer-{n}": functools.partial(_make, scalarizer, build) for n, build in SCALARIZERS.items()}


def _make(adapter: Callable[[nn.Module], Balancer], build: Callable[[], nn.Module]) -> Balancer:
    return adapter(build())


def same_weights(one: Sequence[dict[str, Tensor]], two: Sequence[dict[str, Tensor]]) -> bool:
    return all(
        left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)
        for left, right in zip(one, two, strict=True)
    )


@named(everything(), "build")
def test_a_state_loaded_into_a_fresh_one_goes_on_alike(build: Callable[[], Balancer]) -> None:
    balancer, model, batches = build(), Toy(), toy_batches(11)
    train(balancer, model, batches[:5])
    file = io.BytesIO()
    torch.save(balancer.state_dict(), file)
    file.seek(0)
    fresh, twin = build(), copy.deepcopy(model)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert same_weights(train(fresh, twin, batches[5:]), train(balancer, model, batches[5:]))
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), twin.parameters(), strict=True))


@named(everything(), "build")
def test_an_early_state_loaded_into_a_used_one_goes_on_alike(build: Callable[[], Balancer]) -> None:
    early = build()
    early.bind(TASKS)
    used = build()
    train(used, Toy(), toy_batches(5))
    used.load_state_dict(early.state_dict())
    assert same_weights(train(used, Toy(), toy_batches(4)), train(early, Toy(), toy_batches(4)))


@named(everything(), "build")
def test_reset_and_a_copy(build: Callable[[], Balancer]) -> None:
    balancer, model, batches = build(), Toy(), toy_batches(8)
    parameters = list(balancer.parameters())
    train(balancer, model, batches[:5])
    other, twin = copy.deepcopy(balancer), copy.deepcopy(model)
    assert same_weights(train(other, twin, batches[5:]), train(balancer, model, batches[5:]))
    balancer.reset()
    assert all(one is two for one, two in zip(balancer.parameters(), parameters, strict=True))
    assert same_weights(train(balancer, Toy(), batches), train(build(), Toy(), batches))


# ---------------------------------------------------------------------- in other places
def test_can_be_written_in_yaml() -> None:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Balancer, "balancer")
    text = """
    balancer:
      class_path: lightning_mtl.balancers.TorchJDWeighting
      init_args:
        weighting: {class_path: torchjd.aggregation.GradVacWeighting, init_args: {beta: 0.25}}
        at: features
    """
    built = parser.instantiate_classes(parser.parse_string(text)).balancer
    assert isinstance(built, TorchJDWeighting)
    assert (built.wrapped.beta, built.at) == (0.25, "features")


def test_a_class_or_partial_can_be_written_down_and_built_again() -> None:
    given = TorchJDWeighting(functools.partial(aggregation.GradVacWeighting, beta=0.25), tasks=TASKS)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Balancer, "balancer")
    again = parser.instantiate_classes(parser.parse_object({"balancer": describe(given)})).balancer
    assert again.task_names == TASKS
    assert again.wrapped.beta == 0.25


@pytest.mark.parametrize(
    "build",
    [
        lambda: TorchJDAggregator(aggregation.GradVac),
        lambda: TorchJDScalarizer(scalarization.FAMO(3)),
        lambda: TorchJDScalarizer(functools.partial(scalarization.UW, 3)),
        lambda: FlatRegions(TorchJDWeighting(aggregation.MGDAWeighting), 0.5),
    ],
    ids=["gradvac", "famo", "uw", "flat regions"],
)
def test_trains_in_a_trainer(build: Callable[[], Balancer]) -> None:
    module = make_module(balancer=build())
    batch = next(iter(loader()))
    before = sum(loss.item() for loss in module.task_losses(batch).values())
    start = [parameter.detach().clone() for parameter in module.balancer.parameters()]
    make_trainer(max_epochs=3).fit(module, loader())
    assert sum(loss.item() for loss in module.task_losses(batch).values()) < before
    assert all(not torch.equal(one, two) for one, two in zip(start, module.balancer.parameters(), strict=True))


def test_importing_the_package_does_not_import_torchjd() -> None:
    code = "import sys, lightning_mtl, lightning_mtl.balancers.torchjd; print('torchjd' in sys.modules)"
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


# ---------------------------------------------------------------------- the other way round
@pytest.mark.parametrize(
    ("method", "oracle"),
    [(MGDA(), aggregation.MGDA(epsilon=1e-9, max_iters=2000)), (functional.imtl_g, aggregation.IMTLG())],
    ids=["balancer", "function"],
)
def test_a_method_of_this_package_works_as_a_weighting(method: Any, oracle: nn.Module) -> None:
    matrix = torch.randn(3, 7, generator=torch.Generator().manual_seed(2))
    aggregator = aggregation.GramianWeightedAggregator(as_torchjd(method))
    torch.testing.assert_close(aggregator(matrix), oracle(matrix), rtol=1e-2, atol=1e-3)


def test_it_works_in_torchjds_engines() -> None:
    from torchjd.autogram import Engine
    from torchjd.autojac import backward, jac_to_grad

    torch.manual_seed(0)
    model, inputs = nn.Linear(4, 3), torch.randn(5, 4)
    weighting = as_torchjd(UPGrad())
    gramian = Engine(model, batch_dim=None).compute_gramian(model(inputs).square().mean(0))
    weights = weighting(gramian)
    losses = model(inputs).square().mean(0)
    expected = torch.autograd.grad((weights * losses).sum(), list(model.parameters()))
    backward(list(model(inputs).square().mean(0)))
    jac_to_grad(model.parameters(), aggregation.GramianWeightedAggregator(weighting))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


def test_its_state_is_that_of_the_balancer() -> None:
    matrices = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(1))
    weighting = as_torchjd(GradVac(0.5, seed=3))
    for matrix in matrices[:2]:
        weighting(matrix @ matrix.T)
    fresh = as_torchjd(GradVac(0.5, seed=3))
    fresh.load_state_dict(weighting.state_dict())
    for matrix in matrices[2:]:
        assert torch.equal(weighting(matrix @ matrix.T), fresh(matrix @ matrix.T))


def test_a_method_that_looks_at_the_losses_asks_for_them() -> None:
    gramian = torch.tensor([[2.0, -0.5], [-0.5, 1.0]])
    weighting = as_torchjd(MGDA("loss"))
    with pytest.raises(ValueError, match=r"as_torchjd: this balancer looks at .* losses; set `\.losses`"):
        weighting(gramian)
    weighting.losses = torch.tensor([1.0, 2.0])
    torch.testing.assert_close(weighting(gramian), functional.mgda(gramian, "loss", weighting.losses))


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TorchJDWeighting(aggregation.IMTLG()), "weighting must be a Weighting of torchjd.aggregation"),
        (lambda: TorchJDAggregator(nn.Linear), "missing"),
        (lambda: TorchJDAggregator(nn.Identity), "aggregator must be a Aggregator of .* got Identity"),
        (lambda: TorchJDScalarizer(aggregation.IMTLG), "scalarizer must be a Scalarizer of torchjd.scalarization"),
        (lambda: TorchJDWeighting(aggregation.MoDoWeighting), "MoDoWeighting works on the products of two batches"),
        (lambda: as_torchjd(DBMTL()), "as_torchjd: method must compute weights from the Gramian, .*got DBMTL"),
        (lambda: as_torchjd(3), "as_torchjd: method must be a GradientWeighting or a function, got int"),
    ],
)
def test_other_objects_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: TorchJDAggregator(aggregation.GradDrop, at="features"), "GradDrop needs the gradients themselves"),
        (lambda: TorchJDAggregator(aggregation.Mean, parameters="last"), "parameters must be 'all', got 'last'"),
        (lambda: TorchJDAggregator(aggregation.TrimmedMean(1), head_gradients="weighted"), "gives no weights"),
        (lambda: TorchJDWeighting(aggregation.MGDAWeighting, statistic="both"), "'gramian', 'matrix' or None"),
    ],
)
def test_options_that_cannot_work_are_refused(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_without_torchjd_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchjd.aggregation", None)
    for build in (lambda: TorchJDWeighting(nn.Identity()), lambda: TorchJDScalarizer(nn.Identity()), _as_fresh):
        with pytest.raises(ModuleNotFoundError, match=r"pip install lightning-mtl\[torchjd\]"):
            build()


def _as_fresh() -> nn.Module:
    from lightning_mtl.balancers import torchjd

    torchjd._weighting_class.cache_clear()
    return as_torchjd(PCGrad())
