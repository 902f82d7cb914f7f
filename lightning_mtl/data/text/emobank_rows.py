"""The files of EmoBank: sentences, single ratings, their means, and genres."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.text.files import Row, read_table

PERSPECTIVES = ("reader", "writer")
DIMENSIONS = {"valence": "V", "arousal": "A", "dominance": "D"}
"""Name of a dimension -> its column."""

GENRES = ("SemEval", "blog", "essays", "fiction", "letters", "newspaper", "travel-guides")
"""Categories of ``meta.tsv``; the position is the class id."""

LEVELS = 5
"""Ratings are 1 to 5."""

_AGAIN = "copy the file from the authors' repository again"


@dataclass(frozen=True)
class Sentence:
    """A line of ``emobank.csv``.

    Attributes:
        id: Its name in all files.
        line: Line in the file, counted from 1.
        split: ``train``, ``dev`` or ``test``.
        text: The sentence.
        means: Column -> mean of the two perspectives.
    """

    id: str
    line: int
    split: str
    text: str
    means: Mapping[str, float]


@dataclass(frozen=True)
class Rating:
    """What one person gave a sentence: column -> 1 to 5, and the line of the file that says so."""

    line: int
    scores: Mapping[str, int]

    @property
    def all_ones(self) -> bool:
        """Whether all dimensions got the lowest score, which the authors leave out as not meant."""
        return all(score == 1 for score in self.scores.values())


def read_rows(owner: str, path: Path, needed: Sequence[str]) -> list[Row]:
    """Return the rows of a file, commas or tabs between its values.

    Args:
        owner: Name of the data module, for errors.
        path: The file.
        needed: Columns that must be there.

    Raises:
        DataFileError: If a column is absent, or a row has another number of columns than the header.
    """
    table = read_table(owner, path)
    if absent := [name for name in needed if name not in table.columns]:
        problem = (
            f"must have the columns {', '.join(needed)}, got {', '.join(table.columns)} without {', '.join(absent)}"
        )
        raise DataFileError.of(owner, f"{path}:1", problem, _AGAIN)
    return [Row(line, row) for line, row in zip(table.lines, table.rows, strict=True)]


def sentences(owner: str, path: Path) -> list[Sentence]:
    """Return the sentences of ``emobank.csv``.

    Raises:
        DataFileError: If it is not as it should be; names file and line.
    """
    found = []
    for row in read_rows(owner, path, ("id", "split", "V", "A", "D", "text")):
        if row.fields["split"] not in ("train", "dev", "test"):
            problem = f"split must be train, dev or test, got {row.fields['split']!r}"
            raise DataFileError.of(owner, f"{path}:{row.line}", problem, _AGAIN)
        means = {name: number(owner, path, row, name, 1, LEVELS) for name in DIMENSIONS.values()}
        found.append(Sentence(row.fields["id"], row.line, row.fields["split"], row.fields["text"], means))
    return found


def ratings(owner: str, path: Path) -> dict[str, list[Rating]]:
    """Return id -> single ratings, of ``individual_reader_ratings.csv`` or that of the writers.

    Raises:
        DataFileError: If it is not as it should be; names file and line.
    """
    found: dict[str, list[Rating]] = {}
    for row in read_rows(owner, path, ("id", "V", "A", "D")):
        scores = {name: number(owner, path, row, name, 1, LEVELS) for name in DIMENSIONS.values()}
        for name, score in scores.items():
            if score != int(score):
                problem = f"{name} must be a whole number, got {row.fields[name]!r}"
                raise DataFileError.of(owner, f"{path}:{row.line}", problem, _AGAIN)
        found.setdefault(row.fields["id"], []).append(
            Rating(row.line, {name: int(score) for name, score in scores.items()})
        )
    return found


def means(owner: str, path: Path) -> dict[str, dict[str, float]]:
    """Return id -> column -> mean, of ``reader.csv`` or ``writer.csv``.

    Raises:
        DataFileError: If it is not as it should be; names file and line.
    """
    return {
        row.fields["id"]: {name: number(owner, path, row, name, 1, LEVELS) for name in DIMENSIONS.values()}
        for row in read_rows(owner, path, ("id", "V", "A", "D"))
    }


def genres(owner: str, path: Path) -> dict[str, str]:
    """Return id -> category, of ``meta.tsv``.

    Raises:
        DataFileError: If it is not as it should be; names file and line.
    """
    found = {}
    for row in read_rows(owner, path, ("id", "category")):
        if row.fields["category"] not in GENRES:
            problem = f"category must be one of {', '.join(GENRES)}, got {row.fields['category']!r}"
            raise DataFileError.of(owner, f"{path}:{row.line}", problem, _AGAIN)
        found[row.fields["id"]] = row.fields["category"]
    return found


def number(owner: str, path: Path, row: Row, name: str, low: float, high: float) -> float:
    """Return a value of a row as a number in a range.

    Raises:
        DataFileError: If it is none.
    """
    try:
        value = float(row.fields[name])
    except ValueError:
        value = math.nan
    if not low <= value <= high:
        problem = f"{name} must be a number in [{low:g}, {high:g}], got {row.fields[name]!r}"
        raise DataFileError.of(owner, f"{path}:{row.line}", problem, _AGAIN)
    return value
