"""The scale-free form in which every solver of this package sees a Gramian: cosines and relative norms."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class UnitRows(NamedTuple):
    """A Gramian written as ``norms[:, None] * cosines * norms``, up to the square of one common scale.

    Attributes:
        cosines: Inner products of the unit rows, ``(K, K)``, in the solver's dtype. Its diagonal is exactly 1; a zero
            row has a cosine of 0 with every other row.
        norms: Norms of the rows divided by the largest one, ``(K,)``.
        inverse: ``1 / norms``, and 0 for a zero row.
        scale: The largest norm, a scalar; 1 when all rows are zero.
        finite: Scalar bool, false when the Gramian held a NaN or an infinity. The other fields are those of the
            identity matrix then, so that no factorization fails; :func:`restore` puts the NaN back.
    """

    cosines: Tensor
    norms: Tensor
    inverse: Tensor
    scale: Tensor
    finite: Tensor


def solver_dtype(device: torch.device) -> torch.dtype:
    """Return float64, or float32 on devices that have no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def unit_rows(gramian: Tensor) -> UnitRows:
    """Split a Gramian into cosines and relative norms.

    No floor is involved, so the result is the same for a Gramian and for any positive multiple of it.

    Args:
        gramian: Inner products of the task gradients, of any floating dtype.

    Shape:
        - gramian: ``(K, K)``.

    Example:
        >>> unit_rows(torch.tensor([[4.0, 1.0], [1.0, 1.0]])).cosines
        tensor([[1.0000, 0.5000],
                [0.5000, 1.0000]], dtype=torch.float64)
    """
    gramian = gramian.detach().to(solver_dtype(gramian.device))
    finite = (gramian - gramian == 0).all()
    if not (may_branch(finite) and bool(finite)):
        gramian = torch.where(finite, gramian, torch.eye(gramian.shape[-1], dtype=gramian.dtype, device=gramian.device))
    absolute = gramian.diagonal().clamp(min=0).sqrt()
    largest = absolute.amax()
    scale = largest + (largest == 0)
    norms = absolute / scale
    inverse = norms.reciprocal().nan_to_num(posinf=0.0)
    unit = inverse / scale
    cosines = (gramian * unit * unit.unsqueeze(-1)).fill_diagonal_(1)
    return UnitRows(cosines, norms, inverse, scale, finite)


def restore(weights: Tensor, rows: UnitRows, gramian: Tensor) -> Tensor:
    """Cast weights back to the dtype of the Gramian and make them NaN where the Gramian was not finite."""
    return torch.where(rows.finite, weights, torch.nan).to(gramian.dtype)


def may_branch(tensor: Tensor) -> bool:
    """Tell whether Python may look at the tensor's values at no cost: on the CPU and outside of a compiler."""
    return tensor.device.type == "cpu" and not torch.compiler.is_compiling() and type(tensor) is Tensor
