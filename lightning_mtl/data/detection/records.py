"""Images and boxes of a detection data set, checked once and packed into few tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from numpy.typing import NDArray
from torch import Tensor

from lightning_mtl.data.errors import DataFileError

InvalidBoxes = Literal["raise", "skip"]

TOLERANCE = 1.0
"""Pixels by which a box may stick out of its image without being wrong: rounding, and VOC's count from 1."""


class PackedTexts:
    """A list of texts in two tensors.

    A list of Python strings is copied into every worker as soon as its reference counts change; tensors stay shared.

    Args:
        texts: The texts.

    Example:
        >>> texts = PackedTexts(["a.jpg", "", "ünder/b.jpg"])
        >>> len(texts), texts[0], texts[1], texts[2]
        (3, 'a.jpg', '', 'ünder/b.jpg')
    """

    def __init__(self, texts: Iterable[str]) -> None:
        encoded = [text.encode() for text in texts]
        self._bytes = torch.from_numpy(np.frombuffer(b"".join(encoded), dtype=np.uint8).copy())
        self._ends = torch.tensor([len(text) for text in encoded], dtype=torch.int64).cumsum(0)

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._ends)

    def __getitem__(self, index: int) -> str:
        """Return one text."""
        start = int(self._ends[index - 1]) if index else 0
        return self._bytes[start : int(self._ends[index])].numpy().tobytes().decode()


@dataclass(frozen=True)
class Annotations:
    """Boxes as an annotation file gives them, not checked yet.

    Attributes:
        image: Row of each box's image ``(M,)``, -1 where the file names no such image.
        category: Position of its category ``(M,)``, -1 where the file names no such category.
        boxes: x, y, width, height ``(M, 4)`` float64.
        crowd: Whether it is a crowd region ``(M,)``.
        area: Area of the object ``(M,)`` float64.
        ids: Id of each annotation ``(M,)``.
        name: Row -> how an error calls the annotation.
        masks: Mask of each box as JSON text; empty where no task asks for masks.
    """

    image: NDArray[np.int64]
    category: NDArray[np.int64]
    boxes: NDArray[np.float64]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    ids: NDArray[np.int64]
    name: Callable[[int], str]
    masks: Sequence[str] = ()


