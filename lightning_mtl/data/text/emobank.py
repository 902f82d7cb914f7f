"""EmoBank: valence, arousal and dominance of sentences, rated by several people from two perspectives."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from lightning.pytorch.utilities import rank_zero_info
from typing_extensions import Unpack

from lightning_mtl.data.base import Split, resolve_root
from lightning_mtl.data.errors import DatasetNotFoundError
from lightning_mtl.data.text import emobank_rows
from lightning_mtl.data.text.base import TextDataModule, TextOptions
from lightning_mtl.data.text.emobank_rows import DIMENSIONS, GENRES, LEVELS, PERSPECTIVES, Rating, Sentence
from lightning_mtl.data.text.records import Classes, Form, Numbers, Score, TextRecords

Ratings = Literal["mean", "moments", "distribution", "single"]

TASKS = (
    *DIMENSIONS,
    *(f"{perspective}_{dimension}" for perspective in PERSPECTIVES for dimension in DIMENSIONS),
    "genre",
)
_SPLITS: dict[Split, str] = {"train": "train", "val": "dev", "test": "test", "predict": "test"}
_REMEDY = (
    "Copy the folder 'corpus' of https://github.com/JULIELab/EmoBank, and pass it or the folder above it; see "
    "docs/data/emobank.md."
)
_Table = TypeVar("_Table")


class EmoBankDataModule(TextDataModule):
    """Sentences of seven genres, each rated by about five readers and five as if by its writer.

    Ten thousand English sentences in the split of the authors: 8062 to train, 1000 to validate (called dev), 1000 to
    test. Every person gave valence, arousal and dominance a whole number from 1 to 5.

    Args:
        root: Folder ``corpus`` of the authors' repository, or the folder above; None takes ``emobank`` in the
            environment variable LIGHTNING_MTL_DATA.
        tasks: Which of ``valence``, ``arousal``, ``dominance``, over both perspectives; the same with ``reader_`` or
            ``writer_`` before it, for one perspective; and ``genre``.
        ratings: What becomes of the ratings of a sentence: ``mean``; ``moments``, mean and standard deviation;
            ``distribution``, the share of every score; ``single``, one sample a rating.
        drop_all_ones: Whether ratings of 1 in all three dimensions are left out, as the authors do: 9 % of the ratings,
            which they take as not meant. Their means, ``ratings="mean"``, are always without them.
        options: See :class:`~lightning_mtl.data.text.TextOptions`.

    Shape:
        - inputs: the sentence, see :class:`~lightning_mtl.data.text.TextDataModule`
        - target of a dimension: ``mean``: ``(B,)`` float32 in 1..5; ``moments``: ``(B, 2)``; ``distribution``:
          ``(B, 5)`` shares of the scores 1..5; ``single``: ``(B,)`` int64, 0 for a rating of 1 to 4 for one of 5, and
          -100 for a task of the other perspective
        - target of genre: ``(B,)`` int64, the position in ``class_names["genre"]``

    Raises:
        ValueError: If an argument is out of range.

    Note:
        Over both perspectives all ratings of a sentence count alike, in every form; the means are those of
        ``emobank.csv``. The standard deviation is that of the ratings at hand (divided by N), as in the authors' files.

        486 of the sentences that were rated are not in ``emobank.csv``, which holds the text; they are left out, and
        :attr:`without_text` counts their ratings. 34 short texts stand in more than one split.

    References:
        Sven Buechel, Udo Hahn. *EmoBank: Studying the Impact of Annotation Perspective and Representation Format on
        Dimensional Emotion Analysis*. EACL, 2017. https://aclanthology.org/E17-2092
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[str] = ("valence", "arousal", "dominance"),
        ratings: Ratings = "mean",
        drop_all_ones: bool = True,
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(**options)
        name, kinds = type(self).__name__, ("mean", "moments", "distribution", "single")
        if not tasks or set(tasks) - set(TASKS):
            raise ValueError(f"{name}: tasks must be some of {list(TASKS)}, got {list(tasks)}.")
        if ratings not in kinds:
            raise ValueError(f"{name}: ratings must be one of {kinds}, got {ratings!r}.")
        self.root = root
        self.tasks = tuple(tasks)
        self.ratings: Ratings = ratings
        self.drop_all_ones = drop_all_ones
        self.without_text: dict[str, int] = {}
        """Perspective -> number of ratings of sentences whose text is not there; known when they have been read."""
        self._tables: dict[str, Any] = {}

    def forms(self) -> Mapping[str, Form]:
        """Return the form that the ratings take, and the genres."""
        known: dict[Ratings, Form] = {
            "mean": Score(1, LEVELS),
            "moments": Numbers(2, 0, LEVELS),
            "distribution": Numbers(LEVELS, 0, 1),
            "single": Classes(tuple(str(score) for score in range(1, LEVELS + 1))),
        }
        return {task: Classes(GENRES) if task == "genre" else known[self.ratings] for task in self.tasks}

    def sources(self) -> Mapping[str, Sequence[str]]:
        """Return that all tasks are asked about the same sentences."""
        return {"emobank": self.tasks}

    def read(self, task: str, split: Split) -> TextRecords:
        """Return the sentences of a split, or its ratings.

        Raises:
            DatasetNotFoundError: If a file is not there.
            DataFileError: If one is not as it should be; names file and line.
        """
        path = self._path("emobank.csv")
        everything = self._table("emobank.csv", emobank_rows.sentences)
        chosen = [sentence for sentence in everything if sentence.split == _SPLITS[split]]
        genres = self._table("meta.tsv", emobank_rows.genres) if "genre" in self.tasks else {}
        given = self._given({sentence.id for sentence in everything})
        if self.ratings == "mean":
            rows = [(sentence, self._means(sentence, given)) for sentence in chosen]
        elif self.ratings == "single":
            rows = [(sentence, values) for sentence in chosen for values in self._one_by_one(given, sentence.id)]
        else:
            rows = [(sentence, self._summary(given, sentence.id)) for sentence in chosen]
        for sentence, values in rows:
            values["genre"] = genres.get(sentence.id)
        return TextRecords(
            path=path,
            lines=[sentence.line for sentence, _ in rows],
            texts=[(sentence.text,) for sentence, _ in rows],
            targets={name: [values.get(name) for _, values in rows] for name in self.tasks},
            ids=[sentence.id for sentence, _ in rows],
        )

    def setup(self, stage: str | None = None) -> None:
        """Build the data sets that ``stage`` needs and that are not there yet."""
        super().setup(stage)
        self._tables.clear()

    # ------------------------------------------------------------------ files
    def _path(self, file: str) -> Path:
        name = type(self).__name__
        root = resolve_root(name, self.root, "emobank", _REMEDY)
        folder = root / "corpus" if (root / "corpus").is_dir() else root
        if not (folder / file).is_file():
            raise DatasetNotFoundError.of(name, folder, [file], _REMEDY)
        return folder / file

    def _table(self, file: str, parse: Callable[[str, Path], _Table]) -> _Table:
        if file not in self._tables:  # splits share the files
            self._tables[file] = parse(type(self).__name__, self._path(file))
        return cast(_Table, self._tables[file])

    def _given(self, known: set[str]) -> dict[str, dict[str, Any]]:
        """Return perspective -> id -> what its file says, for the perspectives that are needed."""
        asked = [task.split("_")[0] for task in self.tasks if "_" in task]
        if self.ratings == "mean":
            return {side: self._table(f"{side}.csv", emobank_rows.means) for side in PERSPECTIVES if side in asked}
        both = any(task in DIMENSIONS for task in self.tasks)
        needed = [side for side in PERSPECTIVES if both or side in asked] or list(PERSPECTIVES)
        given: dict[str, dict[str, Any]] = {}
        for side in needed:
            found = self._table(f"individual_{side}_ratings.csv", emobank_rows.ratings)
            lost = {name: len(rows) for name, rows in found.items() if name not in known}
            if lost and side not in self.without_text:
                rank_zero_info(
                    f"{type(self).__name__}: {sum(lost.values())} {side} ratings of {len(lost)} sentences are left "
                    "out, emobank.csv does not have their text."
                )
            self.without_text[side] = sum(lost.values())
            given[side] = {name: self._kept(rows) for name, rows in found.items() if name in known}
        return given

    def _kept(self, rows: list[Rating]) -> list[Rating]:
        return [row for row in rows if not (self.drop_all_ones and row.all_ones)]

    # ------------------------------------------------------------------ targets
    def _dimensions(self) -> Iterator[tuple[str, Sequence[str], str]]:
        """Yield task, perspectives and column of the tasks that are dimensions."""
        for task in self.tasks:
            side, _, dimension = task.rpartition("_")
            if dimension in DIMENSIONS:
                yield task, (side,) if side else PERSPECTIVES, DIMENSIONS[dimension]

    def _means(self, sentence: Sentence, given: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for task, sides, column in self._dimensions():
            means = sentence.means if len(sides) == 2 else given[sides[0]].get(sentence.id, {})
            values[task] = means.get(column)
        return values

    def _summary(self, given: Mapping[str, Mapping[str, list[Rating]]], name: str) -> dict[str, Any]:
        """Return task -> mean and standard deviation, or the share of every score; nothing without ratings."""
        values: dict[str, Any] = {}
        for task, sides, column in self._dimensions():
            scores = [row.scores[column] for side in sides for row in given[side].get(name, [])]
            if scores and self.ratings == "distribution":
                values[task] = [scores.count(score) / len(scores) for score in range(1, LEVELS + 1)]
            elif scores:
                mean = sum(scores) / len(scores)
                values[task] = [mean, (sum((score - mean) ** 2 for score in scores) / len(scores)) ** 0.5]
        return values

    def _one_by_one(self, given: Mapping[str, Mapping[str, list[Rating]]], name: str) -> Iterator[dict[str, Any]]:
        """Yield task -> score for every rating of a sentence; tasks of the other perspective have none."""
        for side, found in given.items():
            for rating in found.get(name, []):
                yield {task: rating.scores[column] for task, sides, column in self._dimensions() if side in sides}
