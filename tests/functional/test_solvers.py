"""The small solvers behind the weightings, against scipy and optimality conditions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import linprog, nnls
from torch import Tensor

from lightning_mtl import functional as F
from lightning_mtl.functional.gramian.eigen import jacobi_eigen, pseudo_inverse_product, symmetric_eigen
from lightning_mtl.functional.gramian.linear_program import simplex_linear_program
from lightning_mtl.functional.gramian.nnqp import interior_point
from lightning_mtl.functional.gramian.pivoting import block_pivoting, jittered
from lightning_mtl.functional.gramian.unit_rows import unit_rows
from tests.functional.cases import KINDS, gradients


def program(tasks: int, kind: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    return well_posed(gradients(kind, tasks, seed))


def well_posed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrix and the linear terms of the programs that project all unit rows on their dual cone."""
    cosines = torch.from_numpy(unit_rows(rows @ rows.T).cosines)
    return jittered(cosines), cosines


def residual(matrix: Tensor, linear: Tensor, z: Tensor) -> float:
    """Return the largest violation of z >= 0, y = Hz + q >= 0, zy = 0."""
    y = z @ matrix + linear
    return float(torch.stack([(-z).amax(), (-y).amax(), torch.minimum(z.abs(), y.abs()).amax()]).amax())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "all zero"])
@pytest.mark.parametrize("tasks", [1, 2, 5, 16, 40])
def test_quadratic_programs_meet_the_optimality_conditions(tasks: int, kind: str) -> None:
    matrix, linear = program(tasks, kind)
    assert residual(matrix, linear, F.nonnegative_quadratic_program(matrix, linear)) < 1e-11


