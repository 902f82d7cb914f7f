"""Ranks of values."""

from __future__ import annotations

import torch
from torch import Tensor


def average_ranks(values: Tensor) -> Tensor:
    """Return the ranks of values, from 1, in float64; equal values share the mean of their ranks.

    Args:
        values: Any numbers.

    Shape:
        - values: ``(N,)``; returns ``(N,)``.

    Example:
        >>> average_ranks(torch.tensor([10.0, 20.0, 10.0, 30.0]))
        tensor([1.5000, 3.0000, 1.5000, 4.0000], dtype=torch.float64)
    """
    _, inverse, counts = torch.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks: Tensor = (last - (counts - 1) / 2.0)[inverse]
    return ranks
