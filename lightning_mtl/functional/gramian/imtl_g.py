"""IMTL-G: the update that has the same projection on every task's gradient."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.eigen import pseudo_inverse_product
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def imtl_g(gramian: Tensor) -> Tensor:
    r"""Equalize the projections of the update on the unit gradients (Liu et al., ICLR 2021).

    .. math:: \Big\langle \sum_j w_j g_j, \frac{g_k}{\|g_k\|} \Big\rangle = \text{const for all } k, \qquad
        \sum_k w_k = 1, \qquad w \propto D^{-1} C^{+} 1

    with the matrix of cosines :math:`C` and the norms :math:`D` on a diagonal.

    Args:
        gramian: Inner products of the task gradients.

    Shape:
        - gramian: ``(K, K)``; returns ``(K,)`` with sum 1, possibly with negative entries. Zero gradients get weight 0
          unless all are zero, which gives 1/K each.

    Note:
        With full rank this is the closed form of the paper. The pseudo-inverse handles dependent rows as in TorchJD; it
        is taken of the cosines, so that the norms do not decide what counts as dependent. LibMTL inverts and returns
        NaN for a zero gradient. The paper's normalization by the sum turns the update into an ascent direction in the
        rare case in which the sum before normalization is negative.

    Example:
        >>> import torch
        >>> imtl_g(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.6667, 0.3333])

    References:
        L. Liu, Y. Li, Z. Kuang, J.-H. Xue, Y. Chen, W. Yang, Q. Liao, W. Zhang. *Towards impartial multi-task
        learning*. ICLR, 2021, Eq. 2-4. https://openreview.net/forum?id=IMPnRXEWpvr
    """
    rows = unit_rows(gramian)
    weights = rows.inverse * pseudo_inverse_product(rows.cosines, rows.norms * rows.inverse, gramian.dtype)
    weights = weights + ~(rows.norms > 0).any()
    total = weights.sum()
    return restore(weights / (total + (total == 0)), rows, gramian)
