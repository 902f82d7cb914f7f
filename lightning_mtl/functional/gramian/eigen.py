"""Eigendecomposition of small symmetric matrices, and the pseudo-inverse built on it."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.arrays import Array, library, precision

_SWEEPS = 12


def symmetric_eigen(matrix: Array) -> tuple[Array, Array]:
    """Return the eigenvalues in ascending order and the eigenvectors in columns.

    LAPACK does it on the CPU. ``torch.linalg.eigh`` on other devices reads an error code back to the host; there, a
    fixed number of Jacobi sweeps keeps all work on the device.

    Args:
        matrix: Finite symmetric matrix.

    Shape:
        - matrix: ``(K, K)``; returns ``(K,)`` and ``(K, K)``.
    """
    if isinstance(matrix, torch.Tensor) and matrix.device.type != "cpu":
        return jacobi_eigen(matrix)
    values, vectors = library(matrix).linalg.eigh(matrix)
    return values, vectors


def jacobi_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Diagonalize by Jacobi rotations, K/2 of them at a time in round-robin order.

    References:
        G. Golub, C. Van Loan. *Matrix computations*. 4th edition, Johns Hopkins University Press, 2013, Sec. 8.5.
    """
    size = matrix.shape[-1]
    even = size + size % 2  # an odd matrix is bordered by a decoupled row
    half = even // 2
    work = torch.zeros(even, even, dtype=matrix.dtype, device=matrix.device)
    work[:size, :size] = matrix
    vectors = torch.eye(even, dtype=matrix.dtype, device=matrix.device)
    upper = torch.arange(0, even, 2, device=matrix.device)
    lower = upper + 1
    # The tournament: seats (0, 1), (2, 3), ... meet; all but the first seat move on by one place.
    seats = [0, *range(2, even, 2), *range(even - 1, 0, -2)]
    moved = {seats[0]: seats[0]} | {seat: seats[1 + (i + 1) % (even - 1)] for i, seat in enumerate(seats[1:])}
    turn = torch.tensor([moved[i] for i in range(even)], device=matrix.device)
    for _ in range(_SWEEPS * (even - 1)):
        diagonal = work.diagonal()
        off = work[upper, lower]
        p, q = diagonal[upper], diagonal[lower]
        ratio = (q - p) / (2 * torch.where(off == 0, 1, off))
        tangent = torch.where(off == 0, 0, torch.where(ratio >= 0, 1.0, -1.0) / (ratio.abs() + (1 + ratio**2).sqrt()))
        cosine = (1 + tangent**2).rsqrt()
        sine = tangent * cosine
        rotation = torch.stack([torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)], -2)
        work = (work.view(even, half, 1, 2) @ rotation).view(even, even)
        work = (work.T.reshape(even, half, 1, 2) @ rotation).view(even, even)
        vectors = (vectors.view(even, half, 1, 2) @ rotation).view(even, even)
        work = work[turn][:, turn]
        vectors = vectors[:, turn]
    values = work.diagonal()
    if even > size:
        border = vectors[-1].abs() > 0.5
        order = torch.where(border, torch.inf, values).argsort()[:size]
    else:
        order = values.argsort()
    return values[order], vectors[:size, order]


def rank_mask(values: Array, dtype: torch.dtype) -> Array:
    """Tell which eigenvalues are above the rounding errors of a matrix that was computed in ``dtype``."""
    eps = max(torch.finfo(dtype).eps, precision(values))
    return values > values.max() * (values.shape[-1] * eps)


def pseudo_inverse_product(matrix: Array, vector: Array, dtype: torch.dtype) -> Array:
    """Return the pseudo-inverse of a positive semi-definite matrix times a vector.

    Args:
        matrix: Symmetric matrix.
        vector: Right-hand side.
        dtype: Precision in which the matrix was computed, which decides its rank.

    Shape:
        - matrix: ``(K, K)``.
        - vector: ``(K,)``; returns ``(K,)``.
    """
    values, vectors = symmetric_eigen(matrix)
    kept = rank_mask(values, dtype)
    inverse = kept / library(values).where(kept, values, 1)
    return vectors @ (inverse * (vector @ vectors))
