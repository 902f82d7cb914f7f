"""CAGrad: the best worst-case improvement in a ball around the mean gradient."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor

from lightning_mtl.functional.gramian.arrays import Array, identity, library, precision, solve_positive
from lightning_mtl.functional.gramian.nnqp import solve_program
from lightning_mtl.functional.gramian.pivoting import block_pivoting, jittered
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows

_PIVOTS = 24
_PIVOTS_ON_HOST = 200


def cagrad(gramian: Tensor, c: float = 0.5, rescale: Literal[0, 1, 2] = 0) -> Tensor:
    r"""Maximize the smallest improvement of a task near the mean gradient (Liu et al., NeurIPS 2021).

    .. math:: \hat g = \arg\max_d \min_k \langle g_k, d \rangle \quad \text{s.t. } \|d - g_0\| \le c \|g_0\|,
        \qquad g_0 = \frac1K \sum_k g_k

    The dual minimizes :math:`\langle g_w, g_0 \rangle + c \|g_0\| \|g_w\|` over the simplex, :math:`g_w = \sum_k w_k
    g_k`, and :math:`\hat g = g_0 + c \|g_0\| g_w / \|g_w\|`. On a known support of :math:`w` the dual has a closed
    form, and the support is found by block principal pivoting.

    Args:
        gramian: Inner products of the task gradients.
        c: Radius of the ball relative to :math:`\|g_0\|`, not negative. 0 gives the mean gradient; from 1 on no task is
            harmed.
        rescale: 0 returns the paper's update, 1 divides it by :math:`1 + c^2` (the default of LibMTL and of the
            authors' code), 2 by :math:`1 + c`.

    Shape:
        - gramian: ``(K, K)``; returns ``(K,)``, non-negative.

    Raises:
        ValueError: If ``c`` is negative or ``rescale`` unknown.

    Note:
        Exact, where the public codes stop a general solver at an absolute tolerance: TorchJD returns zero weights below
        a gradient norm of 0.01, LibMTL its uniform starting point. A task with zero gradient bounds the smallest
        improvement by 0 for every direction; among the directions that reach the bound the one that is best for the
        other tasks is taken. On an accelerator the number of pivots is limited to 24; two to seven are typical, and
        more than that has been seen for 40 tasks with norms that differ by a factor of 1e8.

    Example:
        >>> import torch
        >>> cagrad(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), c=0.5)
        tensor([1.0590, 0.5000])

    References:
        B. Liu, X. Liu, X. Jin, P. Stone, Q. Liu. *Conflict-averse gradient descent for multi-task learning*. NeurIPS,
        2021, Eq. 3 and Alg. 1. https://arxiv.org/abs/2110.14048
    """
    if c < 0:
        raise ValueError(f"cagrad: c must not be negative, got {c}; the paper uses values between 0 and 1.")
    if rescale not in (0, 1, 2):
        raise ValueError(f"cagrad: rescale must be 0, 1 or 2, got {rescale}; 0 is the paper's update.")
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    matrix = jittered(rows.cosines)
    positive = rows.norms > 0
    mean = rows.norms / rows.norms.shape[-1]
    ascent = rows.cosines @ mean  # <unit row, g_0>
    length = xp.sqrt(xp.clip(mean @ ascent, 0, None))
    length = length + (length == 0)
    ascent = ascent / length  # from here on, ||g_0|| = 1
    largest = rows.inverse.max()
    closeness = rows.inverse / (largest + (largest == 0))
    start = positive & (ascent * rows.norms <= (ascent * mean).sum())
    pivoted = block_pivoting(
        lambda passive: _stationary_point(matrix, ascent, closeness, c, passive),
        start[None],
        _PIVOTS_ON_HOST if isinstance(start, np.ndarray) else _PIVOTS,
        5000 * precision(matrix),
    )
    value = xp.clip(pivoted.value[0], 0, None)
    if c >= 1 and not (isinstance(pivoted.solved, np.ndarray) and pivoted.solved.all()):
        value = xp.where(pivoted.solved, value, _best_in_ball(matrix, ascent, rows.norms, c, value))
    weights = 1 / rows.norms.shape[-1] + value * rows.inverse * length
    return restore(weights / (1 + (c * c if rescale == 1 else c if rescale == 2 else 0)), rows, gramian)


def _stationary_point(matrix: Array, ascent: Array, closeness: Array, c: float, passive: Array) -> tuple[Array, Array]:
    """Solve H v + ascent = z * closeness and v'Hv = c^2 for v and z on the support, z * closeness being the gain."""
    xp = library(matrix)
    column = passive[..., None]
    block = xp.where(column & passive[..., None, :], matrix, identity(matrix))
    solution = solve_positive(block, xp.stack([closeness, ascent], -1) * column)
    toward, back = solution[..., 0], solution[..., 1]
    curvature = (toward @ closeness)[..., None]
    curvature = curvature + (curvature == 0)
    cross = (toward @ ascent)[..., None] / curvature
    tangent = toward * cross - back  # the part of -g_0 along the affine hull of the supporting gradients
    stretch = xp.sqrt(xp.clip(c * c + (tangent @ ascent)[..., None], 0, None) / curvature)
    value = stretch * toward + tangent
    gain = stretch + cross
    slack = ascent + value @ matrix - gain * closeness
    size = xp.amax(abs(value), -1)[..., None]
    return value, xp.where(passive, value / (size + (size == 0)), slack / (1 + size + abs(gain)))


def _best_in_ball(matrix: Array, ascent: Array, norms: Array, c: float, candidate: Array) -> Array:
    """Choose the better of a candidate and of the projection of g_0 on the dual cone, both fitted into the ball.

    With c >= 1, pivoting fails only where zero is at the edge of the hull of the gradients: there the projection is
    optimal.
    """
    xp = library(matrix)
    both = xp.stack([candidate, solve_program(matrix, ascent[None])[0]], 0)
    length = xp.sqrt(xp.clip(((both @ matrix) * both).sum(-1), 0, None))
    factor = c / xp.where(length > 0, length, 1)
    both = both * xp.stack([factor[0], xp.clip(factor[1], None, 1)], 0)[:, None]
    worst = xp.amin((both @ matrix + ascent) * norms, -1)
    return xp.where(worst[0] >= worst[1], both[0], both[1])
