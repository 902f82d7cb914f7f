"""The point of smallest norm in the convex hull of a few vectors, from their inner products."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.arrays import Array, identity, library
from lightning_mtl.functional.gramian.nnqp import solve_program
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
        >>> import torch
        >>> min_norm_point(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000])
    """
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    kept = rows.norms >= 0 if mask is None else xp.asarray(mask)
    return restore(min_norm_of_rows(rows.cosines, rows.norms, kept), rows, gramian)


def min_norm_of_rows(cosines: Array, norms: Array, kept: Array) -> Array:
    """Solve the problem of :func:`min_norm_point` for vectors that are given by their cosines and norms."""
    xp = library(norms)
    positive = kept & (norms > 0)
    closeness = positive / xp.where(positive, norms, 1)
    largest = closeness.max()
    closeness = closeness / (largest + (largest == 0))
    matrix = jittered(cosines) + closeness * closeness[:, None]
    matrix = xp.where(positive & positive[:, None], matrix, identity(norms))
    weights = solve_program(matrix, -closeness[None])[0] * closeness
    zero = kept & (norms == 0)
    weights = xp.where(zero.any(), zero * xp.ones_like(weights), weights)
    return weights / weights.sum()
