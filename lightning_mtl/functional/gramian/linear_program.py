"""Small linear programs over the probability simplex, without a linear programming package."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.nnqp import longest_step
from lightning_mtl.functional.gramian.unit_rows import may_branch

_STEPS = 50


def simplex_linear_program(objective: Tensor, matrix: Tensor, bound: Tensor) -> Tensor:
    r"""Maximize :math:`c^\top x` over the simplex subject to :math:`A x \ge b`.

    A predictor-corrector interior-point method with a fixed number of steps. Where the maximum is attained on a face,
    it returns the centre of this face, which does not depend on the order of the unknowns.

    Args:
        objective: :math:`c`, with entries of order 1.
        matrix: :math:`A`, with entries of order 1.
        bound: :math:`b`. Entries of -inf switch their constraint off.

    Shape:
        - objective: ``(K,)``.
        - matrix: ``(M, K)``.
        - bound: ``(M,)``.
        - returns: ``(K,)`` on the simplex, feasible up to rounding errors when the program is.

    Example:
        >>> objective = torch.tensor([1.0, 0.0], dtype=torch.float64)
        >>> matrix = torch.tensor([[-1.0, 0.0]], dtype=torch.float64)
        >>> x = simplex_linear_program(objective, matrix, torch.tensor([-0.25], dtype=torch.float64))
        >>> [round(float(v), 6) for v in x]
        [0.25, 0.75]

    References:
        S. Mehrotra. *On the implementation of a primal-dual interior point method*. SIAM Journal on Optimization, 1992.
        https://doi.org/10.1137/0802028
    """
    size = objective.shape[-1]
    eps = torch.finfo(objective.dtype).eps
    active = bound > -torch.inf
    # All inequalities in one form, R x >= h: the given ones, and x >= 0. An inactive one reads 0 >= -1.
    eye = torch.eye(size, dtype=objective.dtype, device=objective.device)
    rows = torch.cat([torch.where(active.unsqueeze(-1), matrix, 0), eye])
    right = torch.cat([torch.where(active, bound, -1), torch.zeros_like(objective)])
    x = torch.full_like(objective, 1 / size)
    slack = (rows @ x - right).clamp(min=0.1)
    dual = torch.ones_like(slack)
    level = torch.zeros_like(objective[:1])
    for _ in range(_STEPS):
        errors = (rows.T @ dual + objective + level, rows @ x - right - slack, 1 - x.sum())
        gap = (slack * dual).mean()
        ratio = dual / slack
        normal = rows.T @ (ratio.unsqueeze(-1) * rows)
        scaling = normal.diagonal().rsqrt()
        factor = torch.linalg.cholesky_ex(normal * torch.outer(scaling, scaling) + eye * (2 * eps)).L
        _, d_slack, d_dual, _ = _newton(rows, slack, ratio, scaling, factor, errors, -slack * dual)
        lengths = longest_step(slack, d_slack), longest_step(dual, d_dual)
        predicted = ((slack + lengths[0] * d_slack) * (dual + lengths[1] * d_dual)).mean()
        complement = gap * (predicted / gap) ** 3 - slack * dual - d_slack * d_dual
        dx, d_slack, d_dual, d_level = _newton(rows, slack, ratio, scaling, factor, errors, complement)
        lengths = 0.99 * longest_step(slack, d_slack), 0.99 * longest_step(dual, d_dual)
        usable = (gap > eps) & dx.isfinite().all() & d_dual.isfinite().all()
        x = torch.where(usable, x + lengths[0] * dx, x)
        slack = torch.where(usable, slack + lengths[0] * d_slack, slack)
        dual = torch.where(usable, dual + lengths[1] * d_dual, dual)
        level = torch.where(usable, level + lengths[1] * d_level, level)
        if may_branch(x) and not bool(usable):
            break
    x = x.clamp(min=0)
    return x / x.sum()


def _newton(
    rows: Tensor,
    slack: Tensor,
    ratio: Tensor,
    scaling: Tensor,
    factor: Tensor,
    errors: tuple[Tensor, Tensor, Tensor],
    complement: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Step of the unknowns, slacks, multipliers and the multiplier of the sum, for a change of slack * multiplier."""
    stationarity, primal, balance = errors
    gradient = stationarity + rows.T @ (complement / slack - ratio * primal)
    both = torch.stack([gradient, torch.ones_like(gradient)], -1)
    solution = scaling.unsqueeze(-1) * torch.cholesky_solve(scaling.unsqueeze(-1) * both, factor)
    free, ones = solution.unbind(-1)
    d_level = (balance - free.sum()) / ones.sum()
    dx = free + ones * d_level
    d_slack = rows @ dx + primal
    return dx, d_slack, complement / slack - ratio * d_slack, d_level.unsqueeze(0)
