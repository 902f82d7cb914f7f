"""Rows of text files before tokenization, and the forms that their targets have."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

IGNORE = -100
"""Label of what is not labelled."""

Inputs = Literal["texts", "words", "question", "choices", "pair", "source"]


@dataclass(frozen=True)
class Classes:
    """One of several classes a row; the raw target is the name of the class.

    Attributes:
        labels: Names of the classes; the position is the class id.

    Example:
        >>> Classes(("not_entailment", "entailment")).encode("entailment")
        1
    """

    labels: Sequence[str]
    inputs: Inputs = dataclasses.field(default="texts", init=False)
    ignore: float = dataclasses.field(default=IGNORE, init=False)

    def encode(self, raw: Any) -> int:
        """Return the class id of a label, -100 for None.

        Raises:
            ValueError: If there is no such class.
        """
        return IGNORE if raw is None else _position(self.labels, raw)


@dataclass(frozen=True)
class Score:
    """A real number a row; the raw target is a number or its text.

    Attributes:
        low: Lowest value that is possible, None where there is none.
        high: Highest value that is possible, None where there is none.

    Example:
        >>> Score(0, 5).encode("3.800")
        3.8
    """

    low: float | None = None
    high: float | None = None
    inputs: Inputs = dataclasses.field(default="texts", init=False)
    ignore: float = dataclasses.field(default=math.nan, init=False)

    def encode(self, raw: Any) -> float:
        """Return the number, NaN for None.

        Raises:
            ValueError: If it is no number in the range.
        """
        if raw is None:
            return math.nan
        try:
            value = float(raw)
        except (TypeError, ValueError):
            value = math.nan
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        if not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"score must be a number in [{low:g}, {high:g}], got {raw!r}")
        return value


@dataclass(frozen=True)
class Numbers:
    """Several real numbers a row, such as a mean and a deviation; the raw target is a list of them.

    Attributes:
        num: How many.
        low: Lowest value that is possible, None where there is none.
        high: Highest value that is possible, None where there is none.

    Example:
        >>> Numbers(2, 0, 5).encode([3, "0.5"])
        [3.0, 0.5]
    """

    num: int
    low: float | None = None
    high: float | None = None
    inputs: Inputs = dataclasses.field(default="texts", init=False)
    ignore: float = dataclasses.field(default=math.nan, init=False)

    def encode(self, raw: Any) -> list[float]:
        """Return the numbers, NaN for None.

        Raises:
            ValueError: If they are not as many, or one is no number in the range.
        """
        if raw is None:
            return [math.nan] * self.num
        if isinstance(raw, str) or len(raw) != self.num:
            raise ValueError(f"target must be {self.num} numbers, got {raw!r}")
        return [Score(self.low, self.high).encode(value) for value in raw]


@dataclass(frozen=True)
class Tags:
    """A label for every word; ``texts`` of the records hold the words of a row, the raw target their labels.

    Attributes:
        labels: Names of the labels; the position is the label id.
    """

    labels: Sequence[str]
    inputs: Inputs = dataclasses.field(default="words", init=False)
    ignore: float = dataclasses.field(default=IGNORE, init=False)

    def encode(self, raw: Any) -> list[int] | None:
        """Return the ids of a row's labels, None for None; a label of None is -100.

        Raises:
            ValueError: If there is no such label.
        """
        return None if raw is None else [IGNORE if label is None else _position(self.labels, label) for label in raw]


@dataclass(frozen=True)
class Span:
    """A passage of the last segment, the answer of extractive question answering.

    The raw target is ``(start, end)`` in characters of that segment, the end not included; None is no answer.
    """

    inputs: Inputs = dataclasses.field(default="question", init=False)
    ignore: float = dataclasses.field(default=IGNORE, init=False)

    def encode(self, raw: Any) -> tuple[int, int] | None:
        """Return first and last-but-one character, None where there is no answer.

        Raises:
            ValueError: If it is no range of characters.
        """
        if raw is None:
            return None
        start, end = (int(value) for value in raw)
        if not 0 <= start < end:
            raise ValueError(f"span must be (start, end) with 0 <= start < end, got {raw!r}")
        return start, end


@dataclass(frozen=True)
class Choice:
    """Which of several alternatives is right; the raw target is its number, counted from 0.

    Attributes:
        num: Number of alternatives of a row.
    """

    num: int = 2
    inputs: Inputs = dataclasses.field(default="choices", init=False)
    ignore: float = dataclasses.field(default=IGNORE, init=False)

    def encode(self, raw: Any) -> int:
        """Return the number of the right alternative, -100 for None.

        Raises:
            ValueError: If there is no such alternative.
        """
        if raw is None:
            return IGNORE
        try:
            value = int(raw)
        except (TypeError, ValueError):
            value = -1
        if not 0 <= value < self.num:
            raise ValueError(f"choice must be a number in 0..{self.num - 1}, got {raw!r}")
        return value


@dataclass(frozen=True)
class Pair:
    """A query and the document that belongs to it, two alternatives of one segment each.

    The raw target is the number of the row's group: rows with equal numbers belong together. Without targets every row
    is a group of its own.
    """

    inputs: Inputs = dataclasses.field(default="pair", init=False)
    ignore: float = dataclasses.field(default=IGNORE, init=False)

    def encode(self, raw: Any) -> int:
        """Return the group, -100 for None.

        Raises:
            ValueError: If it is no number of at least 0.
        """
        if raw is None:
            return IGNORE
        try:
            value = int(raw)
        except (TypeError, ValueError):
            value = -1
        if value < 0:
            raise ValueError(f"group must be an integer of at least 0, got {raw!r}")
        return value


@dataclass(frozen=True)
class Answers:
    """Whether an answer is right, of several to the same question; the raw target is ``(right, question)``.

    ``right`` is 0 or 1, ``question`` a number that all answers to a question have in common.
    """

    inputs: Inputs = dataclasses.field(default="texts", init=False)
    ignore: float = dataclasses.field(default=IGNORE, init=False)

    def encode(self, raw: Any) -> tuple[int, int]:
        """Return the pair of numbers, -100 twice for None.

        Raises:
            ValueError: If it is no such pair.
        """
        if raw is None:
            return IGNORE, IGNORE
        right, question = (int(value) for value in raw)
        if right not in (0, 1) or question < 0:
            raise ValueError(f"answer must be (0 or 1, number of the question), got {raw!r}")
        return right, question


@dataclass(frozen=True)
class Generation:
    """A text that is written in answer to a text, by an encoder-decoder; the raw target is that text.

    Attributes:
        max_length: Most tokens of an answer, its end included.
        start: The special token that the decoder begins with: T5 begins with padding, BART with the end.
    """

    max_length: int = 64
    start: Literal["pad", "bos", "eos", "cls"] = "pad"
    inputs: Inputs = dataclasses.field(default="source", init=False)
    ignore: float = dataclasses.field(default=IGNORE, init=False)

    def encode(self, raw: Any) -> str | None:
        """Return the text.

        Raises:
            ValueError: If it is no text.
        """
        if raw is not None and not isinstance(raw, str):
            raise ValueError(f"text to write must be a string, got {raw!r}")
        return raw


Form = Classes | Score | Numbers | Tags | Span | Choice | Pair | Answers | Generation
"""What a task's target is."""


