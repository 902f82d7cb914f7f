"""Small non-negative quadratic programs, in batches and without a quadratic programming package."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from lightning_mtl.functional.gramian.arrays import (
    Array,
    identity,
    library,
    precision,
    quiet,
    solve_positive,
    to_array,
    to_array_like,
)
from lightning_mtl.functional.gramian.pivoting import block_pivoting

_PIVOTS = 16
_POLISH = 3
_INTERIOR_STEPS = 15


def nonnegative_quadratic_program(matrix: Tensor, linear: Tensor) -> Tensor:
    r"""Minimize :math:`\frac12 z^\top H z + q^\top z` over :math:`z \ge 0` for one matrix and a batch of linear terms.

    On the host, block principal pivoting finds the exact solution of well-posed problems in a few steps. Nearly
    rank-deficient problems at the edge of feasibility are combinatorially hard for it. Those, and all problems on an
    accelerator, where the number of steps must be known in advance, are given to a primal-dual interior-point method,
    whose solution is then polished by pivoting from its own active set.

    Args:
        matrix: Positive definite matrix :math:`H` with entries of order 1, for example from
            :func:`~lightning_mtl.functional.gramian.pivoting.jittered`.
        linear: Linear terms :math:`q`, one problem a row, with entries of order 1.

    Shape:
        - matrix: ``(K, K)``.
        - linear: ``(B, K)``; returns ``(B, K)``.

    Example:
        >>> H = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> nonnegative_quadratic_program(H, torch.tensor([[-3.0, -3.0]], dtype=torch.float64))
        tensor([[1., 1.]], dtype=torch.float64)
    """
    array = to_array(matrix)
    solution = solve_program(array, to_array_like(linear, array))
    return torch.as_tensor(solution).to(linear)


def solve_program(matrix: Array, linear: Array) -> Array:
    """Solve the programs of :func:`nonnegative_quadratic_program` in either array library."""
    xp = library(linear)
    passive = linear < 0
    if isinstance(passive, np.ndarray) and not passive.any():
        return np.zeros_like(linear)
    eye = identity(matrix)
    wanted = -linear[..., None]

    def solve(passive: Array) -> tuple[Array, Array]:
        column = passive[..., None]
        block = xp.where(column & passive[..., None, :], matrix, eye)
        solution = solve_positive(block, wanted * column)[..., 0]
        margin = xp.where(passive, solution, linear + solution @ matrix)
        return solution, margin / (1 + xp.amax(xp.abs(solution), -1)[..., None])

    tolerance = 500 * precision(linear)
    if isinstance(linear, np.ndarray):
        first = block_pivoting(solve, passive, _PIVOTS, tolerance)
        if first.solved.all():
            return np.maximum(first.value, 0)
    with quiet(linear):
        interior, slack = interior_point(matrix, linear)
    polished = block_pivoting(solve, interior > slack, _POLISH, tolerance)
    return xp.clip(xp.where(polished.solved[..., None], polished.value, interior), 0, None)


def interior_point(matrix: Array, linear: Array) -> tuple[Array, Array]:
    """Predictor-corrector method from the point z = y = 1; returns the unknowns and their multipliers."""
    xp = library(linear)
    eye = identity(matrix)
    diagonal = xp.diagonal(matrix)
    eps = precision(linear)
    z = xp.ones_like(linear)
    y = xp.ones_like(linear)
    for _ in range(_INTERIOR_STEPS):
        residual = linear + z @ matrix - y
        gap = (z * y).mean(-1)[..., None]
        unsolved = gap > eps * eps
        ratio = xp.where(unsolved, y / z, 1)
        # The Newton matrix H + diag(y / z), scaled to unit diagonal: its entries span many orders of magnitude.
        root = 1 / xp.sqrt(diagonal + ratio)
        newton = (matrix + eye * ratio[..., None]) * root[..., None] * root[..., None, :]
        dz, dy = _step(residual, 0 * z, z, y, root, newton)
        length = xp.minimum(longest_step(z, dz), longest_step(y, dy))
        predicted = ((z + length * dz) * (y + length * dy)).mean(-1)[..., None]
        dz, dy = _step(residual, (gap * (predicted / gap) ** 3 - dz * dy) / z, z, y, root, newton)
        length = 0.995 * xp.minimum(longest_step(z, dz), longest_step(y, dy))
        usable = unsolved & xp.isfinite(dz + dy).all(-1)[..., None]
        z = xp.where(usable, z + length * dz, z)
        y = xp.where(usable, y + length * dy, y)
        if isinstance(usable, np.ndarray) and not usable.any():
            break
    return z, y


def _step(residual: Array, correction: Array, z: Array, y: Array, root: Array, newton: Array) -> tuple[Array, Array]:
    """Step towards H z + q = y and z * y = z * correction."""
    dz = root * solve_positive(newton, (root * (correction - residual - y))[..., None])[..., 0]
    return dz, correction - y - y / z * dz


def longest_step(value: Array, step: Array) -> Array:
    """Return the longest step up to 1, along the last dimension, that keeps a positive value from being negative."""
    xp = library(value)
    return 1 / xp.clip(xp.amax(-step / value, -1)[..., None], 1, None)
