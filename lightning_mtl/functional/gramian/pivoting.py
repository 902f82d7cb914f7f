"""Block principal pivoting for small complementarity problems, and the jitter that makes them well posed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from lightning_mtl.functional.gramian.arrays import Array, identity, library, precision

Solve = Callable[[Array], tuple[Array, Array]]


class Pivoted(NamedTuple):
    """Result of :func:`block_pivoting`.

    Attributes:
        value: The unknowns, ``(B, K)``: the solution where ``solved``, else the iterate that violates the conditions
            least.
        solved: Whether all complementarity conditions hold, ``(B,)`` bool.
    """

    value: Array
    solved: Array


def jittered(cosines: Array, first: float | None = None) -> Array:
    """Add the smallest multiple of the identity that makes a matrix of cosines numerically positive definite.

    The multiple is the first of a geometric ladder for which a Cholesky factorization succeeds: 1e-14 for a Gramian in
    float64, about 1e-6 for one that was rounded to float32 and has dependent rows. Because rows have unit norm, this
    perturbs every task by the same relative amount, whatever its gradient's norm.

    Args:
        cosines: Symmetric matrix with unit diagonal, positive semi-definite up to rounding.
        first: First multiple of the ladder. Default: 50 times the machine precision.

    Shape:
        - cosines: ``(K, K)``; returns ``(K, K)``.
    """
    eye = identity(cosines)
    unit = 50 * precision(cosines) if first is None else first
    powers = range(0, 18, 2)
    if isinstance(cosines, np.ndarray):
        for power in powers:
            shifted = cosines + eye * (unit * 10.0**power)
            try:
                np.linalg.cholesky(shifted)
            except np.linalg.LinAlgError:
                continue
            break
        return shifted
    ladder = torch.tensor([unit * 10.0**power for power in powers], dtype=cosines.dtype, device=cosines.device)
    failed = torch.linalg.cholesky_ex(cosines + eye * ladder.view(-1, 1, 1)).info != 0
    return cosines + eye * ladder.index_select(0, failed.sum().clamp(max=len(powers) - 1).unsqueeze(0))


def block_pivoting(solve: Solve, passive: Array, steps: int, tolerance: float) -> Pivoted:
    r"""Find the set of positive unknowns of a batch of complementarity problems.

    Every step solves the problem with the unknowns outside of the passive set fixed to zero, then moves all indices
    that violate a sign condition to the other side. When this has not reduced the number of violations for three steps,
    only the last violating index moves until the number falls, a rule under which the method is finite for positive
    definite linear complementarity problems. Two to nine steps are typical for K between 2 and 40.

    On NumPy arrays the loop stops as soon as every problem is solved; on tensors it always runs ``steps`` steps, in
    which solved problems stay as they are, so that no value is read back from the device.

    Args:
        solve: Maps a passive set ``(B, K)`` (bool) to the unknowns, which are zero outside of the set, and to the
            margins of their sign conditions: the unknowns inside and the slacks outside of the set, both ``(B, K)`` and
            in units in which rounding errors are of the order of the machine precision.
        passive: First guess of the indices whose unknown is positive, ``(B, K)`` bool.
        steps: Largest number of steps.
        tolerance: Violations up to this one count as rounding errors.

    Raises:
        ValueError: If ``steps`` is not positive.

    References:
        Júdice, Pires. *A block principal pivoting algorithm for large-scale strictly monotone linear complementarity
        problems*. Computers & Operations Research, 1994. https://doi.org/10.1016/0305-0548(94)90106-6
    """
    if steps < 1:
        raise ValueError(f"block_pivoting: steps must be positive, got {steps}; use at least 1.")
    xp = library(passive)
    patience = 3
    rank = xp.cumsum(xp.ones_like(passive, dtype=xp.int64), -1)  # 1 ... K
    fewest = rank[..., -1] + 1
    left = xp.full_like(fewest, patience)
    best: Array = None
    smallest: Array = None
    for _ in range(steps):
        value, margin = solve(passive)
        violated = margin < -tolerance
        if isinstance(violated, np.ndarray) and not violated.any():
            return Pivoted(value, np.ones(violated.shape[:-1], dtype=bool))
        violation = -xp.amin(margin, -1)
        better = violation < xp.inf if smallest is None else violation < smallest
        best = value if best is None else xp.where(better[..., None], value, best)
        smallest = violation if smallest is None else xp.where(better, violation, smallest)
        count = violated.sum(-1)
        fewer = count < fewest
        fewest = xp.minimum(fewest, count)
        move_all = fewer | (left > 0)
        left = xp.where(fewer, patience, left - 1)
        last = violated & (rank == xp.amax(violated * rank, -1)[..., None])
        passive = passive ^ xp.where(move_all[..., None], violated, last)
    return Pivoted(best, smallest <= tolerance)