@pytest.mark.parametrize("tasks", [2, 8, 20])
def test_quadratic_programs_agree_with_scipy(tasks: int) -> None:
    matrix, linear = program(tasks, "conflicting")
    factor = torch.linalg.cholesky(matrix)
    for q, z in zip(linear, F.nonnegative_quadratic_program(matrix, linear), strict=True):
        right = torch.linalg.solve_triangular(factor, -q.unsqueeze(-1), upper=False).squeeze(-1)
        torch.testing.assert_close(z, torch.from_numpy(nnls(factor.T.numpy(), right.numpy())[0]), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("tasks", [6, 20, 40])
def test_hard_quadratic_programs_are_solved_by_the_interior_point_method(tasks: int) -> None:
    """Gradients in a space of half as many dimensions as tasks: zero is at the edge of their hull."""
    for seed in range(3):
        matrix, linear = well_posed(gradients("random", tasks, seed, columns=tasks // 2))
        z = F.nonnegative_quadratic_program(matrix, linear)
        assert z.min() >= 0
        assert float((z @ matrix + linear).min()) > -1e-9
        assert float(((z @ matrix + linear) * z).max()) < 1e-9


libraries = pytest.mark.parametrize("convert", [lambda x: x, lambda x: x.numpy()], ids=["torch", "numpy"])


@libraries
@pytest.mark.parametrize("kind", ["random", "conflicting", "dependent", "identical"])
def test_the_interior_point_method_alone_is_accurate(kind: str, convert) -> None:
    matrix, linear = program(8, kind)
    z, y = map(torch.as_tensor, interior_point(convert(matrix), convert(linear)))
    exact = F.nonnegative_quadratic_program(matrix, linear)
    torch.testing.assert_close(z @ matrix, exact @ matrix, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(y, z @ matrix + linear, rtol=1e-8, atol=1e-8)


def test_pivoting_reports_what_it_could_not_solve() -> None:
    def never(passive: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones(2, 3), torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 1.0]])

    result = block_pivoting(never, torch.ones(2, 3, dtype=torch.bool), 5, 1e-9)
    assert result.solved.tolist() == [False, True]
    with pytest.raises(ValueError, match="steps must be positive, got 0"):
        block_pivoting(never, torch.ones(2, 3, dtype=torch.bool), 0, 1e-9)


def test_the_jitter_is_tiny_in_double_and_adapts_to_rounding_in_single_precision() -> None:
    rows = gradients("identical", 5)
    double = unit_rows(rows @ rows.T).cosines
    assert abs(jittered(double) - double).max() < 2e-14
    noisy = unit_rows(rows.float() @ rows.float().T - 2e-7 * torch.eye(5)).cosines
    assert 1e-14 < abs(jittered(noisy) - noisy).max() < 1e-5
    assert np.linalg.eigvalsh(jittered(noisy)).min() > 0
    torch.testing.assert_close(jittered(torch.from_numpy(noisy)), torch.from_numpy(jittered(noisy)))


@libraries
@pytest.mark.parametrize("tasks", [2, 3, 8, 20])
def test_linear_programs_agree_with_scipy(tasks: int, convert) -> None:
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        objective = torch.randn(tasks, generator=generator, dtype=torch.float64)
        matrix = torch.randn(tasks, tasks, generator=generator, dtype=torch.float64)
        bound = matrix.mean(1) - torch.rand(tasks, generator=generator, dtype=torch.float64) * 0.2
        bound[0] = -torch.inf
        got = torch.as_tensor(simplex_linear_program(convert(objective), convert(matrix), convert(bound)))
        expected = linprog(
            -objective.numpy(),
            -matrix[1:].numpy(),
            -bound[1:].numpy(),
            torch.ones(1, tasks).numpy(),
            [1.0],
            method="highs",
        )
        torch.testing.assert_close(got, torch.from_numpy(expected.x), rtol=1e-7, atol=1e-7)


def test_a_linear_program_without_a_unique_solution_gives_the_centre() -> None:
    got = simplex_linear_program(
        torch.tensor([1.0, 1.0, 0.0]).double(), torch.zeros(1, 3).double(), torch.tensor([-1.0]).double()
    )
    torch.testing.assert_close(got, torch.tensor([0.5, 0.5, 0.0]).double(), rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_projection_on_the_simplex_meets_the_optimality_conditions(size: int) -> None:
    for scale in (1e-3, 1.0, 1e3, 1e20):
        point = scale * torch.randn(5, size, dtype=torch.float64)
        projected = F.project_to_simplex(point)
        torch.testing.assert_close(projected.sum(-1), torch.ones(5, dtype=torch.float64))
        assert projected.min() >= 0
        shift = point - projected  # constant on the support, not larger off it
        level = torch.where(projected > 0, shift, torch.inf).amin(-1, keepdim=True)
        tolerance = 1e-12 * max(scale, 1.0)
        assert ((shift - level).abs() * (projected > 0)).max() <= tolerance
        assert (shift - level).max() <= tolerance


def test_projection_of_a_point_of_the_simplex_is_itself() -> None:
    point = torch.rand(6, dtype=torch.float64).softmax(0)
    torch.testing.assert_close(F.project_to_simplex(point), point)


@pytest.mark.parametrize("size", [1, 2, 3, 8, 15, 40])
def test_jacobi_rotations_find_the_eigendecomposition(size: int) -> None:
    rows = gradients("random", size)
    matrix = rows @ rows.T
    values, vectors = jacobi_eigen(matrix)
    torch.testing.assert_close(values, symmetric_eigen(matrix)[0])
    torch.testing.assert_close(vectors * values @ vectors.T, matrix)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(size, dtype=matrix.dtype))


@pytest.mark.parametrize("kind", ["identical", "dependent", "opposite", "zero row", "all zero"])
def test_jacobi_rotations_handle_equal_and_zero_eigenvalues(kind: str) -> None:
    rows = gradients(kind, 7)
    values, vectors = jacobi_eigen(rows @ rows.T)
    torch.testing.assert_close(vectors * values @ vectors.T, rows @ rows.T)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(7, dtype=rows.dtype))


@pytest.mark.parametrize("kind", ["random", "identical", "opposite"])
def test_the_pseudo_inverse_product_agrees_with_torch(kind: str) -> None:
    cosines = program(6, kind)[1]
    vector = torch.randn(6, dtype=torch.float64)
    expected = torch.linalg.pinv(cosines, hermitian=True, rtol=1e-14) @ vector
    torch.testing.assert_close(pseudo_inverse_product(cosines, vector, torch.float64), expected)


def test_min_norm_point_of_a_masked_set_ignores_the_rest() -> None:
    rows = gradients("conflicting", 5)
    rows[3] = 0
    mask = torch.tensor([True, False, True, False, True])
    expected = torch.zeros(5, dtype=rows.dtype)
    expected[mask] = F.min_norm_point(rows[mask] @ rows[mask].T)
    torch.testing.assert_close(F.min_norm_point(rows @ rows.T, mask), expected)


def test_unit_rows_rebuild_the_gramian() -> None:
    rows = gradients("wild norms", 5)
    unit = unit_rows(rows @ rows.T)
    rebuilt = unit.cosines * np.outer(unit.norms, unit.norms) * unit.scale**2
    torch.testing.assert_close(torch.from_numpy(rebuilt), rows @ rows.T)
    np.testing.assert_allclose(unit.norms * unit.inverse, np.ones(5), rtol=1e-15)
    np.testing.assert_array_equal(unit.cosines.diagonal(), np.ones(5))