def _position(labels: Sequence[str], raw: Any) -> int:
    try:
        return list(labels).index(str(raw))
    except ValueError:
        shown = ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
        raise ValueError(f"label must be one of {shown}, got {str(raw)!r}") from None


@dataclass(frozen=True)
class TextRecords:
    """The rows of one file, before tokenization.

    Attributes:
        path: The file, for messages.
        lines: Line of every row in that file, counted from 1.
        texts: One or two segments a row (the words of a row where the target is :class:`Tags`); empty tuples where
            ``choices`` are given.
        choices: Alternatives of every row, each of one or two segments, for :class:`Choice` and :class:`Pair`.
        targets: Raw target of every row, None for one without label; or task -> such a list, where several tasks are
            asked about the same text. None: the file carries no labels.
        ids: What the benchmark calls the row; the position where None.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> from pathlib import Path
        >>> records = TextRecords(Path("a.tsv"), lines=[2, 3], texts=[("a dog",), ("a cat",)], targets=["0", "1"])
        >>> len(records), records.take([1]).texts
        (2, [('a cat',)])
    """

    path: Path
    lines: Sequence[int]
    texts: Sequence[tuple[str, ...]]
    choices: Sequence[tuple[tuple[str, ...], ...]] | None = None
    targets: Any = None
    ids: Sequence[Any] | None = None

    def __post_init__(self) -> None:
        lists = {"texts": self.texts, "choices": self.choices, "ids": self.ids}
        if isinstance(self.targets, dict):
            lists |= {f"targets[{task!r}]": values for task, values in self.targets.items()}
        else:
            lists["targets"] = self.targets
        wrong = {name: len(rows) for name, rows in lists.items() if rows is not None and len(rows) != len(self.lines)}
        if wrong:
            raise ValueError(f"TextRecords: everything must have the length of lines, {len(self.lines)}, got {wrong}.")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.lines)

    def targets_of(self, task: str) -> Sequence[Any] | None:
        """Return the raw targets of a task, None where the file has none."""
        found = self.targets.get(task) if isinstance(self.targets, dict) else self.targets
        return None if found is None else list(found)

    def take(self, rows: Sequence[int]) -> TextRecords:
        """Return some of the rows."""

        def chosen(values: Sequence[Any] | None) -> list[Any] | None:
            return None if values is None else [values[row] for row in rows]

        targets = self.targets
        return TextRecords(
            path=self.path,
            lines=[self.lines[row] for row in rows],
            texts=[self.texts[row] for row in rows],
            choices=chosen(self.choices),
            targets={k: chosen(v) for k, v in targets.items()} if isinstance(targets, dict) else chosen(targets),
            ids=chosen(self.ids),
        )
