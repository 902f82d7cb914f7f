"""The point of smallest norm in the convex hull of a few vectors, from their inner products."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.nnqp import nonnegative_quadratic_program
from lightning_mtl.functional.gramian.pivoting import jittered
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def min_norm_point(gramian: Tensor, mask: Tensor | None = None) -> Tensor:
    r"""Minimize :math:`\|\sum_k w_k g_k\|^2` over the probability simplex.

    The constraint :math:`\sum_k w_k = 1` is traded for the penalty :math:`\frac12 (1 - \sum_k w_k)^2`. This leaves the
    direction of :math:`w` unchanged, for any weight of the penalty, and makes the problem a non-negative quadratic
    program that is solved exactly.

    Args:
        gramian: Inner products of the vectors.
        mask: False for the vectors that are left out, whose weight is 0. At least one must be kept.

    Shape:
        - gramian: ``(K, K)``.
        - mask: ``(K,)`` bool.
        - returns: ``(K,)``, non-negative with sum 1. Zero vectors, when there are any, share all of the weight.

    Example:
        >>> min_norm_point(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000])
    """
    rows = unit_rows(gramian)
    return restore(min_norm_of_rows(rows.cosines, rows.norms, mask), rows, gramian)


def min_norm_of_rows(cosines: Tensor, norms: Tensor, mask: Tensor | None = None) -> Tensor:
    """Solve the problem of :func:`min_norm_point` for vectors that are given by their cosines and norms."""
    kept = torch.ones_like(norms, dtype=torch.bool) if mask is None else mask
    positive = kept & (norms > 0)
    closeness = torch.where(positive, 1 / torch.where(positive, norms, 1), 0)  # 1 / norm
    largest = closeness.amax()
    closeness = closeness / (largest + (largest == 0))
    eye = torch.eye(norms.shape[-1], dtype=norms.dtype, device=norms.device)
    matrix = torch.where(positive.unsqueeze(-1) & positive, jittered(cosines) + torch.outer(closeness, closeness), eye)
    solution = nonnegative_quadratic_program(matrix, -closeness.unsqueeze(0)).squeeze(0)
    weights = torch.where(positive, solution * closeness, 0)
    zero = kept & (norms == 0)
    weights = torch.where(zero.any(), zero.to(norms.dtype), weights)
    return weights / weights.sum()
