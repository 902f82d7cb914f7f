"""Small linear programs over the probability simplex, without a linear programming package."""

from __future__ import annotations

import numpy as np

from lightning_mtl.functional.gramian.arrays import Array, identity, library, precision, quiet, solve_positive
from lightning_mtl.functional.gramian.nnqp import longest_step

_STEPS = 50


def simplex_linear_program(objective: Array, matrix: Array, bound: Array) -> Array:
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
        >>> x = simplex_linear_program(np.array([1.0, 0.0]), np.array([[-1.0, 0.0]]), np.array([-0.25]))
        >>> print(x.round(6))
        [0.25 0.75]

    References:
        S. Mehrotra. *On the implementation of a primal-dual interior point method*. SIAM Journal on Optimization, 1992.
        https://doi.org/10.1137/0802028
    """
    xp = library(objective)
    eps = precision(objective)
    active = bound > -xp.inf
    # All inequalities in one form, R x >= h: the given ones, and x >= 0. An inactive one reads 0 >= -1.
    eye = identity(objective)
    rows = xp.concatenate([xp.where(active[:, None], matrix, 0), eye], 0)
    right = xp.concatenate([xp.where(active, bound, -1), xp.zeros_like(objective)], 0)
    x = xp.full_like(objective, 1 / objective.shape[-1])
    slack = xp.clip(rows @ x - right, 0.1, None)
    dual = xp.ones_like(slack)
    level = xp.zeros_like(objective[:1])
    with quiet(objective):
        for _ in range(_STEPS):
            errors = (rows.T @ dual + objective + level, rows @ x - right - slack, 1 - x.sum())
            gap = (slack * dual).mean()
            ratio = dual / slack
            newton = rows.T @ (ratio[:, None] * rows)
            scaling = 1 / xp.sqrt(xp.diagonal(newton))
            newton = newton * scaling * scaling[:, None] + eye * (2 * eps)
            _, d_slack, d_dual, _ = _step(rows, slack, ratio, scaling, newton, errors, -slack * dual)
            lengths = longest_step(slack, d_slack), longest_step(dual, d_dual)
            predicted = ((slack + lengths[0] * d_slack) * (dual + lengths[1] * d_dual)).mean()
            complement = gap * (predicted / gap) ** 3 - slack * dual - d_slack * d_dual
            dx, d_slack, d_dual, d_level = _step(rows, slack, ratio, scaling, newton, errors, complement)
            lengths = 0.99 * longest_step(slack, d_slack), 0.99 * longest_step(dual, d_dual)
            usable = (gap > eps) & xp.isfinite(dx).all() & xp.isfinite(d_dual).all()
            x = xp.where(usable, x + lengths[0] * dx, x)
            slack = xp.where(usable, slack + lengths[0] * d_slack, slack)
            dual = xp.where(usable, dual + lengths[1] * d_dual, dual)
            level = xp.where(usable, level + lengths[1] * d_level, level)
            if isinstance(x, np.ndarray) and not usable:
                break
    x = xp.clip(x, 0, None)
    return x / x.sum()


def _step(
    rows: Array,
    slack: Array,
    ratio: Array,
    scaling: Array,
    newton: Array,
    errors: tuple[Array, Array, Array],
    complement: Array,
) -> tuple[Array, Array, Array, Array]:
    """Step of the unknowns, slacks, multipliers and the multiplier of the sum, for a change of slack * multiplier."""
    stationarity, primal, balance = errors
    gradient = stationarity + rows.T @ (complement / slack - ratio * primal)
    both = library(rows).stack([scaling * gradient, scaling], -1)
    solution = scaling[:, None] * solve_positive(newton, both)
    free, ones = solution[:, 0], solution[:, 1]
    d_level = (balance - free.sum()) / ones.sum()
    dx = free + ones * d_level
    d_slack = rows @ dx + primal
    return dx, d_slack, complement / slack - ratio * d_slack, d_level
