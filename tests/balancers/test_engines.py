"""Every engine gives the Gramian, the update and the heads' gradients of one backward pass a task."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl.balancers.engines import (
    BatchedEngine,
    Engine,
    Engines,
    FeatureGradients,
    HeadPass,
    MixedEngine,
    SequentialEngine,
    SubsetGradients,
    TaskGradients,
    TaskGraph,
)
from lightning_mtl.balancers.engines.layers import find_taps
from lightning_mtl.balancers.engines.store import FlatStore
from lightning_mtl.functional.gradients import alias_features
from tests.balancers.trunks import TRUNKS, Problem, rows_of

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}
WEIGHTS = torch.tensor([0.5, -1.0, 2.0])


def everything_tapped(batched: bool) -> Callable[[TaskGraph, Tensor | None], TaskGradients]:
    engine = MixedEngine(batched)
    return lambda graph, scale: engine.gradients(graph, scale, find_taps(graph))


ENGINES: dict[str, Callable[[], Callable[[TaskGraph, Tensor | None], TaskGradients]]] = {
    "sequential": lambda: SequentialEngine().gradients,
    "batched": lambda: BatchedEngine().gradients,
    "mixed": lambda: MixedEngine().gradients,
    "ghost": lambda: everything_tapped(False),
    "ghost-batched": lambda: everything_tapped(True),
    "auto": lambda: lambda graph, scale: Engines("auto", None).gradients(graph, scale, False),
}
UNVECTORIZED = {"vit_tiny", "sentence"}  # torch.vmap has no rule for the fused attention of the CPU


def assert_same(found: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[dtype] * float(expected.abs().max()))


def check(gradients: TaskGradients, problem: Problem, losses: dict[str, Tensor], dtype: torch.dtype) -> None:
    matrix = rows_of(losses, problem.shared)
    weights = WEIGHTS.to(dtype)
    assert_same(gradients.gramian_share(), (matrix.double() @ matrix.double().T).to(dtype), dtype)
    update = gradients.combine(weights)
    assert [part.shape for part in update] == [leaf.shape for leaf in problem.shared]
    assert_same(torch.cat([part.flatten() for part in update]), weights @ matrix, dtype)
    for (name, loss), found in zip(losses.items(), gradients.heads, strict=True):
        leaves = list(problem.heads[name].parameters())
        expected = torch.autograd.grad(loss, leaves, retain_graph=True)
        shapes = [tuple(gradient.shape) for gradient in found]
        assert sorted(shapes) == sorted(tuple(gradient.shape) for gradient in expected)
        for gradient in expected:
            assert_same(found[shapes.index(tuple(gradient.shape))], gradient, dtype)


def exactness_cases() -> list[tuple[str, str, torch.dtype]]:
    cases = []
    for engine in ENGINES:
        for trunk in TRUNKS:
            if "batched" in engine and trunk in UNVECTORIZED:
                continue
            if trunk == "resnet18":  # the operations of the convolutional trunk, at a price
                if engine in ("sequential", "auto"):
                    cases.append((engine, trunk, torch.float64))
                continue
            cases += [(engine, trunk, torch.float32), (engine, trunk, torch.float64)]
    return cases


@pytest.mark.parametrize(("engine", "trunk", "dtype"), exactness_cases(), ids=str)
def test_engines_are_exact(engine: str, trunk: str, dtype: torch.dtype) -> None:
    problem = Problem(trunk, dtype=dtype)
    compute = ENGINES[engine]()
    for alias in (False,) if trunk == "resnet18" else (False, True):
        losses = problem.losses(alias=alias)
        graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
        check(compute(graph, None), problem, losses, dtype)


@pytest.mark.parametrize("engine", ENGINES)
def test_gradients_carry_the_loss_scale(engine: str) -> None:
    problem = Problem()
    losses = problem.losses()
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    compute = ENGINES[engine]()
    plain = compute(graph, None)
    gramian, update, head = plain.gramian_share(), plain.combine(WEIGHTS), plain.heads[0][0]
    scaled = compute(graph, torch.tensor(8.0))
    torch.testing.assert_close(scaled.gramian_share(), 64 * gramian)
    torch.testing.assert_close(scaled.combine(WEIGHTS)[0], 8 * update[0])
    torch.testing.assert_close(scaled.heads[0][0], 8 * head)


@pytest.mark.parametrize("engine", ENGINES)
def test_dropped_tasks_have_no_gradient(engine: str) -> None:
    problem = Problem()
    losses = problem.losses()
    losses["t1"] = losses["t1"] * float("nan")
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    gradients = ENGINES[engine]()(graph, None)
    assert not gradients.gramian_share().diagonal().isfinite()[1]
    gradients.drop([1])
    matrix = rows_of({name: losses[name] for name in ("t0", "t2")}, problem.shared)
    update = torch.cat([part.flatten() for part in gradients.combine(torch.ones(3))])
    torch.testing.assert_close(update, matrix.sum(0))
    assert all(not gradient.any() for gradient in gradients.heads[1])


@pytest.mark.parametrize("engine", ENGINES)
def test_parameters_that_no_loss_reaches_get_zero(engine: str) -> None:
    problem = Problem()
    idle = nn.Parameter(torch.ones(3, 2))
    losses = problem.losses()
    graph = TaskGraph(tuple(losses), list(losses.values()), [idle, *problem.shared])
    update = ENGINES[engine]()(graph, None).combine(WEIGHTS)
    torch.testing.assert_close(update[0], torch.zeros(3, 2))


@pytest.mark.parametrize("engine", ["sequential", "mixed", "auto"])
def test_channels_last_updates_keep_the_memory_format(engine: str) -> None:
    problem = Problem("convolutional")
    problem.encoder.to(memory_format=torch.channels_last)
    losses = problem.losses()
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    gradients = ENGINES[engine]()(graph, None)
    check(gradients, problem, losses, torch.float32)
    if engine == "sequential":
        for part, leaf in zip(gradients.combine(WEIGHTS), problem.shared, strict=True):
            assert part.stride() == leaf.stride()


def test_known_layers_are_tapped_and_others_left_to_autograd() -> None:
    def names(trunk: str) -> set[str]:
        problem = Problem(trunk)
        losses = problem.losses()
        labels = {id(parameter): name for name, parameter in problem.encoder.named_parameters()}
        graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
        return {labels[id(leaf)] for tap in find_taps(graph) for leaf in tap.targets}

    assert names("mlp") == {"0.weight", "0.bias", "3.weight", "5.weight", "5.bias"}
    conv = {"0.weight", "0.bias", "3.weight", "6.weight", "6.bias", "9.weight", "9.bias"}
    assert names("convolutional") == conv
    assert names("tied") == {"layer.weight", "layer.bias"}
    found = names("sentence")
    assert {"embed.weight", "wide.weight", "narrow.weight", "matrix", "attention.in_proj_weight"} <= found
    assert not any(name.startswith("twice") for name in found)


def test_checkpointed_layers_are_not_tapped() -> None:
    problem = Problem()
    z = torch.utils.checkpoint.checkpoint(problem.encoder, problem.inputs, use_reentrant=False)
    losses = problem.losses(z)
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    assert find_taps(graph) == []
    check(MixedEngine().gradients(graph, None), problem, losses, torch.float32)


def test_inputs_changed_in_place_are_an_error_rather_than_a_wrong_gramian() -> None:
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    hidden = first(torch.randn(3, 4))
    out = second(hidden)
    hidden.data.add_(1)  # behind autograd's back: allowed, and followed
    hidden.mul_(2)
    losses = {"a": out.sum(), "b": out.square().sum()}
    graph = TaskGraph(("a", "b"), list(losses.values()), [*first.parameters(), *second.parameters()])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        MixedEngine().gradients(graph, None, find_taps(graph))


def test_bfloat16_rows_halve_the_memory_and_stay_close() -> None:
    problem = Problem()
    losses = problem.losses()
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    engine = SequentialEngine(torch.bfloat16)
    gradients = engine.gradients(graph, None)
    matrix = rows_of(losses, problem.shared)
    torch.testing.assert_close(gradients.gramian_share(), matrix @ matrix.T, rtol=0.02, atol=0.02)
    assert engine.store.rows(3, problem.shared).matrix.dtype == torch.bfloat16
    assert gradients.combine(WEIGHTS)[0].dtype == torch.float32


def test_the_matrix_is_reused_between_steps_and_not_copied_with_the_engine() -> None:
    problem = Problem()
    engine = SequentialEngine()
    addresses = set()
    for _ in range(2):
        losses = problem.losses()
        graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
        gradients = engine.gradients(graph, None)
        addresses.add(gradients.matrix().data_ptr())
    assert len(addresses) == 1
    assert copy.deepcopy(engine).store._matrix is None


def test_heads_of_their_own_are_passed_together() -> None:
    problem = Problem()
    for alias, separate in ((False, False), (True, True)):
        losses = problem.losses(alias=alias)
        graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
        assert graph.separate is separate
        assert graph.meets
        passed = HeadPass(graph, None)
        assert len(passed.edges) == 1, "views of the same features are one place"
        assert passed.dense


def test_losses_of_separate_forward_passes_have_separate_cuts() -> None:
    problem = Problem()
    losses = {name: problem.losses(rows=slice(2 * k, 2 * k + 2))[name] for k, name in enumerate(problem.heads)}
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    assert graph.separate
    assert not graph.meets
    assert find_taps(graph) == [], "every weight is used once a task"
    for compute in ("sequential", "auto", "batched"):
        check(ENGINES[compute]()(graph, None), problem, losses, torch.float32)


def test_the_trunk_pass_of_separate_forward_passes_visits_each_graph_once() -> None:
    problem = Problem()
    losses = {name: problem.losses(rows=slice(2 * k, 2 * k + 2))[name] for k, name in enumerate(problem.heads)}
    visits = []
    for loss in losses.values():
        first = loss
        node = first.grad_fn
        while node is not None and type(node).__name__ != "GeluBackward0":
            node = next((child for child, _ in node.next_functions if child is not None and child.next_functions), None)
        assert node is not None
        node.register_hook(lambda *_: visits.append(1))
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    SequentialEngine().gradients(graph, None)
    assert len(visits) == 3


def test_leaves_of_one_task_inside_the_trunk_are_its_own() -> None:
    problem = Problem()
    own = nn.Parameter(torch.ones(8))
    z = problem.encoder(problem.inputs)
    losses = problem.losses(z)
    losses["t1"] = losses["t1"] + (z * own).sum()
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    assert [any(leaf is own for leaf in leaves) for leaves in graph.heads] == [False, True, False]
    matrix = rows_of(losses, problem.shared)
    for compute in (SequentialEngine(), BatchedEngine(), MixedEngine(), MixedEngine(True)):
        gradients: TaskGradients = compute.gradients(graph, None)
        torch.testing.assert_close(gradients.gramian_share(), matrix @ matrix.T)


@pytest.mark.parametrize("engine", ENGINES)
def test_heads_on_several_levels_are_not_counted_twice(engine: str) -> None:
    problem = Problem()
    low = problem.encoder[0](problem.inputs)
    high = problem.encoder[3:](problem.encoder[2](low.relu()))
    sides = nn.ModuleList([nn.Linear(16, 1) for _ in range(2)])
    losses = {
        "t0": problem.heads["t0"](high).square().mean() + sides[0](low).square().mean(),
        "t1": sides[1](low).exp().mean() - problem.heads["t1"](high).square().mean(),
    }
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    matrix = rows_of(losses, problem.shared)
    gradients = ENGINES[engine]()(graph, None)
    torch.testing.assert_close(gradients.gramian_share(), matrix @ matrix.T)
    update = torch.cat([piece.flatten() for piece in gradients.combine(WEIGHTS[:2])])
    torch.testing.assert_close(update, WEIGHTS[:2] @ matrix)


def test_the_gramian_of_a_subset_and_the_update_of_all() -> None:
    problem = Problem()
    losses = problem.losses()
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    compared = problem.shared[-2:]
    gradients = SubsetGradients(graph, compared, None, FlatStore())
    part, whole = rows_of(losses, compared), rows_of(losses, problem.shared)
    torch.testing.assert_close(gradients.gramian_share(), part @ part.T)
    update = torch.cat([piece.flatten() for piece in gradients.combine(WEIGHTS)])
    torch.testing.assert_close(update, WEIGHTS @ whole)


def test_gradients_at_features() -> None:
    problem = Problem()
    for alias in (False, True):
        z = problem.encoder(problem.inputs)
        losses = problem.losses(z, alias=alias)
        graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared, [z])
        gradients = FeatureGradients(graph, [z], None)
        matrix = rows_of(losses, [z])
        torch.testing.assert_close(gradients.gramian_share(), matrix @ matrix.T)
        torch.testing.assert_close(gradients.combine(WEIGHTS)[0].flatten(), WEIGHTS @ matrix)
        torch.testing.assert_close(gradients.matrix(), matrix)
        assert [len(leaves) for leaves in graph.heads] == [2, 2, 2]


@pytest.mark.parametrize("given", ["the aliases", "what they stand for"])
def test_aliases_of_the_features_are_one_place_to_inject(given: str) -> None:
    problem = Problem()
    z = problem.encoder(problem.inputs)
    aliases = {name: alias_features([z])[0] for name in problem.heads}
    losses = {name: head(aliases[name]).square().mean() for name, head in problem.heads.items()}
    features = list(aliases.values()) if given == "the aliases" else [z]
    graph = TaskGraph(tuple(losses), list(losses.values()), (), features)
    gradients = FeatureGradients(graph, features, None)
    assert graph.separate
    assert len(gradients.targets) == 1
    matrix = rows_of(losses, [z])
    torch.testing.assert_close(gradients.gramian_share(), matrix @ matrix.T)


def test_heads_that_reshape_the_features_are_followed_to_them() -> None:
    problem = Problem()
    z = problem.encoder(problem.inputs)
    losses = {name: head(z.view(3, 2, 8)).square().mean() for name, head in problem.heads.items()}
    graph = TaskGraph(tuple(losses), list(losses.values()), (), [z])
    matrix = rows_of(losses, [z])
    torch.testing.assert_close(FeatureGradients(graph, [z], None).gramian_share(), matrix @ matrix.T)


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_keeps_the_graph_alive(engine: str) -> None:
    problem = Problem()
    compute = ENGINES[engine]()
    z = problem.encoder(problem.inputs)
    losses = problem.losses(z)
    graph = TaskGraph(tuple(losses), list(losses.values()), problem.shared)
    update = compute(graph, None).combine(WEIGHTS)
    node = weakref.ref(z)
    gc.disable()
    try:
        del z, losses, graph
        assert node() is None, "freed by counting references, without the garbage collector"
    finally:
        gc.enable()
    assert len(update) == len(problem.shared)


@pytest.mark.parametrize(
    ("trunk", "tasks", "expected"),
    [("mlp", 1, "sequential"), ("mlp", 3, "mixed, batched"), ("resnet18", 3, "mixed"), ("vit_tiny", 3, "mixed")],
)
def test_the_engine_is_chosen_from_the_graph(trunk: str, tasks: int, expected: str) -> None:
    problem = Problem(trunk, tasks)
    losses = problem.losses()
    engines = Engines("auto", None)
    engines.gradients(TaskGraph(tuple(losses), list(losses.values()), problem.shared), None, False)
    assert engines.report.split(":")[0] == expected
    engines.gradients(TaskGraph(tuple(losses), list(losses.values()), problem.shared), None, True)
    assert "mixed" not in engines.report


def test_engines_have_names() -> None:
    names = [engine.name for engine in (SequentialEngine(), BatchedEngine(), MixedEngine())]
    assert names == ["sequential", "batched", "mixed"]
    assert all(isinstance(engine, Engine) for engine in (SequentialEngine(), BatchedEngine(), MixedEngine()))
