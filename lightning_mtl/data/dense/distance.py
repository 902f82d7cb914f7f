"""Distance of every pixel to the boundary of a region."""

from __future__ import annotations

import torch
from torch import Tensor


def signed_distance(inside: Tensor, known: Tensor, reach: int = 20) -> Tensor:
    """Return the distance to the boundary of a region, positive inside, in units of ``reach`` and limited to [-1, 1].

    Exact Euclidean distance between pixel centres to the nearest pixel of the other side, less half a pixel, so that
    the boundary lies between two pixels. Pixels that are not known bound nothing and get NaN.

    Args:
        inside: Where the region is.
        known: Which pixels are labelled.
        reach: Distance in pixels from which on the result is 1 or -1.

    Shape:
        - inside, known: ``(H, W)`` bool; returns ``(1, H, W)`` float32.

    Example:
        >>> road = torch.tensor([[False, False, True, True]])
        >>> signed_distance(road, torch.ones_like(road), reach=2).tolist()
        [[[-0.75, -0.25, 0.25, 0.75]]]

    References:
        Bischke, Helber, Folz, Borth, Dengel. *Multi-Task Learning for Segmentation of Building Footprints with Deep
        Neural Networks*. ICIP 2019. https://arxiv.org/abs/1709.05932: truncated signed distance as an auxiliary task.
        Felzenszwalb, Huttenlocher. *Distance Transforms of Sampled Functions*. Theory of Computing 8, 2012: rows first,
        then columns.
    """
    limit = reach + 1
    to_inside = _along_rows(inside & known, limit)
    to_outside = _along_rows(~inside & known, limit)
    height = inside.shape[0]
    nearest = torch.full(inside.shape, float(limit * limit))
    for offset in range(-min(limit, height) + 1, min(limit, height)):
        here = slice(max(0, -offset), height - max(0, offset))
        there = slice(max(0, offset), height - max(0, -offset))
        other = torch.where(inside[here], to_outside[there], to_inside[there])
        nearest[here] = torch.minimum(nearest[here], other * other + offset * offset)
    distance = (nearest.sqrt() - 0.5).div_(reach).clamp_(max=1)
    return torch.where(inside, distance, -distance).masked_fill_(~known, torch.nan)[None]


def _along_rows(target: Tensor, limit: int) -> Tensor:
    """Return the distance to the nearest pixel of ``target`` in the same row, at most ``limit``."""
    width = target.shape[1]
    place = torch.arange(width, dtype=torch.float32).expand(target.shape)
    last = torch.where(target, place, torch.full_like(place, -limit)).cummax(1).values
    following = torch.where(target, place, torch.full_like(place, width + limit)).flip(1).cummin(1).values.flip(1)
    return torch.minimum(place - last, following - place).clamp_(max=limit)
