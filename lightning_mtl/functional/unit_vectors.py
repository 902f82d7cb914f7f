"""Vectors of length one."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_vectors(vectors: Tensor, dim: int = 1, eps: float = 1e-4) -> Tensor:
    """Scale vectors to length one, with bounded gradients at zero and without overflow.

    Args:
        vectors: Any floating tensor.
        dim: The dimension that holds the components.
        eps: Vectors whose largest component is smaller than this are divided by ``eps`` instead of their length, so the
            zero vector stays zero and no gradient exceeds ``1 / eps``.

    Shape:
        - vectors: any; returns the same shape.

    Example:
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    # The result does not depend on the scale above eps, so the scale may be a constant for the gradient.
    scale = vectors.detach().abs().amax(dim, keepdim=True).clamp_min(eps)
    scaled = vectors / scale
    return scaled * torch.rsqrt(scaled.square().sum(dim, keepdim=True).clamp_min(1.0))
