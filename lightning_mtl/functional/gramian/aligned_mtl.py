"""Aligned-MTL: gradients made orthogonal and equally long."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lightning_mtl.functional.gramian.arrays import library
from lightning_mtl.functional.gramian.eigen import rank_mask, symmetric_eigen
from lightning_mtl.functional.gramian.linear_scalarization import preference_vector
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def aligned_mtl(
    gramian: Tensor, scale_mode: Literal["min", "median", "rmse"] = "min", preference: Tensor | None = None
) -> Tensor:
    r"""Align the principal components of the gradient matrix (Senushkin et al., CVPR 2023).

    .. math:: w = \sigma V \Sigma^{-1} V^\top p, \qquad G = V \Sigma^2 V^\top

    The aligned gradients :math:`\sigma V \Sigma^{-1} V^\top J` have condition number 1 on the space of the gradients.

    Args:
        gramian: Inner products of the task gradients.
        scale_mode: Their common singular value :math:`\sigma`: the smallest one of the gradient matrix (``"min"``, the
            paper), the root of the median eigenvalue (``"median"``), or of the mean eigenvalue (``"rmse"``).
        preference: Weights :math:`p` of the aligned gradients. Default: 1/K each.

    Shape:
        - gramian: ``(K, K)``.
        - preference: ``(K,)``.
        - returns: ``(K,)``; entries may be negative.

    Raises:
        ValueError: If ``scale_mode`` is unknown.

    Note:
        Averages the aligned gradients as the paper and TorchJD do; LibMTL sums them, K times as much. Directions whose
        singular value is within rounding errors of zero, in float64 about 1e-8 of the largest one, are left out of the
        inverse and of the scale; a task whose gradient is that much shorter than another's cannot be told from a
        dependent one. An all-zero Gramian gives the preference.

    Example:
        >>> import torch
        >>> aligned_mtl(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.5000, 0.2500])

    References:
        D. Senushkin, N. Patakin, A. Kuznetsov, A. Konushin. *Independent component alignment for multi-task learning*.
        CVPR, 2023, Eq. 11-12 and Alg. 1. https://arxiv.org/abs/2305.19000
    """
    if scale_mode not in ("min", "median", "rmse"):
        raise ValueError(
            f"aligned_mtl: scale_mode must be 'min', 'median' or 'rmse', got {scale_mode!r}; choose one of them."
        )
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    start = preference_vector(preference, rows.norms)
    values, vectors = symmetric_eigen(rows.cosines * rows.norms * rows.norms[:, None])
    kept = rank_mask(values, gramian.dtype)
    rank = kept.sum()
    if scale_mode == "min":
        scale = xp.amin(xp.where(kept, values, xp.inf), -1)
    elif scale_mode == "median":  # the lower one of two middle values, as torch.median
        place = xp.cumsum(1 * kept, -1)
        scale = (values * (kept & (place == (rank + 1) // 2))).sum()
    else:
        scale = (values * kept).sum() / xp.clip(rank, 1, None)
    factors = kept * xp.sqrt(xp.where(kept, scale, 0) / xp.where(kept, values, 1))
    weights = vectors @ (factors * (start @ vectors))
    return restore(xp.where(rank > 0, weights, start), rows, gramian)
