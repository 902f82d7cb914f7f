"""Boxes over an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lightning_mtl.tasks.colours import class_colours


def draw_boxes(image: Tensor, boxes: Mapping[str, Tensor], class_names: Sequence[str], scale: float = 1.0) -> Tensor:
    """Draw boxes in the colours of their classes, worst first, with name and score where these fit.

    Args:
        image: Image ``(3, H, W)``, uint8.
        boxes: ``boxes`` ``(n, 4)`` and ``labels`` ``(n,)`` from 1 on; ``scores`` ``(n,)`` if they are predictions.
        class_names: Names of the classes 1, 2, ...
        scale: Factor on the boxes.

    Returns:
        A new image ``(3, H, W)``, uint8.
    """
    from PIL import Image, ImageDraw

    canvas = Image.fromarray(image.movedim(0, -1).contiguous().numpy())
    draw = ImageDraw.Draw(canvas)
    colours = class_colours(len(class_names)).tolist()
    width = max(1, round(min(canvas.size) / 160))
    scores = boxes.get("scores")
    corners = (boxes["boxes"].detach().float().cpu() * scale).tolist()
    labels = boxes["labels"].tolist()
    marks = []
    order = range(len(labels)) if scores is None else scores.float().argsort().tolist()
    for i in order:
        x1, y1, x2, y2 = corners[i]
        colour = tuple(colours[labels[i] - 1])
        right, low = max(x1, x2 - 1), max(y1, y2 - 1)  # the last pixel inside
        draw.rectangle((x1, y1, right, low), outline=colour, width=width)
        text = class_names[labels[i] - 1] + ("" if scores is None else f" {scores[i].item():.2f}"[:5])
        marks.append((x1, y1, text, colour))
    for x1, y1, text, colour in marks:  # above all boxes
        left, top, end, bottom = draw.textbbox((0, 0), text)
        wide, high = end - left + 2, bottom - top + 2
        x = min(max(x1, 0), max(canvas.width - wide, 0))
        y = y1 - high if y1 >= high else y1
        draw.rectangle((x, y, x + wide, y + high), fill=colour)
        draw.text((x + 1 - left, y + 1 - top), text, fill="white")
    raw = torch.frombuffer(bytearray(canvas.tobytes()), dtype=torch.uint8)
    return raw.view(canvas.height, canvas.width, 3).movedim(-1, 0).contiguous()
