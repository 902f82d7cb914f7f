"""Means over a run of what was measured between pairs of tasks, and the file that holds them."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

Measure = Literal["cosine", "lookahead", "mean_cosine"]
MEASURES: tuple[Measure, ...] = ("cosine", "lookahead", "mean_cosine")
COLUMNS = ("measure", "layer", "source", "target", "affinity", "looks")
FILE_NAME = "affinity.csv"


class PairMeans:
    """Mean of a number for every ordered pair of tasks, over the looks in which both took part."""

    def __init__(self) -> None:
        self._totals: dict[tuple[str, str], tuple[float, int]] = {}

    def add(self, tasks: Sequence[str], matrix: Tensor) -> None:
        """Add what one look measured; entries that are not finite are left out.

        Args:
            tasks: The tasks that took part.
            matrix: Entry (i, j) belongs to the pair from task i to task j.
        """
        for source, row in zip(tasks, matrix.tolist(), strict=True):
            for target, value in zip(tasks, row, strict=True):
                if math.isfinite(value):
                    total, count = self._totals.get((source, target), (0.0, 0))
                    self._totals[source, target] = (total + value, count + 1)

    def mean(self, source: str, target: str) -> tuple[float, int]:
        """Return the mean of a pair and the number of looks behind it; NaN and 0 where there was none."""
        total, count = self._totals.get((source, target), (0.0, 0))
        return (total / count if count else math.nan), count

    def matrix(self, tasks: Sequence[str]) -> Tensor:
        """Return the means, ``(K, K)`` in float64; rows are sources."""
        return torch.tensor(
            [[self.mean(source, target)[0] for target in tasks] for source in tasks], dtype=torch.float64
        )

    def state_dict(self) -> list[list[Any]]:
        """Return plain data."""
        return [[source, target, total, count] for (source, target), (total, count) in self._totals.items()]

    def load_state_dict(self, state: Iterable[Sequence[Any]]) -> None:
        """Continue from a state."""
        self._totals = {(source, target): (total, count) for source, target, total, count in state}


@dataclass(frozen=True)
class AffinityTable:
    """The content of an ``affinity.csv``.

    Args:
        tasks: Names of the tasks, in the order of the run.
        values: (measure, layer) -> ``(K, K)``, rows are sources; the layer is empty for all shared parameters together,
            and a pair that was never measured is NaN.
    """

    tasks: tuple[str, ...]
    values: Mapping[tuple[str, str], Tensor]


def write_affinity(file: Path, tasks: Sequence[str], means: Mapping[tuple[str, str], PairMeans]) -> None:
    """Write the means as lines of source and target.

    Args:
        file: Where to.
        tasks: Names of the tasks, in order.
        means: (measure, layer) -> means.
    """
    with file.open("w", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (measure, layer), pairs in means.items():
            for source in tasks:
                for target in tasks:
                    mean, count = pairs.mean(source, target)
                    writer.writerow([measure, layer, source, target, repr(mean), count])


def read_affinity(file: Path) -> AffinityTable:
    """Read what :class:`~lightning_mtl.callbacks.TaskAffinity` wrote.

    Args:
        file: An ``affinity.csv``.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has other columns, a line that cannot be read, or no line.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: there is no such file; train with the callback lightning_mtl.callbacks.TaskAffinity, which "
            "writes it to the log folder of the run."
        )
    tasks: dict[str, None] = {}
    found: dict[tuple[str, str], dict[tuple[str, str], float]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        reader = csv.DictReader(lines)
        if not set(COLUMNS) - {"looks"} <= set(reader.fieldnames or ()):
            raise ValueError(f"{file}: must have the columns {', '.join(COLUMNS)}, got {reader.fieldnames}.")
        for number, line in enumerate(reader, 2):
            try:
                value = float(line["affinity"])
            except (TypeError, ValueError):
                raise ValueError(
                    f"{file}, line {number}: affinity must be a number, got {line['affinity']!r}."
                ) from None
            tasks |= {line["source"]: None, line["target"]: None}
            found.setdefault((line["measure"], line["layer"]), {})[line["source"], line["target"]] = value
    if not found:
        raise ValueError(f"{file}: holds no affinity; the run made no look: lower every_n_steps or train longer.")
    names = tuple(tasks)
    values = {
        key: torch.tensor([[pairs.get((i, j), math.nan) for j in names] for i in names], dtype=torch.float64)
        for key, pairs in found.items()
    }
    return AffinityTable(names, values)
