"""Small non-negative quadratic programs, in batches and without a quadratic programming package."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.pivoting import block_pivoting
from lightning_mtl.functional.gramian.unit_rows import may_branch

_PIVOTS = 16
_POLISH = 4
_INTERIOR_STEPS = 40


def nonnegative_quadratic_program(matrix: Tensor, linear: Tensor) -> Tensor:
    r"""Minimize :math:`\frac12 z^\top H z + q^\top z` over :math:`z \ge 0` for one matrix and a batch of linear terms.

    Block principal pivoting finds the exact solution of well-posed problems in a few steps. Nearly rank-deficient
    problems at the edge of feasibility are combinatorially hard for it: those are given to a primal-dual interior-point
    method, whose solution is then polished by pivoting from its own active set.

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
    if may_branch(linear) and float(linear.amin()) >= 0:
        return torch.zeros_like(linear)
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    wanted = -linear.unsqueeze(-1)

    def solve(passive: Tensor) -> tuple[Tensor, Tensor]:
        column = passive.unsqueeze(-1)
        factor = torch.linalg.cholesky_ex(torch.where(column & passive.unsqueeze(-2), matrix, eye)).L
        solution = torch.cholesky_solve(wanted * column, factor).squeeze(-1)
        margin = torch.where(passive, solution, torch.addmm(linear, solution, matrix))
        return solution, margin / (1 + torch.linalg.vector_norm(solution, torch.inf, -1, keepdim=True))

    tolerance = 500 * torch.finfo(matrix.dtype).eps
    first = block_pivoting(solve, linear < 0, _PIVOTS, tolerance)
    if may_branch(matrix) and bool(first.solved.all()):
        return first.value.clamp(min=0)
    interior, slack = _interior_point(matrix, linear)
    polished = block_pivoting(solve, interior > slack, _POLISH, tolerance)
    fallback = torch.where(polished.solved.unsqueeze(-1), polished.value, interior)
    return torch.where(first.solved.unsqueeze(-1), first.value, fallback).clamp(min=0)


def _interior_point(matrix: Tensor, linear: Tensor) -> tuple[Tensor, Tensor]:
    """Predictor-corrector method from the point z = y = 1; returns the unknowns and their multipliers."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    eps = torch.finfo(matrix.dtype).eps
    z = torch.ones_like(linear)
    y = torch.ones_like(linear)
    for _ in range(_INTERIOR_STEPS):
        residual = torch.addmm(linear, z, matrix) - y
        gap = (z * y).mean(-1, keepdim=True)
        root = (z / y).sqrt()
        # Scaled by sqrt(z / y), the Newton matrix has no eigenvalue below 1.
        factor = torch.linalg.cholesky_ex(eye + matrix * root.unsqueeze(-1) * root.unsqueeze(-2)).L
        dz, dy = _newton(residual, torch.zeros_like(z), z, y, root, factor)
        length = torch.minimum(longest_step(z, dz), longest_step(y, dy))
        predicted = ((z + length * dz) * (y + length * dy)).mean(-1, keepdim=True)
        dz, dy = _newton(residual, (gap * (predicted / gap) ** 3 - dz * dy) / z, z, y, root, factor)
        length = 0.995 * torch.minimum(longest_step(z, dz), longest_step(y, dy))
        usable = (gap > eps * eps) & dz.isfinite().all(-1, keepdim=True) & dy.isfinite().all(-1, keepdim=True)
        z = torch.where(usable, z + length * dz, z)
        y = torch.where(usable, y + length * dy, y)
        if may_branch(z) and not bool(usable.any()):
            break
    return z, y


def _newton(
    residual: Tensor, correction: Tensor, z: Tensor, y: Tensor, root: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Step towards H z + q = y and z * y = z * correction."""
    right = root * (correction - residual - y)
    dz = root * torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)
    return dz, correction - y - y / z * dz


def longest_step(value: Tensor, step: Tensor) -> Tensor:
    """Return the longest step up to 1, along the last dimension, that keeps a positive value from being negative."""
    return torch.where(step < 0, -value / step, torch.inf).amin(-1, keepdim=True).clamp(max=1)
