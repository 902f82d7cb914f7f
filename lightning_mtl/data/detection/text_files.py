"""Boxes in one text file per image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lightning_mtl.data.detection.records import Annotations, InvalidBoxes, Records
from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.images import image_size


@dataclass(frozen=True)
class TextBox:
    """One line of a text file.

    Attributes:
        line: Number of the line, from 1.
        category: Position of its category, -1 where there is no such category.
        box: x, y, width, height.
    """

    line: int
    category: int
    box: tuple[float, float, float, float]


def read_lines(owner: str, path: Path) -> list[str]:
    """Return the lines of a text file.

    Raises:
        DataFileError: If the file cannot be read as text.
    """
    try:
        return path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataFileError.of(owner, path, f"must be a text file, got: {error}", "copy it again") from error


def numbers(owner: str, path: Path, line: int, words: Sequence[str], expected: str) -> tuple[float, ...]:
    """Return the numbers of a line.

    Raises:
        DataFileError: If a word is no number; ``expected`` says what the line should hold.
    """
    try:
        return tuple(float(word) for word in words)
    except ValueError as error:
        raise DataFileError.of(
            owner, path, f"line {line} must be {expected}, got '{' '.join(words)}'", "copy it again"
        ) from error


def text_records(
    owner: str,
    source: Path,
    folder: Path,
    files: Sequence[str],
    image_ids: Sequence[int],
    texts: Sequence[Path],
    parse: Callable[[Path], list[TextBox]],
    categories: Sequence[str],
    invalid: InvalidBoxes,
) -> Records:
    """Read images and boxes of one text file per image, and check them.

    Args:
        owner: Name of the data module, for errors.
        source: Folder of the text files.
        folder: Folder of the images.
        files: Name of each image's file.
        image_ids: Id of each image.
        texts: Text file of each image.
        parse: Reads a text file.
        categories: Names of the categories.
        invalid: Whether an invalid box raises, or is left out and counted.

    Raises:
        DataFileError: If a file is damaged, or a box is invalid.
    """
    sizes = [image_size(owner, folder / name) for name in files]
    found = [(row, box) for row, path in enumerate(texts) for box in parse(path)]
    boxes = np.array([box.box for _, box in found], dtype=np.float64).reshape(-1, 4)
    names = [(row, box.line) for row, box in found]
    return Records.checked(
        owner,
        source,
        folder,
        files,
        image_ids,
        np.array(sizes, dtype=np.int64).reshape(-1, 2),
        Annotations(
            image=np.array([row for row, _ in found], dtype=np.int64),
            category=np.array([box.category for _, box in found], dtype=np.int64),
            boxes=boxes,
            crowd=np.zeros(len(found), dtype=bool),
            area=np.abs(boxes[:, 2] * boxes[:, 3]),
            ids=np.arange(len(found)),
            name=lambda row: f"'{texts[names[row][0]].relative_to(source)}' line {names[row][1]}",
        ),
        categories,
        invalid,
    )
