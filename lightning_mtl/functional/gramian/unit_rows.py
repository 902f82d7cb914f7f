"""The scale-free form in which every solver of this package sees a Gramian: cosines and relative norms."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_mtl.functional.gramian.arrays import Array, identity, library, to_array


class UnitRows(NamedTuple):
    """A Gramian written as ``norms[:, None] * cosines * norms``, up to the square of one common scale.

    The fields are NumPy arrays for a Gramian on the CPU, else tensors.

    Attributes:
        cosines: Inner products of the unit rows, ``(K, K)``, in the solver's dtype. Its diagonal is exactly 1; a zero
            row has a cosine of 0 with every other row.
        norms: Norms of the rows divided by the largest one, ``(K,)``.
        inverse: ``1 / norms``, and 0 for a zero row.
        scale: The largest norm, a scalar; 1 when all rows are zero.
        finite: Scalar bool, false when the Gramian held a NaN or an infinity. The other fields are those of the
            identity matrix then, so that no factorization fails; :func:`restore` puts the NaN back.
    """

    cosines: Array
    norms: Array
    inverse: Array
    scale: Array
    finite: Array


def unit_rows(gramian: Tensor) -> UnitRows:
    """Split a Gramian into cosines and relative norms.

    No floor is involved, so the result is the same for a Gramian and for any positive multiple of it.

    Args:
        gramian: Inner products of the task gradients, of any floating dtype.

    Shape:
        - gramian: ``(K, K)``.

    Example:
        >>> print(unit_rows(torch.tensor([[4.0, 1.0], [1.0, 1.0]])).cosines)
        [[1.  0.5]
         [0.5 1. ]]
    """
    array = to_array(gramian)
    xp = library(array)
    finite = xp.isfinite(array).all()
    eye = identity(array)
    if not (isinstance(array, np.ndarray) and finite):
        array = xp.where(finite, array, eye)
    absolute = xp.sqrt(abs(xp.diagonal(array)))
    scale = absolute.max()
    scale = scale + (scale == 0)
    norms = absolute / scale
    positive = norms > 0
    inverse = positive / (norms + ~positive)
    unit = inverse / scale
    cosines = xp.where(eye == 1, eye, array * unit * unit[:, None])
    return UnitRows(cosines, norms, inverse, scale, finite)


def restore(weights: Array, rows: UnitRows, gramian: Tensor) -> Tensor:
    """Return weights as a tensor in the dtype of the Gramian, NaN where the Gramian was not finite."""
    if isinstance(weights, np.ndarray):
        return torch.from_numpy(weights if rows.finite else np.full_like(weights, np.nan)).to(gramian.dtype)
    restored: Tensor = torch.where(rows.finite, weights, torch.nan)
    return restored.to(gramian.dtype)
