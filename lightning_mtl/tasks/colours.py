"""Colours of classes and values."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


@functools.lru_cache
def class_colours(num_classes: int) -> Tensor:
    """Return one colour per class and, last, black for pixels without a class.

    The bits of the class id, counted from 1, are dealt in turn to the high bits of red, green and blue, the colour map
    of the PASCAL VOC challenge; a class has the same colour in every data set. Colours repeat after 255 classes.

    Args:
        num_classes: Number of classes.

    Shape:
        - returns ``(num_classes + 1, 3)``, uint8.

    Example:
        >>> class_colours(2)
        tensor([[128,   0,   0],
                [  0, 128,   0],
                [  0,   0,   0]], dtype=torch.uint8)
    """
    ids = torch.arange(num_classes) % 255 + 1
    colours = torch.zeros(num_classes + 1, 3, dtype=torch.uint8)
    for bit in range(8):
        channel, place = bit % 3, 7 - bit // 3
        colours[:-1, channel] |= (((ids >> bit) & 1) << place).to(torch.uint8)
    return colours


@functools.lru_cache
def colour_map(name: str) -> Tensor:
    """Return 256 colours of a matplotlib colour map, ``(256, 3)`` uint8.

    Args:
        name: Name of the colour map.
    """
    import matplotlib
    import numpy as np

    colours = matplotlib.colormaps[name](np.arange(256), bytes=True)[:, :3]
    return torch.from_numpy(np.ascontiguousarray(colours))
