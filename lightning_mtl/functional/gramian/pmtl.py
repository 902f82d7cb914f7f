"""Pareto MTL: descent within the region of the loss space that belongs to one preference."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.arrays import identity, library, to_array_like
from lightning_mtl.functional.gramian.min_norm import min_norm_of_rows
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def pmtl(gramian: Tensor, losses: Tensor, preferences: Tensor, index: int, initial: bool = False) -> Tensor:
    r"""Weight the gradients by the descent direction restricted to one preference region (Lin et al., NeurIPS 2019).

    The region of the preference :math:`u_i` is where :math:`\langle u_j - u_i, L \rangle \le 0` for all other
    preferences :math:`u_j`. Violated constraints join the tasks: the update is the point of smallest norm in the hull
    of the task gradients and of the gradients :math:`\sum_k (u_j - u_i)_k g_k` of the violated constraints. All of them
    are combinations of task gradients, so their Gramian is :math:`B G B^\top` with the coefficients in the rows of
    :math:`B`, and the task weights are :math:`w = B^\top \alpha`.

    Args:
        gramian: Inner products of the task gradients.
        losses: Task losses.
        preferences: All preference vectors, one a row.
        index: Row of the preference that is trained for.
        initial: Leave the task gradients out, as in the first phase that looks for a point of the region. The weights
            are zero when no constraint is violated, which ends this phase.

    Shape:
        - gramian: ``(K, K)``.
        - losses: ``(K,)``.
        - preferences: ``(M, K)``.
        - returns: ``(K,)``; entries may be negative.

    Raises:
        ValueError: If ``index`` is not a row of ``preferences``.

    Note:
        Exact where the authors' code uses Frank-Wolfe steps. Their training loop divides the weights by the sum of
        their absolute values, which is left to the caller.

    Example:
        >>> import torch
        >>> rays = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> pmtl(torch.eye(2), torch.tensor([1.0, 2.0]), rays, index=0)
        tensor([0.2000, 0.4000])

    References:
        X. Lin, H.-L. Zhen, Z. Li, Q. Zhang, S. Kwong. *Pareto multi-task learning*. NeurIPS, 2019, Eq. 11-13 and Alg.
        1. https://arxiv.org/abs/1912.12854
    """
    if not -len(preferences) <= index < len(preferences):
        raise ValueError(
            f"pmtl: index must be a row of preferences, got {index} with {len(preferences)} rows; correct it."
        )
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    rays = to_array_like(preferences, rows.norms)
    differences = rays - rays[index]
    violated = differences @ to_array_like(losses, rows.norms) > 0
    coefficients = xp.concatenate([identity(rows.norms), differences], 0)
    products = coefficients @ (rows.cosines * rows.norms * rows.norms[:, None]) @ coefficients.T
    tasks = rows.norms >= 0
    if initial:
        tasks = tasks & ~violated.any()
    norms = xp.sqrt(xp.clip(xp.diagonal(products), 0, None))
    unit = (norms > 0) / xp.where(norms > 0, norms, 1)
    eye = identity(norms)
    cosines = xp.where(eye == 1, eye, products * unit * unit[:, None])
    weights = min_norm_of_rows(cosines, norms, xp.concatenate([tasks, violated], 0)) @ coefficients
    if initial:
        weights = weights * violated.any()
    return restore(weights, rows, gramian)
