"""PCD: follow the primary task, with guaranteed progress of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.nnqp import nonnegative_quadratic_program
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
    if scales is None:
        lengths = (rows.norms > 0).to(rows.norms)
    else:
        lengths = scales.detach().to(rows.norms) * rows.norms * rows.scale
    first = torch.zeros_like(rows.norms)
    first[0] = 1
    size = lengths.amax()
    lengths = lengths / (size + (size == 0))
    primary = first * lengths
    secondary = (first == 0) & (rows.norms > 0)
    # In unit rows: d = primary + sum of z_j >= 0, with <unit row, d> >= tau * length.
    wanted = torch.where(secondary, tau * lengths, 0)
    eye = torch.eye(rows.norms.shape[-1], dtype=rows.norms.dtype, device=rows.norms.device)
    matrix = torch.where(secondary.unsqueeze(-1) & secondary, jittered(rows.cosines), eye)
    start = rows.cosines @ primary
    linear = torch.where(secondary, start - wanted, 1)
    added = nonnegative_quadratic_program(matrix, linear.unsqueeze(0)).squeeze(0)
    missed = torch.where(secondary, wanted - start - rows.cosines @ added, 0).amax()
    precision = 10 * max(torch.finfo(gramian.dtype).eps, torch.finfo(rows.norms.dtype).eps)
    feasible = missed <= 1e-6
    value = primary + torch.where(feasible, added, 0)
    square = value @ rows.cosines @ value
    moving = square > precision * value.abs().sum().square()
    norm = rows.norms @ first
    weights = torch.where(moving, value * rows.inverse * norm / torch.where(moving, square, 1).sqrt(), 0)
    return restore(weights, rows, gramian)
