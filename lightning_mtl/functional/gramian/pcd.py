"""PCD: follow the primary task, with guaranteed progress of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.arrays import identity, library, precision, to_array_like
from lightning_mtl.functional.gramian.nnqp import solve_program
from lightning_mtl.functional.gramian.pivoting import jittered
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def pcd(gramian: Tensor, tau: float = 0.02, scales: Tensor | None = None) -> Tensor:
    r"""Weight the gradients by priority-constrained descent (TMLR 2026).

    .. math:: \tilde d = \arg\min_d \tfrac12 \|d - \tilde g_1\|^2 \quad \text{s.t. }
        \langle \tilde g_j, d \rangle \ge \tau \|\tilde g_j\|^2, \; j = 2, \dots, K, \qquad \tilde g_i = s_i g_i

    The update is :math:`\tilde d` with the norm of :math:`g_1`.

    Args:
        gramian: Inner products of the task gradients. The first task is the primary one.
        tau: Fraction of the progress along its own gradient that is guaranteed to every other task, in [0, 1].
        scales: Positive factors :math:`s_i`; the method uses the inverse roots of moving averages of the squared norms.
            Default: the inverse norms of this step.

    Shape:
        - gramian: ``(K, K)``.
        - scales: ``(K,)``.
        - returns: ``(K,)``.

    Raises:
        ValueError: If ``tau`` is outside of [0, 1].

    Note:
        As in TorchJD, the constraints are dropped when no direction meets all of them, and the weights are zero when
        the primary gradient or :math:`\tilde d` is zero.

    Example:
        >>> pcd(torch.eye(2), tau=0.0)
        tensor([1., 0.])

    References:
        *Not all objectives are born equal: priority-constrained descent for hierarchical multi-objective optimization*.
        TMLR, 2026. https://openreview.net/forum?id=HT01yGHLEt
    """
    if not 0 <= tau <= 1:
        raise ValueError(f"pcd: tau must be between 0 and 1, got {tau}; the paper uses 0.02.")
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    factors = rows.inverse if scales is None else to_array_like(scales, rows.norms)
    lengths = factors * rows.norms
    first = identity(rows.norms)[0]
    size = lengths.max()
    lengths = lengths / (size + (size == 0))
    primary = first * lengths
    secondary = (first == 0) & (rows.norms > 0)
    # In unit rows: d = primary + sum of z_j >= 0, with <unit row, d> >= tau * length.
    wanted = tau * lengths * secondary
    matrix = xp.where(secondary & secondary[:, None], jittered(rows.cosines), identity(rows.norms))
    start = rows.cosines @ primary
    added = solve_program(matrix, xp.where(secondary, start - wanted, 1)[None])[0]
    missed = (secondary * (wanted - start - rows.cosines @ added)).max()
    value = primary + xp.where(missed <= 1e-6, added, 0)
    square = value @ rows.cosines @ value
    eps = max(torch.finfo(gramian.dtype).eps, precision(value))
    moving = square > 10 * eps * abs(value).sum() ** 2
    weights = value * rows.inverse * (rows.norms @ first) * moving / xp.sqrt(xp.where(moving, square, 1))
    return restore(weights, rows, gramian)
