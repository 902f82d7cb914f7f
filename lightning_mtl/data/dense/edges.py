"""Edges of class maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def label_boundaries(segmentation: Tensor, ignore_index: int = 255) -> Tensor:
    """Mark the pixels that touch another label.

    Both sides of a boundary are marked, which makes the result independent of mirroring. Ignored pixels get 255 and
    make no boundary with their neighbours.

    Shape:
        - segmentation: ``(..., H, W)``, any integer type; returns ``(..., H, W)`` float32 in {0, 1, 255}.

    Example:
        >>> label_boundaries(torch.tensor([[3, 3, 5, 255]])).tolist()
        [[0.0, 1.0, 1.0, 255.0]]
    """
    ignored = segmentation == ignore_index
    edges = torch.zeros_like(segmentation, dtype=torch.bool)
    for axis in (-2, -1):
        length = segmentation.shape[axis] - 1
        first, second = segmentation.narrow(axis, 0, length), segmentation.narrow(axis, 1, length)
        differ = (first != second) & ~(ignored.narrow(axis, 0, length) | ignored.narrow(axis, 1, length))
        edges.narrow(axis, 0, length).logical_or_(differ)
        edges.narrow(axis, 1, length).logical_or_(differ)
    return edges.to(torch.float32).masked_fill_(ignored, 255.0)


def close_gaps(segmentation: Tensor, reach: int) -> Tensor:
    """Let the labels grow into void pixels, so that regions separated by a thin strip of void touch.

    Hand-drawn class maps leave such strips around objects. Where two labels arrive at once, the larger one wins, which
    makes the result independent of mirroring.

    Args:
        segmentation: ``(H, W)`` uint8, 255 is void.
        reach: How many pixels labels grow; strips twice as wide are closed.

    Example:
        >>> close_gaps(torch.tensor([[1, 255, 255, 255, 255, 4]], dtype=torch.uint8), 1).tolist()
        [[1, 1, 255, 255, 4, 4]]
    """
    grown = segmentation + 1  # void wraps to 0, below every label
    for _ in range(reach):
        void = grown == 0
        widest = F.pad(grown, (1, 1, 1, 1))
        widest = torch.maximum(torch.maximum(widest[:-2], widest[1:-1]), widest[2:])
        widest = torch.maximum(torch.maximum(widest[:, :-2], widest[:, 1:-1]), widest[:, 2:])
        grown = torch.where(void, widest, grown)
    return grown - 1
