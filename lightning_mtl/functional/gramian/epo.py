"""EPO search: descend towards the Pareto optimum on a preference ray."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.arrays import library, to_array_like
from lightning_mtl.functional.gramian.linear_program import simplex_linear_program
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def epo(gramian: Tensor, losses: Tensor, preference: Tensor, tolerance: float = 1e-4, relax: bool = False) -> Tensor:
    r"""Weight the gradients by exact Pareto optimal search (Mahapatra & Rajan, ICML 2020).

    The search looks for the Pareto optimum at which :math:`r_k L_k` is the same for all tasks. With
    :math:`\hat l_k = r_k L_k / \sum_j r_j L_j`, the non-uniformity :math:`\mu = \sum_k \hat l_k \log(K \hat l_k)` and
    the adjustments :math:`a_k = r_k (\log(K \hat l_k) - \mu)`, the weights solve a linear program over the simplex:

    .. math:: \max_w \; w^\top G a \quad \text{s.t. } (G w)_k \ge b_k \quad \text{while } \mu > \text{tolerance},

    where :math:`b_k = 0` for the tasks with the largest :math:`r_k L_k`, no bound for other tasks with
    :math:`(G a)_k > 0`, and :math:`b_k = (G a)_k` for the rest; all bounds are 0 if no :math:`(G a)_k` is positive.
    Afterwards the search descends: :math:`\max_w 1^\top G w` such that :math:`G w \ge 0` and, unless relaxed,
    :math:`w^\top G a \ge \min(0, \max_k (G a)_k)`.

    Args:
        gramian: Inner products of the task gradients.
        losses: Positive task losses.
        preference: Positive preference :math:`r`; the ray is :math:`L_k \propto 1 / r_k`.
        tolerance: Non-uniformity below which the search descends instead of balancing.
        relax: Descend without keeping to the ray.

    Shape:
        - gramian: ``(K, K)``.
        - losses, preference: ``(K,)``.
        - returns: ``(K,)`` on the simplex.

    Raises:
        ValueError: If ``tolerance`` is negative.

    Note:
        Follows the authors' code, which hands the program to GLPK and multiplies the weights by K afterwards; here an
        interior-point method solves it to about 1e-8. While balancing, tasks may go up, by design of the method.

    Example:
        >>> import torch
        >>> w = epo(torch.eye(2), torch.tensor([2.0, 1.0]), torch.tensor([0.5, 0.5]))
        >>> [round(float(v), 4) for v in w]
        [1.0, 0.0]

    References:
        D. Mahapatra, V. Rajan. *Multi-task learning with user preferences: gradient descent with controlled ascent in
        Pareto optimization*. ICML, 2020, Eq. 24 and Alg. 1. https://proceedings.mlr.press/v119/mahapatra20a.html
        Authors' code: https://github.com/dbmptr/EPOSearch, MIT.
    """
    if tolerance < 0:
        raise ValueError(f"epo: tolerance must not be negative, got {tolerance}; the authors use 1e-4.")
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    products = rows.cosines * rows.norms * rows.norms[:, None]
    ray = to_array_like(preference, rows.norms)
    weighted = ray * to_array_like(losses, rows.norms)
    share = weighted / weighted.sum()
    logs = xp.log(xp.clip(share * share.shape[-1], xp.finfo(share.dtype).tiny, None))
    disorder = (share * logs).sum()
    adjustment = ray * (logs - disorder)
    largest = abs(adjustment).max()
    anchor = products @ (adjustment / (largest + (largest == 0)))  # G a
    positive = anchor > 0
    bound = xp.where(positive, -xp.inf, anchor)
    bound = xp.where(weighted == weighted.max(), 0, bound)
    bound = xp.where(positive.any(), bound, 0)
    balancing = disorder > tolerance
    # One more row restricts the descent to the ray.
    limit = -xp.inf * xp.ones_like(anchor[:1]) if relax else xp.clip(anchor.max(), None, 0)[None]
    bound = xp.concatenate([xp.where(balancing, bound, 0), xp.where(balancing, -xp.inf, limit)], 0)
    objective = xp.where(balancing, anchor, products.sum(0))
    matrix = xp.concatenate([products, anchor[None]], 0)
    top = abs(objective).max()
    heights = xp.amax(abs(matrix), -1)
    heights = heights + (heights == 0)
    solution = simplex_linear_program(objective / (top + (top == 0)), matrix / heights[:, None], bound / heights)
    return restore(solution, rows, gramian)
