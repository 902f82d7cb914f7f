"""DualProj: the mean gradient projected onto the directions that harm no task."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.linear_scalarization import preference_vector
from lightning_mtl.functional.gramian.nnqp import solve_program
from lightning_mtl.functional.gramian.pivoting import jittered
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def dualproj(gramian: Tensor, preference: Tensor | None = None) -> Tensor:
    r"""Project the mean gradient onto the dual cone of the gradients (Lopez-Paz & Ranzato, NeurIPS 2017).

    .. math:: \hat g = \arg\min_{y : \langle g_j, y \rangle \ge 0 \; \forall j} \Big\| y - \sum_k p_k g_k \Big\|
        = \sum_k w_k g_k, \qquad w = \arg\min_{w \ge p} w^\top G w

    This is the projection of gradient episodic memory with every task as a constraint.

    Args:
        gramian: Inner products of the task gradients.
        preference: Non-negative weights :math:`p` of the gradient that is projected. Default: 1/K each.

    Shape:
        - gramian: ``(K, K)``.
        - preference: ``(K,)``.
        - returns: ``(K,)``, not below ``preference``.

    Note:
        Exact at every scale and norm ratio; TorchJD adds 1e-4 to the diagonal of the normalized Gramian.

    Example:
        >>> import torch
        >>> dualproj(torch.tensor([[1.0, -1.0], [-1.0, 4.0]]))
        tensor([0.5000, 0.5000])

    References:
        D. Lopez-Paz, M. Ranzato. *Gradient episodic memory for continual learning*. NeurIPS, 2017, Eq. 11.
        https://arxiv.org/abs/1706.08840
    """
    rows = unit_rows(gramian)
    start = preference_vector(preference, rows.norms)
    scaled = start * rows.norms
    largest = abs(scaled).max()
    largest = largest + (largest == 0)
    added = solve_program(jittered(rows.cosines), ((scaled / largest) @ rows.cosines)[None])[0]
    weights = start + rows.inverse * added * largest
    return restore(weights, rows, gramian)
