"""The rows of several tasks' files as samples."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from lightning_mtl.data.base import Sample
from lightning_mtl.data.text.cache import Column, Ragged, Tokens
from lightning_mtl.data.text.records import Form


@dataclass(frozen=True)
class TextSource:
    """The tokenized rows of one or more files.

    Attributes:
        tokens: Their columns.
        forms: Task -> form of its target; more than one where several tasks are asked about the same text.
        ids: What the benchmark calls the rows.
        paths: File of every row.
        lines: Line of every row in it.
    """

    tokens: Tokens
    forms: Mapping[str, Form]
    ids: Sequence[Any]
    paths: Sequence[Path]
    lines: Sequence[int]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Number of tokens of every row, of its longest alternative where it has several."""
        columns = [
            column.lengths
            for name, column in self.tokens.columns.items()
            if name.endswith("input_ids") and isinstance(column, Ragged)
        ]
        return np.asarray(np.maximum.reduce(columns), dtype=np.int64)


class TextDataset(Dataset[Sample]):
    """Rows of several sources one after the other, each with the targets of its own tasks.

    A sample is ``(inputs, targets)`` with NumPy arrays that are not padded; it answers to a list of positions with a
    list of samples.

    Args:
        sources: Name -> rows; a source has the name of its task where it has one.
        kept: Task -> for every row of its source whether it keeps its label; tasks not named keep all.
    """

    def __init__(self, sources: Mapping[str, TextSource], kept: Mapping[str, Tensor] | None = None) -> None:
        self.sources = dict(sources)
        self.kept = {task: rows.numpy() for task, rows in (kept or {}).items()}
        self.lengths = {name: len(source.tokens) for name, source in self.sources.items()}
        self._names = list(self.sources)
        self._starts = [0, *np.cumsum(list(self.lengths.values())).tolist()]
        self._readers = [_Reader(source) for source in self.sources.values()]

    @property
    def ids(self) -> dict[str, Sequence[Any]]:
        """Source -> what the benchmark calls its rows."""
        return {name: source.ids for name, source in self.sources.items()}

    @property
    def sizes(self) -> dict[str, NDArray[np.int64]]:
        """Source -> number of tokens of every row."""
        return {name: source.sizes for name, source in self.sources.items()}

    def with_kept(self, kept: Mapping[str, Tensor]) -> TextDataset:
        """Return the same rows, of which only some keep their label."""
        return TextDataset(self.sources, kept)

    def place(self, index: int) -> tuple[str, int]:
        """Return the source of a position, and the row in it."""
        number = bisect.bisect_right(self._starts, index) - 1
        return self._names[number], index - self._starts[number]

    def in_file_order(
        self, owner: str, batches: Sequence[Sequence[int]], predictions: Sequence[Mapping[str, Any]]
    ) -> dict[str, list[Any]]:
        """Return task -> prediction of every row, in the order of the files.

        Args:
            owner: Name of the class that asks, for errors.
            batches: Positions of the rows of every batch that was predicted.
            predictions: What was predicted for every batch, by task.

        Raises:
            ValueError: If there are not as many batches of predictions, or as many rows in one.
        """
        if len(batches) != len(predictions):
            raise ValueError(
                f"{owner}: predictions must be those of all {len(batches)} batches on one process, got "
                f"{len(predictions)}; call trainer.predict(module, datamodule=data) with this data module."
            )
        found: dict[str, dict[int, Any]] = {}
        for positions, outputs in zip(batches, predictions, strict=True):
            for task in self.sources[self.place(positions[0])[0]].forms:
                if task not in outputs or len(outputs[task]) != len(positions):
                    raise ValueError(
                        f"{owner}: predictions of a batch must hold {len(positions)} rows of the task '{task}', got "
                        f"{ {other: len(value) for other, value in outputs.items()} }."
                    )
                for position, value in zip(positions, outputs[task], strict=True):
                    found.setdefault(task, {})[self.place(position)[1]] = value
        return {task: [values[row] for row in sorted(values)] for task, values in found.items()}

    def __len__(self) -> int:
        """Return the number of rows of all sources."""
        return int(self._starts[-1])

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: list[int]) -> list[Sample]: ...

    def __getitem__(self, index: int | list[int]) -> Sample | list[Sample]:
        """Return a sample, or a list of samples."""
        if isinstance(index, list):
            return [self._sample(int(position)) for position in index]
        if not -len(self) <= index < len(self):
            raise IndexError(f"TextDataset: index must be in 0..{len(self) - 1}, got {index}.")
        return self._sample(int(index) % len(self))

    def __getitems__(self, indices: list[int]) -> list[Sample]:
        """Return a list of samples."""
        return self[indices]

    def _sample(self, index: int) -> Sample:
        number = bisect.bisect_right(self._starts, index) - 1
        row = index - self._starts[number]
        inputs, targets = self._readers[number].read(row)
        if self.kept:
            source = self.sources[self._names[number]]
            for task, rows in self.kept.items():
                if task in targets and not rows[row]:
                    targets[task] = np.full_like(targets[task], source.forms[task].ignore)
        return inputs, targets


class _Reader:
    """Takes a row out of a source's columns; looks nothing up twice."""

    def __init__(self, source: TextSource) -> None:
        columns = source.tokens.columns
        self.targets: list[tuple[str, Column]] = [(task, columns[f"target.{task}"]) for task in source.forms]
        names = [name for name in columns if not name.startswith("target.")]
        self.folds = sorted({int(name.split(".")[0]) for name in names if name[0].isdigit()})
        self.inputs: list[tuple[str, Column]] = [(name, columns[name]) for name in names if not name[0].isdigit()]
        self.choices = [
            [(name.split(".")[1], columns[name]) for name in names if name.startswith(f"{fold}.")]
            for fold in self.folds
        ]

    def read(self, row: int) -> tuple[Any, dict[str, Any]]:
        targets = {task: column[row] for task, column in self.targets}
        if self.choices:
            return [{name: column[row] for name, column in choice} for choice in self.choices], targets
        return {name: column[row] for name, column in self.inputs}, targets
