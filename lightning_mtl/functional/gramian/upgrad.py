"""UPGrad: every task gradient projected onto the directions that harm no task."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.linear_scalarization import preference_vector
from lightning_mtl.functional.gramian.nnqp import solve_program
from lightning_mtl.functional.gramian.pivoting import jittered
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def upgrad(gramian: Tensor, preference: Tensor | None = None) -> Tensor:
    r"""Combine the projections of the gradients onto the dual cone (Quinton & Rey, 2024).

    .. math:: \hat g = \sum_k p_k \, \pi(g_k), \qquad
        \pi(x) = \arg\min_{y : \langle g_j, y \rangle \ge 0 \; \forall j} \|y - x\|

    By duality :math:`\pi(g_k) = \sum_j w_{kj} g_j` with :math:`w_k = \arg\min_{w \ge e_k} w^\top G w`, one non-negative
    quadratic program per task. The update never increases a task's loss to first order.

    Args:
        gramian: Inner products of the task gradients.
        preference: Non-negative weights :math:`p` of the projections. Default: 1/K each.

    Shape:
        - gramian: ``(K, K)``.
        - preference: ``(K,)``.
        - returns: ``(K,)``, not below ``preference``.

    Note:
        The programs are stated for unit rows, which changes nothing in exact arithmetic and makes them independent of
        the norms. TorchJD and LibMTL add 1e-4 to the diagonal of the trace-normalized Gramian, which voids the
        guarantee when norms differ by a factor of 10, and return the mean gradient when the squared Frobenius norm is
        below 1e-4.

    Example:
        >>> import torch
        >>> upgrad(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]))
        tensor([0.7500, 0.7500])

    References:
        P. Quinton, V. Rey. *Jacobian descent for multi-objective optimization*. 2024, Eq. 6 and Prop. 1.
        https://arxiv.org/abs/2406.16232
    """
    rows = unit_rows(gramian)
    start = preference_vector(preference, rows.norms)
    added = solve_program(jittered(rows.cosines), rows.cosines)
    weights = start + rows.inverse * ((start * rows.norms) @ added)
    return restore(weights, rows, gramian)
