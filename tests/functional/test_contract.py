"""What holds for every function from the Gramian to weights."""

from __future__ import annotations

import importlib
import math
import re

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_mtl import functional
from lightning_mtl.functional import gramian as package
from tests.functional.cases import CASES, KINDS, Case, gradients

# Functions shadow the modules of the same name as attributes of the package.
arrays, cagrad, eigen, fairgrad, linear_program, nnqp = (
    importlib.import_module(f"lightning_mtl.functional.gramian.{name}")
    for name in ("arrays", "cagrad", "eigen", "fairgrad", "linear_program", "nnqp")
)

SIZES = [1, 2, 3, 8, 40]
ONE_EACH = {name.split("-")[0]: case for name, case in reversed(CASES.items())}
each = pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


def test_every_public_function_has_a_case_or_its_own_tests() -> None:
    tested = {name.split("-")[0] for name in CASES}
    solvers = {"nonnegative_quadratic_program", "project_to_simplex"}
    assert set(package.__all__) == tested | solvers
    assert set(package.__all__) <= set(functional.__all__)
    assert functional.__all__ == sorted(functional.__all__)


def test_every_function_names_its_paper() -> None:
    for name in set(package.__all__) - {"min_norm_point", "nonnegative_quadratic_program"}:
        assert re.search(r"References:\n(.|\n)*https?://", getattr(functional, name).__doc__), name


@each
@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_finite_for_degenerate_gradients(case: Case, kind: str) -> None:
    for size in SIZES[:4]:
        for dtype in (torch.float32, torch.float64):
            if size >= case.least:
                weights = case.weights(gram(gradients(kind, size).to(dtype)))
                assert weights.shape == (size,)
                assert weights.dtype == dtype
                assert weights.isfinite().all(), (size, dtype, weights)
                assert case.signed or weights.min() >= -1e-12


@each
@pytest.mark.parametrize("size", [16, 40])
def test_many_tasks(case: Case, size: int) -> None:
    for kind in ("random", "conflicting"):
        assert case.weights(gram(gradients(kind, size))).isfinite().all()


@each
def test_float32_agrees_with_float64(case: Case) -> None:
    rows = gradients("random", 5)
    double, single = gram(rows), gram(rows).float()
    torch.testing.assert_close(case.weights(single), case.weights(single.double()).float())
    torch.testing.assert_close(case.weights(single).double(), case.weights(double), rtol=1e-4, atol=1e-4)


@each
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_solved_in_double(case: Case, dtype: torch.dtype) -> None:
    half = gram(gradients("random", 4)).to(dtype)
    assert case.weights(half).dtype == dtype
    torch.testing.assert_close(case.weights(half), case.weights(half.double()).to(dtype), rtol=1e-2, atol=1e-2)


@each
@pytest.mark.parametrize("kind", ["random", "conflicting", "aligned", "wild norms"])
def test_weights_scale_as_declared(case: Case, kind: str) -> None:
    if math.isnan(case.power):
        pytest.skip("depends on the scale, by definition")
    if kind == "wild norms" and not case.wild:
        pytest.skip("declares a limit on the ratio of the norms")
    gramian = gram(gradients(kind, 4))
    weights = case.weights(gramian)
    size = weights.abs().max()
    for scale in (1e-10, 1e-3, 1e5, 1e10):
        rescaled = case.weights(gramian * scale**2) / scale**case.power
        torch.testing.assert_close(rescaled, weights, rtol=1e-6, atol=float(1e-9 * size))


@each
@pytest.mark.parametrize("scale", [1e-10, 1e10])
def test_extreme_scales_are_finite_in_float32(case: Case, scale: float) -> None:
    weights = case.weights((gram(gradients("conflicting", 4)) * scale**2).float())
    assert weights.isfinite().all()
    assert weights.abs().max() > 0


@each
@pytest.mark.parametrize("kind", ["random", "conflicting", "wild norms"])
def test_task_order_does_not_matter(case: Case, kind: str) -> None:
    if case.ordered:
        pytest.skip("takes an explicit order, or arguments that belong to tasks")
    if kind == "wild norms" and not case.wild:
        pytest.skip("declares a limit on the ratio of the norms")
    gramian = gram(gradients(kind, 6))
    order = torch.tensor([3, 5, 0, 1, 4, 2])
    permuted = case.weights(gramian[order][:, order])
    expected = case.weights(gramian)[order]
    torch.testing.assert_close(permuted, expected, rtol=1e-6, atol=float(1e-9 * expected.abs().max()))


