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
        _check_polygons(mask, height, width)
        encoded = coco.merge(coco.frPyObjects(mask, height, width))
    elif isinstance(mask, dict) and {"size", "counts"} <= set(mask):
        if mask["size"] != [height, width]:
            raise ValueError(f"size must be that of the image, {[height, width]}, got {mask['size']}")
        counts = mask["counts"]
        runs = np.array(counts, dtype=np.int64) if _all(counts, int) else run_lengths(counts)
        if runs.min(initial=0) < 0 or runs.sum() != height * width:
            raise ValueError(f"run lengths must be positive and sum to {height * width}, got {runs.sum()}")
        encoded = coco.frPyObjects({"size": [height, width], "counts": runs.tolist()}, height, width)
    else:
        raise ValueError(f"must be polygons or run lengths, got {type(mask).__name__}")
    return np.asarray(coco.decode(encoded), dtype=np.uint8)


def _all(values: Any, *kinds: type) -> bool:
    return isinstance(values, list) and all(type(value) in kinds for value in values)


def _check_polygons(polygons: list[Any], height: int, width: int) -> None:
    """Refuse what pycocotools would take gigabytes for, or crash on."""
    if not polygons or not all(_all(p, int, float) and len(p) >= 6 and len(p) % 2 == 0 for p in polygons):
        raise ValueError("polygons must be lists of at least three x, y pairs")
    for polygon in polygons:
        share = np.array(polygon, dtype=np.float64).reshape(-1, 2) / (width, height)
        if not (np.abs(share - 0.5) <= 1.5).all():  # also where it is NaN
            raise ValueError(f"polygons must be finite and lie around their image, got {polygon}")


def run_lengths(text: Any) -> NDArray[np.int64]:
    """Return the run lengths in COCO's compressed text.

    Six bits a letter, from 48: five of a number and one that says whether it goes on; the first letter has the lowest
    bits. From the fourth number on they are differences to the one before the last. pycocotools does not check whether
    the text is complete, and then returns whatever is in memory.

    Raises:
        ValueError: If it is no such text.

    Example:
        >>> run_lengths("23l0").tolist()
        [2, 3, 28]
    """
    letters = np.array([ord(letter) - 48 for letter in text] if isinstance(text, str) else [], dtype=np.int64)
    if not len(letters) or letters.min() < 0 or letters.max() > 63 or letters[-1] & 32:
        raise ValueError("run lengths must be a list of whole numbers or COCO's compressed text")
    ends = np.flatnonzero((letters & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(letters)) - np.repeat(starts, ends - starts + 1)
    if place.max() > 6:
        raise ValueError("run lengths must have at most 35 bits")
    numbers = np.add.reduceat((letters & 31) << (5 * place), starts)
    numbers -= np.where(letters[ends] & 16, np.int64(1) << (5 * (place[ends] + 1)), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


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
