"""Class maps painted from the masks of a COCO file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CROWD = 255
"""Code of pixels in a crowd region; background is 0, category k is k + 1."""

MAX_CATEGORIES = CROWD - 1


def decode_mask(mask: Any, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Return the pixels of a mask in one of COCO's three forms.

    Args:
        mask: List of polygons ``[x1, y1, x2, y2, ...]``; or ``{"size": [h, w], "counts": ...}`` with the run lengths as
            a list or as COCO's compressed text.
        size: Height and width.

    Returns:
        ``(H, W)`` of 0 and 1.

    Raises:
        ModuleNotFoundError: If pycocotools is not installed.
        ValueError: If it is in none of these forms, or of another size.

    Example:
        >>> decode_mask({"size": [2, 3], "counts": [2, 3, 1]}, (2, 3)).tolist()
        [[0, 1, 1], [0, 1, 0]]
    """
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise ModuleNotFoundError("decode_mask: masks need `pip install lightning-mtl[detection]`.") from error
    height, width = size
    if isinstance(mask, list):
        numbers = all(
            isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 and all(isinstance(v, (int, float)) for v in p)
            for p in mask
        )
        if not mask or not numbers:
            raise ValueError("polygons must be lists of at least three x, y pairs")
        encoded = coco.merge(coco.frPyObjects(mask, height, width))
    elif isinstance(mask, dict) and {"size", "counts"} <= set(mask):
        if list(mask["size"]) != [height, width]:
            raise ValueError(f"size must be that of the image, {[height, width]}, got {mask['size']}")
        counts = mask["counts"]
        if isinstance(counts, list):
            if sum(counts) != height * width or min(counts, default=0) < 0:
                raise ValueError(f"run lengths must sum to {height * width}, got {sum(counts)}")
            encoded = coco.frPyObjects(mask, height, width)
        else:
            encoded = {"size": [height, width], "counts": counts.encode()}
    else:
        raise ValueError(f"must be polygons or run lengths, got {type(mask).__name__}")
    return np.asarray(coco.decode(encoded), dtype=np.uint8)


def paint_masks(masks: Sequence[str], codes: Tensor, crowd: Tensor, size: tuple[int, int]) -> Tensor:
    """Paint masks into one map: crowd regions first, then from the largest object to the smallest.

    Args:
        masks: Masks as JSON text.
        codes: Code of each mask ``(n,)``.
        crowd: Which of them are crowd regions ``(n,)``; they get :data:`CROWD`.
        size: Height and width.

    Returns:
        ``(H, W)`` uint8.

    Raises:
        ValueError: If a mask cannot be decoded; the message starts with its position.
    """
    layers = []
    for position, text in enumerate(masks):
        try:
            pixels = decode_mask(json.loads(text), size).astype(bool)
        except ValueError as error:
            raise ValueError(f"{position}: {error}") from error
        value = CROWD if crowd[position] else int(codes[position])
        layers.append((not crowd[position], -int(pixels.sum()), pixels, value))
    painted = np.zeros(size, dtype=np.uint8)
    for _, _, pixels, value in sorted(layers, key=lambda layer: layer[:2]):
        painted[pixels] = value
    return torch.from_numpy(painted)
