"""Block principal pivoting for small complementarity problems, and the jitter that makes them well posed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.unit_rows import may_branch

Solve = Callable[[Tensor], tuple[Tensor, Tensor]]


class Pivoted(NamedTuple):
    """Result of :func:`block_pivoting`.

    Attributes:
        value: The unknowns, ``(B, K)``: the solution where ``solved``, else the iterate that violates the conditions
            least.
        solved: Whether all complementarity conditions hold, ``(B,)`` bool.
    """

    value: Tensor
    solved: Tensor


def jittered(cosines: Tensor, first: float | None = None) -> Tensor:
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
    eye = torch.eye(cosines.shape[-1], dtype=cosines.dtype, device=cosines.device)
    unit = 50 * torch.finfo(cosines.dtype).eps if first is None else first
    # On the CPU the first step alone tells whether the rest of the ladder is needed.
    if may_branch(cosines):
        shifted = torch.add(cosines, eye, alpha=unit)
        if int(torch.linalg.cholesky_ex(shifted).info) == 0:
            return shifted
    ladder = unit * 10.0 ** torch.arange(0, 18, 2, dtype=cosines.dtype, device=cosines.device)
    failed = torch.linalg.cholesky_ex(cosines + eye * ladder.view(-1, 1, 1)).info != 0
    return cosines + eye * ladder.index_select(0, failed.sum().clamp(max=8).unsqueeze(0))


def block_pivoting(solve: Solve, passive: Tensor, steps: int, tolerance: float) -> Pivoted:
    r"""Find the set of positive unknowns of a batch of complementarity problems.

    Every step solves the problem with the unknowns outside of the passive set fixed to zero, then moves all indices
    that violate a sign condition to the other side. When this has not reduced the number of violations for three steps,
    only the last violating index moves until the number falls, a rule under which the method is finite for positive
    definite linear complementarity problems. Two to nine steps are typical for K between 2 and 40.

    On the CPU the loop stops as soon as every problem is solved; elsewhere it always runs ``steps`` steps, in which
    solved problems stay as they are, so that no value is read back from the device.

    Args:
        solve: Maps a passive set ``(B, K)`` (bool) to the unknowns, which are zero outside of the set, and to the
            margins of their sign conditions: the unknowns inside and the slacks outside of the set, both ``(B, K)`` and
            in units in which rounding errors are of the order of the machine precision.
        passive: First guess of the indices whose unknown is positive, ``(B, K)`` bool.
        steps: Largest number of steps.
        tolerance: Violations up to this one count as rounding errors.

    References:
        Júdice, Pires. *A block principal pivoting algorithm for large-scale strictly monotone linear complementarity
        problems*. Computers & Operations Research, 1994. https://doi.org/10.1016/0305-0548(94)90106-6
    """
    patience = 3
    size = passive.shape[-1]
    early_exit = may_branch(passive)
    index = torch.arange(size, device=passive.device)
    fewest = torch.full_like(passive[..., 0], size + 1, dtype=torch.long)
    left = torch.full_like(fewest, patience)
    best: Tensor | None = None
    smallest: Tensor | None = None
    for step in range(steps):
        value, margin = solve(passive)
        if early_exit and float(margin.amin()) >= -tolerance:
            return Pivoted(value, torch.ones_like(margin[..., 0], dtype=torch.bool))
        violated = margin < -tolerance
        violation = -margin.amin(-1)
        if best is None or smallest is None:
            best, smallest = value, violation
        else:
            better = violation < smallest
            best = torch.where(better.unsqueeze(-1), value, best)
            smallest = torch.where(better, violation, smallest)
        if step < steps - 1:
            count = violated.sum(-1)
            fewer = count < fewest
            fewest = torch.minimum(fewest, count)
            move_all = fewer | (left > 0)
            left = torch.where(fewer, patience, left - 1)
            last = violated & (index == (violated * (index + 1)).amax(-1, keepdim=True) - 1)
            passive = passive ^ torch.where(move_all.unsqueeze(-1), violated, last)
    if best is None or smallest is None:
        raise ValueError(f"block_pivoting: steps must be positive, got {steps}; use at least 1.")
    return Pivoted(best, smallest <= tolerance)