@dataclass(frozen=True)
class Records:
    """Images and their boxes, N and M in number; the boxes of image i are rows ``starts[i]`` to ``starts[i + 1]``.

    Attributes:
        source: The annotation file, or the folder of the annotation files.
        folder: Folder that the image files are named from.
        files: Names of the image files.
        image_ids: ``(N,)`` int64.
        sizes: Height and width ``(N, 2)`` int64.
        starts: ``(N + 1,)`` int64.
        boxes: x1, y1, x2, y2 ``(M, 4)`` float32, pixels, inside the image.
        category: Position in ``categories`` ``(M,)`` int64.
        crowd: ``(M,)`` bool.
        fill: Area of the object divided by that of its box ``(M,)`` float32.
        annotation_ids: ``(M,)`` int64.
        categories: Names, in the order of the labels.
        masks: Mask of each box as JSON text; empty where no task asks for masks.
    """

    source: Path
    folder: Path
    files: PackedTexts
    image_ids: Tensor
    sizes: Tensor
    starts: Tensor
    boxes: Tensor
    category: Tensor
    crowd: Tensor
    fill: Tensor
    annotation_ids: Tensor
    categories: tuple[str, ...]
    masks: PackedTexts

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.files)

    @classmethod
    def checked(
        cls,
        owner: str,
        source: Path,
        folder: Path,
        files: Sequence[str],
        image_ids: Sequence[int],
        sizes: NDArray[np.int64],
        annotations: Annotations,
        categories: Sequence[str],
        invalid: InvalidBoxes,
    ) -> Records:
        """Check the boxes, sort them by image and pack everything.

        Args:
            owner: Name of the data module, for the error.
            source: The annotation file.
            folder: Folder of the images.
            files: Name of each image's file.
            image_ids: Id of each image.
            sizes: Height and width of each image ``(N, 2)``.
            annotations: The boxes.
            categories: Names of the categories.
            invalid: Whether an invalid box raises, or is left out (clipped, where it sticks out of the image) and
                counted in one warning.

        Raises:
            DataFileError: If a box is invalid and ``invalid`` is ``raise``.
        """
        boxes = annotations.boxes.copy()
        boxes[:, 2:] += boxes[:, :2]
        boxes, problems, leaves = _check(boxes, annotations, sizes)
        found = np.flatnonzero([problem is not None for problem in problems])
        if len(found) and invalid == "raise":
            raise DataFileError.of(
                owner, source, _listed(found, problems, annotations, files), "correct them or pass invalid_boxes='skip'"
            )
        if len(found):
            kinds = Counter(str(problems[row]).split(",")[0] for row in found)
            counts = "; ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
            rank_zero_warn(
                f"{owner}: '{source}': of {len(boxes)} annotations {int(leaves.sum())} skipped and "
                f"{len(found) - int(leaves.sum())} clipped: {counts}."
            )
        kept = np.flatnonzero(~leaves)
        kept = kept[np.argsort(annotations.image[kept], kind="stable")]
        counts_of = np.bincount(annotations.image[kept], minlength=len(files))
        side = annotations.boxes[kept, 2:]
        fill = np.minimum(annotations.area[kept] / (side[:, 0] * side[:, 1]), 1.0)
        return cls(
            source=source,
            folder=folder,
            files=PackedTexts(files),
            image_ids=torch.tensor(image_ids, dtype=torch.int64),
            sizes=torch.from_numpy(sizes),
            starts=torch.from_numpy(np.concatenate([[0], np.cumsum(counts_of)]).astype(np.int64)),
            boxes=torch.from_numpy(boxes[kept].astype(np.float32)),
            category=torch.from_numpy(annotations.category[kept]),
            crowd=torch.from_numpy(annotations.crowd[kept]),
            fill=torch.from_numpy(fill.astype(np.float32)),
            annotation_ids=torch.from_numpy(annotations.ids[kept]),
            categories=tuple(categories),
            masks=PackedTexts(annotations.masks[row] for row in kept.tolist() if annotations.masks),
        )


def _check(
    boxes: NDArray[np.float64], annotations: Annotations, sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], list[str | None], NDArray[np.bool_]]:
    """Return the boxes clipped to their images, what is wrong with each, and which cannot be used."""
    known = annotations.image >= 0
    limits = np.zeros_like(boxes)
    limits[known] = sizes[annotations.image[known]][:, [1, 0, 1, 0]]
    side = annotations.boxes[:, 2:]
    with np.errstate(invalid="ignore"):
        clipped = np.clip(boxes, 0, limits)
        outside = (clipped[:, 2:] <= clipped[:, :2]).any(1)
        out_by = np.maximum(-boxes, boxes - limits).max(1, initial=0.0)
        leaves = np.zeros(len(boxes), dtype=bool)
        problems: list[str | None] = [None] * len(boxes)
        for wrong, text in (
            (~known, "must belong to an image of the file"),
            (annotations.category < 0, "must have a category of the file"),
            (~np.isfinite(boxes).all(1), "must have finite coordinates"),
            ((side < 0).any(1), "must not have a negative width or height"),
            ((side == 0).any(1), "must not have zero width or height"),
            (outside, "must lie in its image"),
            (~(annotations.area >= 0) | np.isinf(annotations.area), "must have a finite area of at least 0"),
        ):
            for row in np.flatnonzero(wrong & ~leaves):
                problems[row] = text
            leaves |= wrong
        for row in np.flatnonzero(~leaves & (out_by > TOLERANCE)):
            problems[row] = f"must not stick out of its image by more than {TOLERANCE:g} pixel, {out_by[row]:g} here"
    return clipped, problems, leaves


def _listed(
    found: NDArray[np.int64], problems: Sequence[str | None], annotations: Annotations, files: Sequence[str]
) -> str:
    """Return the problems as one sentence, the first five in full."""
    parts = []
    for row in found[:5].tolist():
        box = ", ".join(f"{value:g}" for value in annotations.boxes[row])
        image = int(annotations.image[row])
        where = f" of image '{files[image]}'" if image >= 0 else ""
        parts.append(f"{annotations.name(row)}{where} {problems[row]}, got x, y, width, height = {box}")
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    return "; ".join(parts) + more
