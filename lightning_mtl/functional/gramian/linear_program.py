"""Small linear programs over the probability simplex, without a linear programming package."""

from __future__ import annotations

import torch
from torch import Tensor

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

    def longest(value: Tensor, step: Tensor) -> Tensor:
        return torch.where(step < 0, -value / step, torch.inf).amin().clamp(max=1)

    for _ in range(_STEPS):
        stationarity = rows.T @ dual + objective + level
        primal = rows @ x - right - slack
        balance = 1 - x.sum()
        gap = (slack * dual).mean()
        ratio = dual / slack
        normal = rows.T @ (ratio.unsqueeze(-1) * rows)
        scaling = normal.diagonal().rsqrt()
        factor = torch.linalg.cholesky_ex(normal * torch.outer(scaling, scaling) + eye * (2 * eps)).L

        def invert(vector: Tensor, scaling: Tensor = scaling, factor: Tensor = factor) -> Tensor:
            return scaling * torch.cholesky_solve((scaling * vector).unsqueeze(-1), factor).squeeze(-1)

        ones = invert(torch.ones_like(x))
        total = ones.sum()

        def direction(
            complement: Tensor,
            stationarity: Tensor = stationarity,
            primal: Tensor = primal,
            balance: Tensor = balance,
            slack: Tensor = slack,
            ratio: Tensor = ratio,
        ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
            free = invert(stationarity + rows.T @ (complement / slack - ratio * primal))
            d_level = (balance - free.sum()) / total
            dx = free + ones * d_level
            d_slack = rows @ dx + primal
            return dx, d_slack, complement / slack - ratio * d_slack, d_level

        _, d_slack, d_dual, _ = direction(-slack * dual)
        length_p, length_d = longest(slack, d_slack), longest(dual, d_dual)
        predicted = ((slack + length_p * d_slack) * (dual + length_d * d_dual)).mean()
        dx, d_slack, d_dual, d_level = direction(gap * (predicted / gap) ** 3 - slack * dual - d_slack * d_dual)
        length_p, length_d = 0.99 * longest(slack, d_slack), 0.99 * longest(dual, d_dual)
        usable = (gap > eps) & dx.isfinite().all() & d_dual.isfinite().all()
        x = torch.where(usable, x + length_p * dx, x)
        slack = torch.where(usable, slack + length_p * d_slack, slack)
        dual = torch.where(usable, dual + length_d * d_dual, dual)
        level = torch.where(usable, level + length_d * d_level, level)
        if may_branch(x) and not bool(usable):
            break
    x = x.clamp(min=0)
    return x / x.sum()
