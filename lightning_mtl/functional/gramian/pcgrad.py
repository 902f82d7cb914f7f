"""PCGrad: conflicting components of a gradient are projected away, one task after the other."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.arrays import library
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def pcgrad(gramian: Tensor, order: Tensor) -> Tensor:
    r"""Sum the gradients after gradient surgery (Yu et al., NeurIPS 2020).

    For every task :math:`i`, starting from :math:`g_i^{PC} = g_i`, and for the other tasks :math:`j` in random order:

    .. math:: g_i^{PC} \leftarrow g_i^{PC} - \frac{\min(\langle g_i^{PC}, g_j \rangle, 0)}{\|g_j\|^2} g_j,
        \qquad \hat g = \sum_i g_i^{PC}

    Args:
        gramian: Inner products of the task gradients.
        order: ``order[i]`` is the sequence in which task ``i`` visits the tasks; its own index is skipped.

    Shape:
        - gramian: ``(K, K)``.
        - order: ``(K, K)`` int64, every row a permutation.
        - returns: ``(K,)``, not below 1.

    Note:
        All rows advance together, in K steps. As in the paper and in TorchJD nothing is added to the denominator, which
        cannot be zero when the inner product is negative; LibMTL adds 1e-8, which matters for gradients of norm 1e-4.

    Example:
        >>> import torch
        >>> pcgrad(torch.tensor([[1.0, -0.5], [-0.5, 1.0]]), torch.tensor([[0, 1], [0, 1]]))
        tensor([1.5000, 1.5000])

    References:
        T. Yu, S. Kumar, A. Gupta, S. Levine, K. Hausman, C. Finn. *Gradient surgery for multi-task learning*. NeurIPS,
        2020, Alg. 1. https://arxiv.org/abs/2001.06782
    """
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    sequence = xp.asarray(order)
    own = xp.cumsum(xp.ones_like(sequence[:, 0]), 0) - 1
    products = rows.norms[:, None] * rows.cosines  # <g_i^PC, unit row of j>
    added = xp.zeros_like(products)  # coefficients on the unit rows
    for position in range(sequence.shape[-1]):
        visited = sequence[:, position]
        step = xp.clip(-products[own, visited], 0, None) * (visited != own)
        added[own, visited] += step
        products = products + step[:, None] * rows.cosines[visited]
    return restore(1 + rows.inverse * added.sum(0), rows, gramian)
