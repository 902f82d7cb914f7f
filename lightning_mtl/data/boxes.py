"""Boxes that follow the pixels of their image.

A sample's boxes are ``tv_tensors.BoundingBoxes`` in XYXY format, pixels, the right and lower end exclusive. Beside them
stand ``rows`` ``(n,)`` int64, the row of each box in its data set, and ``crowd`` ``(n,)`` bool, boxes that are neither
trained on nor judged.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.transforms.v2 import functional as TF
from torchvision.tv_tensors import BoundingBoxes

MIN_VISIBLE = 0.3
"""Share of a box that must lie in a window for the object to count as seen in it."""


def box_area(boxes: Tensor) -> Tensor:
    """Return the area of XYXY boxes ``(n, 4)``."""
    x1, y1, x2, y2 = boxes.as_subclass(Tensor).unbind(1)
    return (x2 - x1) * (y2 - y1)


def select_boxes(sample: dict[str, Any], chosen: Tensor) -> dict[str, Any]:
    """Return boxes, rows and crowd flags of the chosen boxes, a bool or index tensor."""
    return {key: _like(sample[key], sample[key][chosen]) for key in ("boxes", "rows", "crowd") if key in sample}


def mirror_boxes(sample: dict[str, Any]) -> dict[str, Any]:
    """Return the boxes mirrored left and right; nothing when the sample has none."""
    boxes = sample.get("boxes")
    return {"boxes": TF.horizontal_flip(boxes)} if isinstance(boxes, BoundingBoxes) else {}


def window_boxes(
    sample: dict[str, Any], box: tuple[int, int, int, int], size: tuple[int, int], min_visible: float = MIN_VISIBLE
) -> dict[str, Any]:
    """Return the boxes as they lie in a window that is resized; nothing when the sample has none.

    Boxes are clipped to the window, and those outside of it go. A box of which less than ``min_visible`` is left
    becomes a crowd box: what remains in the picture is too little to ask for, and yet no background.

    Args:
        sample: Has ``boxes``, and ``rows`` and ``crowd`` beside it.
        box: Top, left, height and width of the window.
        size: Height and width of the result.
        min_visible: Share of the area.
    """
    boxes = sample.get("boxes")
    if not isinstance(boxes, BoundingBoxes):
        return {}
    top, left, height, width = box
    moved = TF.crop(boxes, top, left, height, width)
    seen = box_area(moved)
    out = {**sample, "boxes": TF.resize(moved, list(size)) if (height, width) != size else moved}
    if "crowd" in sample:
        out["crowd"] = sample["crowd"] | (seen < min_visible * box_area(boxes))
    return select_boxes(out, seen > 0)


def _like(original: Any, selected: Any) -> Any:
    if not isinstance(original, BoundingBoxes):
        return selected
    return BoundingBoxes(selected, format=original.format, canvas_size=original.canvas_size)
