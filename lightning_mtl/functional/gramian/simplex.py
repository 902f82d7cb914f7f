"""Euclidean projection onto the probability simplex."""

from __future__ import annotations

import torch
from torch import Tensor


def project_to_simplex(vector: Tensor) -> Tensor:
    r"""Project onto :math:`\{w : w \ge 0, \sum_k w_k = 1\}`.

    Args:
        vector: Point to project.

    Shape:
        - vector: ``(..., K)``; returns ``(..., K)``.

    Example:
        >>> project_to_simplex(torch.tensor([0.5, 1.5, -3.0]))
        tensor([0., 1., 0.])

    References:
        Duchi, Shalev-Shwartz, Singer, Chandra. *Efficient projections onto the l1-ball for learning in high
        dimensions*. ICML, 2008, Fig. 1. https://doi.org/10.1145/1390156.1390176
    """
    vector = vector - vector.amax(-1, keepdim=True)  # the projection ignores a shift, sums of large numbers do not
    descending = vector.sort(dim=-1, descending=True).values
    rank = torch.arange(1, vector.shape[-1] + 1, dtype=vector.dtype, device=vector.device)
    threshold = (descending.cumsum(-1) - 1) / rank
    kept = (descending > threshold).sum(-1, keepdim=True).clamp(min=1)
    return (vector - threshold.gather(-1, kept - 1)).clamp(min=0)