@each
def test_one_task_gives_a_positive_multiple_of_its_gradient(case: Case) -> None:
    if case.least > 1:
        pytest.skip("needs more tasks")
    for scale in (1e-10, 1.0, 1e10):
        weight = case.weights(torch.tensor([[scale**2]], dtype=torch.float64))
        assert weight.shape == (1,)
        assert float(weight) > 0


@each
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gramian_that_is_not_finite_gives_nan_and_no_error(case: Case, value: float) -> None:
    gramian = gram(gradients("random", 4))
    gramian[1, 2] = gramian[2, 1] = value
    assert case.weights(gramian).isnan().all()
    assert case.weights(torch.full((4, 4), value)).isnan().all()


@each
def test_declared_sum(case: Case) -> None:
    if math.isnan(case.total):
        pytest.skip("declares no sum")
    for kind in ("random", "conflicting", "aligned", "wild norms"):
        weights = case.weights(gram(gradients(kind, 5)))
        assert float(weights.sum()) == pytest.approx(case.total, abs=1e-9)


@each
def test_weights_carry_no_gradient_and_the_gramian_is_untouched(case: Case) -> None:
    gramian = gram(gradients("random", 4)).requires_grad_()
    before = gramian.detach().clone()
    assert not case.weights(gramian).requires_grad
    assert torch.equal(gramian, before)


@pytest.fixture
def short_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the loops of fixed length: every pass runs the same operations, and tracing all of them takes long."""
    for module, constant in [
        (cagrad, "_PIVOTS"),
        (eigen, "_SWEEPS"),
        (fairgrad, "_NEWTON_STEPS"),
        (linear_program, "_STEPS"),
        (nnqp, "_PIVOTS"),
        (nnqp, "_INTERIOR_STEPS"),
        (nnqp, "_POLISH"),
    ]:
        monkeypatch.setattr(module, constant, 1)


@each
@pytest.mark.usefixtures("short_loops")
def test_no_value_is_needed_on_the_host(case: Case) -> None:
    """Fake tensors have no values: reading one back raises."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        weights = case.weights(mode.from_tensor(gram(gradients("random", 3)).float()))
    assert weights.shape == (3,)
    assert weights.dtype == torch.float32


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in ONE_EACH.items()])
@pytest.mark.usefixtures("short_loops")
def test_compiles_to_one_graph(case: Case) -> None:
    gramian = gram(gradients("random", 3))
    torch.compiler.reset()
    compiled = torch.compile(case.weights, fullgraph=True, backend="eager")(gramian)
    assert compiled.shape == (3,)
    assert compiled.isfinite().all()


@each
def test_the_path_without_early_exits_is_finite_for_degenerate_gradients(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "is_host", lambda tensor: False)
    for kind in ("opposite", "zero row", "all zero"):
        assert case.weights(gram(gradients(kind, 3)).float()).isfinite().all()
    assert case.weights(torch.full((3, 3), math.nan)).isnan().all()


@each
def test_devices_without_float64_get_single_precision(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = gradients("random", 4)
    expected = case.weights(gram(rows))
    monkeypatch.setattr(arrays, "is_host", lambda tensor: False)
    monkeypatch.setattr(arrays, "solver_dtype", lambda device: torch.float32)
    weights = case.weights(gram(rows).float())
    torch.testing.assert_close(weights.double(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@each
def test_the_path_without_early_exits_gives_the_same_weights(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on an accelerator and in a compiled graph, here on the CPU with all of its steps."""
    kinds = ["random", "conflicting", "identical", "zero row", "wild norms" if case.wild else "aligned"]
    draws = [gradients(kind, 4) for kind in kinds]
    early = [case.weights(gram(rows)) for rows in draws]
    monkeypatch.setattr(arrays, "is_host", lambda tensor: False)
    for rows, expected in zip(draws, early, strict=True):
        # Identical gradients can share their weight in any way, so the updates are compared.
        difference = rows.T @ (case.weights(gram(rows)) - expected)
        assert difference.norm() <= 1e-8 * (expected.abs() * rows.norm(dim=1)).sum()
