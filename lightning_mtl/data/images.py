"""Images read from disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_mtl.data.errors import DataFileError


def decode_image(owner: str, path: Path, modes: Sequence[str] = ("RGB",), expected: str = "in colour") -> Tensor:
    """Return the pixels of an image file.

    Args:
        owner: Name of the class that reads it, for the error.
        path: The file.
        modes: Accepted Pillow modes; with RGB among them, any image is converted to it.
        expected: The accepted modes in words, for the error.

    Shape:
        - returns ``(3, H, W)`` uint8 in colour, ``(H, W)`` of the file's integer type in grey.

    Raises:
        DataFileError: If the file is damaged, no image, or of another mode.
    """
    try:
        with Image.open(path) as image:
            convert = "RGB" in modes and image.mode != "RGB"  # Pillow copies even where there is nothing to convert
            decoded = image.convert("RGB") if convert else image
            pixels, mode = torch.from_numpy(np.array(decoded)), decoded.mode
    except (OSError, SyntaxError, ValueError) as error:
        raise DataFileError.of(owner, path, f"must be a readable image, got: {error}", "copy it again") from error
    if mode not in modes:
        raise DataFileError.of(owner, path, f"must be {expected}, got Pillow mode '{mode}'", "export it again")
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels


def image_size(owner: str, path: Path) -> tuple[int, int]:
    """Return height and width of an image file, from its header alone.

    Raises:
        DataFileError: If the file is damaged or no image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise DataFileError.of(owner, path, f"must be a readable image, got: {error}", "copy it again") from error
