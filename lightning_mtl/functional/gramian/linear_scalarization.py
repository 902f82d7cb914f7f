"""Weights that do not depend on the gradients."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.arrays import Array, library, to_array_like
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def preference_vector(preference: Tensor | None, like: Array) -> Array:
    """Return the preference as an array of the kind of ``like``, or 1/K for each of its entries."""
    if preference is None:
        return library(like).full_like(like, 1 / like.shape[-1])
    return to_array_like(preference, like)


def linear_scalarization(gramian: Tensor, preference: Tensor | None = None) -> Tensor:
    r"""Return constant weights: :math:`w = p`, the baseline of every gradient method.

    Args:
        gramian: Inner products of the task gradients; only its size, dtype, device and finiteness matter.
        preference: The weights. Default: 1/K each, the mean gradient.

    Shape:
        - gramian: ``(K, K)``.
        - preference: ``(K,)``; returns ``(K,)``.

    Example:
        >>> import torch
        >>> linear_scalarization(torch.eye(2))
        tensor([0.5000, 0.5000])

    References:
        K. Miettinen. *Nonlinear multiobjective optimization*. Springer, 1998, Sec. 3.1.
        https://doi.org/10.1007/978-1-4615-5563-6
    """
    rows = unit_rows(gramian)
    return restore(preference_vector(preference, rows.norms), rows, gramian)
