"""Dense targets read from disk; every error names the file.

The readers take the file first and the name of the class that reads it, ``owner``, for the error. Data modules bind the
other arguments with ``functools.partial``, which worker processes can receive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.images import decode_image

VOID = 255
"""Class of pixels without a label."""

GREY_8 = ("L", "P", "1")
GREY_16 = ("I;16", "I;16B", "I")
_UNKNOWN = 254


class LabelTable:
    """Which class the ids in a file of labels mean.

    Args:
        classes: Id in the file -> class, or 255 for void. Ids that are not named are refused.

    Raises:
        ValueError: If there is no class but void, or an id or class does not fit into 8 bits.
    """

    def __init__(self, classes: Mapping[int, int]) -> None:
        if not set(classes.values()) - {VOID}:
            raise ValueError(f"LabelTable: classes must name at least one class, got {dict(classes)}.")
        if min(classes) < 0 or max(classes) > 255 or not set(classes.values()) <= {*range(_UNKNOWN), VOID}:
            raise ValueError("LabelTable: ids must be in 0..255 and classes in 0..253, or 255 for void.")
        self.expected = _as_ranges(sorted(classes))
        self.table = np.full(256, _UNKNOWN, np.uint8)
        self.table[list(classes)] = list(classes.values())


def _as_ranges(ids: Sequence[int]) -> str:
    parts: list[list[int]] = []
    for value in ids:
        if parts and parts[-1][-1] == value - 1:
            parts[-1] = [parts[-1][0], value]
        else:
            parts.append([value])
    return ", ".join("..".join(map(str, part)) for part in parts)


def read_rgb(path: Path, owner: str) -> Tensor:
    """Return a photograph ``(3, H, W)`` uint8."""
    return decode_image(owner, path)


def read_labels(path: Path, owner: str, table: LabelTable) -> Tensor:
    """Return the classes ``(H, W)`` uint8, 255 is void, of an 8-bit image of ids."""
    ids = decode_image(owner, path, GREY_8, "8-bit grey or palette").numpy()
    classes: np.ndarray[Any, Any] = np.take(table.table, ids.astype(np.uint8, copy=False))
    if (classes == _UNKNOWN).any():
        wrong = int(ids[classes == _UNKNOWN].max())
        raise DataFileError.of(
            owner, path, f"class ids must be in {table.expected}, got {wrong}", "check num_classes and the file"
        )
    return torch.from_numpy(classes)


def read_depth(path: Path, owner: str, unit: float, invalid: int = 0, expected: str = "16-bit grey") -> Tensor:
    """Return the number in a 16-bit image times a unit, ``(1, H, W)`` float32, 0 where the file holds ``invalid``."""
    stored = decode_image(owner, path, GREY_16, expected)
    depth = stored.to(torch.float32)
    if invalid:
        depth.masked_fill_(depth == invalid, 0)
    return depth.mul_(unit)[None]


def read_normals(path: Path, owner: str, signs: Sequence[int] = (1, 1, 1)) -> Tensor:
    """Return unit vectors ``(3, H, W)`` of an 8-bit colour image, ``value / 127.5 - 1``.

    Args:
        path: The file.
        owner: Name of the class that reads it.
        signs: Factors that turn the file's axes to x right, y up, z towards the viewer.
    """
    # 127 or 128 in all channels is a zero vector, and 0 or 255 in all of them a vector of length 1.7: both are invalid.
    normals = unit_or_zero(decode_image(owner, path).to(torch.float32).mul_(1 / 127.5).sub_(1), longest=1.5)
    return turned(normals, signs)


def read_binary(path: Path, owner: str, table: LabelTable) -> Tensor:
    """Return 0, 1 or 255 for void, ``(1, H, W)`` uint8, of an 8-bit image."""
    return read_labels(path, owner, table)[None]


def read_mask(path: Path, owner: str) -> Tensor:
    """Return whether an 8-bit grey image is brighter than half, ``(1, H, W)`` uint8."""
    return (decode_image(owner, path, ("L",), "8-bit grey") > 127).to(torch.uint8)[None]


def read_share(path: Path, owner: str) -> Tensor:
    """Return the numbers of an 8-bit or 16-bit grey image, as a share of the largest, ``(1, H, W)`` float32 in 0..1."""
    values = decode_image(owner, path, ("L", *GREY_16), "8-bit or 16-bit grey")
    return values.to(torch.float32).mul_(1 / (255 if values.dtype == torch.uint8 else 65535))[None]


def read_array(path: Path, owner: str, channels: int | None, nan: bool = False) -> Tensor:
    """Return an npy array of finite numbers.

    Args:
        path: The file.
        owner: Name of the class that reads it.
        channels: Size of the last axis ``(H, W, channels)``; None expects ``(H, W)``.
        nan: Whether NaN is allowed, for entries without label.
    """
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataFileError.of(owner, path, f"must be a readable npy array, got: {error}", "copy it again") from error
    if array.ndim == 2 and channels == 1:
        array = array[..., None]
    if array.ndim != (2 if channels is None else 3) or (channels is not None and array.shape[-1] != channels):
        expected = "(H, W)" if channels is None else f"(H, W, {channels})"
        raise DataFileError.of(owner, path, f"shape must be {expected}, got {array.shape}", "export it again")
    if array.dtype.kind not in "fiub":
        raise DataFileError.of(owner, path, f"values must be numbers, got {array.dtype}", "export it again")
    wrong = (np.isinf(array) if nan else ~np.isfinite(array)) if array.dtype.kind == "f" else np.zeros(0, bool)
    if wrong.any():
        bad = int(wrong.sum())
        raise DataFileError.of(owner, path, f"values must be finite, got {bad} NaN or infinite ones", "export it again")
    return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))


def read_npy_rgb(path: Path, owner: str) -> Tensor:
    """Return a photograph ``(3, H, W)`` uint8 of an array ``(H, W, 3)``, integers or floats in 0..1."""
    image = read_array(path, owner, 3).permute(2, 0, 1)
    if image.is_floating_point():
        if image.min() < 0 or image.max() > 1 + 1e-3:
            raise DataFileError.of(
                owner,
                path,
                f"a float image must be in 0..1, got {float(image.min()):.3g}..{float(image.max()):.3g}",
                "export it again",
            )
        image = (image * 255).round()
    return image.to(torch.uint8)


def read_npy_labels(path: Path, owner: str, num_classes: int) -> Tensor:
    """Return the classes ``(H, W)`` uint8, 255 is void, of an array of classes in which -1 is void."""
    labels = read_array(path, owner, None).to(torch.float32)  # PyTorch finds no extremes of some integer types
    low, high = float(labels.min()), float(labels.max())
    if low < -1 or high >= num_classes:
        raise DataFileError.of(
            owner,
            path,
            f"class ids must be in -1..{num_classes - 1}, got {low:g}..{high:g}",
            "check num_classes and the file",
        )
    return labels.to(torch.int16).to(torch.uint8)  # void -1 wraps to 255


def read_npy_depth(path: Path, owner: str) -> Tensor:
    """Return metres or another positive quantity ``(1, H, W)`` float32 of an array ``(H, W, 1)``, 0 is unknown."""
    depth = read_array(path, owner, 1).permute(2, 0, 1).to(torch.float32)
    if depth.min() < 0:
        raise DataFileError.of(
            owner, path, f"depth must not be negative, got {float(depth.min()):.3g}", "export it again"
        )
    return depth


def read_npy_normals(path: Path, owner: str, signs: Sequence[int] = (1, 1, 1)) -> Tensor:
    """Return unit vectors ``(3, H, W)`` of an array ``(H, W, 3)``, zero where that is zero."""
    return turned(unit_or_zero(read_array(path, owner, 3).permute(2, 0, 1).to(torch.float32)), signs)


def unit_or_zero(normals: Tensor, longest: float = float("inf")) -> Tensor:
    """Return vectors of length 1, or zero where their length is below 0.5 or beyond ``longest``."""
    normals = normals.contiguous()
    x, y, z = normals.unbind()
    square = (x * x).addcmul_(y, y).addcmul_(z, z)
    valid = (square > 0.25) & (square < longest**2)
    return normals * square.clamp_min_(1e-12).rsqrt_().mul_(valid)


def turned(normals: Tensor, signs: Sequence[int]) -> Tensor:
    """Return normals with the axes of negative sign reversed, in place."""
    for component, sign in zip(normals, signs, strict=True):
        if sign < 0:
            torch.sub(0.0, component, out=component)  # not -x: an invalid normal stays +0
    return normals
