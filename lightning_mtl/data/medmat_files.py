"""The files of Med-MAT: tables of factors, json records, and the images that they name."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lightning_mtl.data.compositional import CompositionRegistry, Triplet
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError
from lightning_mtl.data.multiple_choice import LETTERS

Collection = Literal["aggregated", "original"]

MEDMAT_ALIASES: dict[str, dict[str, str]] = {
    "modality": {"us": "ultrasound", "xray": "x-ray", "x ray": "x-ray"},
    "area": {"teeth": "mouth", "bone": "bones"},
}
"""Spellings of the project's tables that mean the same."""

FOLDERS: dict[Collection, str] = {"aggregated": "Aggregated_Subsets", "original": "Original_Medical_Datasets"}
JSON_FILE = re.compile(r"(?:subset|ori)-+0*(\d+)-(train|test)\.json", re.IGNORECASE)
_ROWS: dict[Collection, re.Pattern[str]] = {
    "aggregated": re.compile(r"^\|\s*0*(\d+)\s*\|([^|]*)\|([^|]*)\|([^|]*)\|\s*$", re.MULTILINE),
    "original": re.compile(r"^\|\s*0*(\d+)\s*\|[^|]*\|([^|]*)\|([^|]*)\|([^|]*)\|\s*$", re.MULTILINE),
}
_OPTION = re.compile(rf"(?:^|\n)\s*\(?([{LETTERS}])\s*[).:,]", re.IGNORECASE)
REPAIR = "download the file again, or repair the record"
REMEDY = (
    "Download https://github.com/FreedomIntelligence/Med-MAT: root holds the folders 'med-mat' (images) and "
    "'Aggregated_Subsets' or 'Original_Medical_Datasets' (json); see docs/data/med_mat.md."
)


@dataclass(frozen=True)
class MedMATRecord:
    """One image with its question.

    Args:
        subset: Number of its subset.
        id: Its id in the file.
        image: The image file.
        question: The question as it is asked, with its options.
        num_options: Number of options.
        answer: Place of the right option.
        label: The right answer in words.
    """

    subset: int
    id: str
    image: Path
    question: str
    num_options: int
    answer: int
    label: str


def medmat_registry(path: str | os.PathLike[str], collection: Collection = "aggregated") -> CompositionRegistry:
    """Read modality, area and task of the subsets from the project's page.

    Args:
        path: A Markdown file with a table of number, modality, area and task, or for the original data sets of number,
            name, modality, area and task: the project's ``README.md``, or one's own with tasks in the words that are to
            be compared.
        collection: Which of the two tables.

    Returns:
        The registry, with the names ``"1"``, ``"2"``, ...

    Raises:
        DataFileError: If the file holds no such table.
    """
    registry = CompositionRegistry(aliases=MEDMAT_ALIASES)
    for number, *values in _ROWS[collection].findall(Path(path).read_text(encoding="utf-8")):
        registry.add(number, **Triplet(*(value.strip() for value in values))._asdict())
    if not len(registry):
        columns = (
            "| No. | Modality | Area | Task |" if collection == "aggregated" else "| No. | Name | Modality | ... |"
        )
        raise DataFileError.of(
            "medmat_registry", Path(path), f"must hold a table {columns}, got none", "check the file"
        )
    return registry


def load(path: Path) -> list[dict[str, Any]]:
    """Return the records of a file.

    Raises:
        DataFileError: If it holds no list of records.
    """
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise DataFileError.of("MedMATDataModule", path, f"must be json in UTF-8, got: {error}", REPAIR) from error
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise DataFileError.of("MedMATDataModule", path, "must be a list of records, not empty", REPAIR)
    return rows


def given_options(question: str, answer: str) -> tuple[int, int]:
    """Return the number of options of a question and the place of the right one.

    Raises:
        ValueError: If the question has no options, or the answer is none of them.
    """
    letters = [letter.upper() for letter in _OPTION.findall(question)]
    expected = list(LETTERS[: len(letters)])
    letter = answer.strip()[:1].upper()
    if len(letters) < 2 or letters != expected or letter not in expected:
        raise ValueError(
            "'Question-choice' must have lines of two to four options from A on, and 'Answer-choice' the letter of "
            f"one, got the letters {letters} and {answer!r}"
        )
    return len(letters), letters.index(letter)


class Locator:
    """Finds files below a folder whatever the case of their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listings: dict[Path, dict[str, str]] = {}

    def __call__(self, relative: str) -> Path:
        """Return the path of a file, which need not be there."""
        parts = Path(relative.replace("\\", "/")).parts
        if not parts or ".." in parts or Path(relative).is_absolute():
            raise ValueError(f"'image' must be a path below the root, got {relative!r}")
        path = self.root
        for place, part in enumerate(parts):
            if path not in self._listings:
                entries = os.listdir(path) if path.is_dir() else []
                self._listings[path] = {entry.casefold(): entry for entry in entries}
            names = self._listings[path]
            if part.casefold() not in names:
                return path.joinpath(*parts[place:])
            path = path / part if (path / part).exists() else path / names[part.casefold()]
        return path


def check_images(root: Path, images: Iterable[Path]) -> None:
    """Check that all images are there.

    Raises:
        DatasetNotFoundError: If not; it counts them and names the first five.
    """
    wanted = list(dict.fromkeys(images))
    missing = [path.relative_to(root) for path in wanted if not path.is_file()]
    if missing:
        raise DatasetNotFoundError.of(
            "MedMATDataModule", root, missing, f"{len(missing)} of {len(wanted)} images are not there. {REMEDY}"
        )


def duplicates(train: Sequence[MedMATRecord], held_out: Sequence[MedMATRecord]) -> list[MedMATRecord]:
    """Return the training records whose image file is byte for byte one that is held out."""
    sizes: dict[int, set[Path]] = {}
    for record in held_out:
        sizes.setdefault(record.image.stat().st_size, set()).add(record.image)
    hashes = {size: {_digest(path) for path in paths} for size, paths in _needed(sizes, train).items()}
    found = []
    for record in train:
        size = record.image.stat().st_size
        if size in hashes and _digest(record.image) in hashes[size]:
            found.append(record)
    return found


def _needed(sizes: Mapping[int, set[Path]], train: Sequence[MedMATRecord]) -> dict[int, set[Path]]:
    """Return the held-out files that have the size of a training file: only these can be equal."""
    present = {record.image.stat().st_size for record in train}
    return {size: paths for size, paths in sizes.items() if size in present}


def _digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()
