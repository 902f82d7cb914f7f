"""Tables of a user's own: jsonl, csv, tsv and parquet files, with the columns named in the recipe."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from typing_extensions import Unpack

from lightning_mtl.data.base import Split, resolve_root
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError
from lightning_mtl.data.text.base import TextDataModule, TextOptions
from lightning_mtl.data.text.files import SUFFIXES, read_table
from lightning_mtl.data.text.records import Choice, Classes, Form, Generation, Pair, Score, Span, Tags, TextRecords

TextKind = Literal["classification", "regression", "tagging", "span", "choice", "pair", "generation"]

_NAMES: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "dev", "validation"),
    "test": ("test",),
    "predict": ("predict", "test"),
}
_REMEDY = "See docs/data/text_folder.md for the layouts."
_NO_LABELS = ("classification", "tagging")


@dataclass(frozen=True)
class TextFolderTask:
    """Which columns of which files a task reads.

    Attributes:
        kind: ``classification``, ``regression``, ``tagging``, ``span``, ``choice``, ``pair`` or ``generation``.
        texts: Columns of the text: one or two for ``classification`` and ``regression``; the words for ``tagging`` (a
            list, or text with spaces); question and passage for ``span``; what all alternatives begin with, or none,
            for ``choice``; query and document for ``pair``; the source for ``generation``.
        target: Column of the label. ``span`` has two: first character, and end (not included) or the answer itself.
            ``pair`` needs none: each row is a group of its own. Empty fields are unlabelled rows.
        labels: Names of the classes or tags in the order of their ids; for ``choice`` the names of the alternatives,
            where they are not counted from 0.
        choices: Columns of the alternatives, or one column that holds a list of them.
        num_choices: How many alternatives that list holds.
        low: Lowest value of ``regression``.
        high: Highest value of ``regression``.
        max_length: Most tokens of a text that is written.
        start: Special token that the decoder begins with.
        folder: Folder of the files below the root; None takes the task's name, or the root itself where there is no
            such folder.
        files: Split (``train``, ``val``, ``test``, ``predict``) -> file below the root, in place of the names
            ``train``, ``val`` (``dev``, ``validation``) and ``test`` in the folder.
        id: Column with the id of a row.
        quoted: Whether quotation marks enclose fields; None: in csv they do, in tsv they do not.
    """

    kind: TextKind = "classification"
    texts: Sequence[str] = ("text",)
    target: str | Sequence[str] | None = "label"
    labels: Sequence[str] | None = None
    choices: Sequence[str] = ()
    num_choices: int | None = None
    low: float | None = None
    high: float | None = None
    max_length: int = 64
    start: Literal["pad", "bos", "eos", "cls"] = "pad"
    folder: str | None = None
    files: dict[str, str] | None = None
    id: str | None = None
    quoted: bool | None = None


class TextFolderDataModule(TextDataModule):
    """Tasks on tables of text that the recipe describes.

    A task's files are ``root/TASK/{train,val,test}.{jsonl,csv,tsv,parquet}``, or lie in ``root`` itself, or are named
    one by one. Without a file for validation, ``val_fraction`` of the training rows is set aside by the seed. Tasks
    that read the same text columns of the same files share their rows: a row carries the labels of all of them.

    Args:
        root: Folder of the data; None takes ``text_folder`` below the environment variable LIGHTNING_MTL_DATA.
        tasks: Task -> its files and columns.
        options: See :class:`~lightning_mtl.data.text.TextOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`.

    Raises:
        ValueError: If a task is described in part or twice over.
        DatasetNotFoundError: If a file is not there.
        DataFileError: If a file is damaged; names the line.

    Example:
        >>> task = TextFolderTask("classification", texts=["question"], labels=["no", "yes"])
        >>> data = TextFolderDataModule(root="mine", tasks={"answerable": task})
        >>> data.num_classes
        {'answerable': 2}
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: dict[str, TextFolderTask] | None = None,
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(**options)
        if not tasks:
            raise ValueError(f"TextFolderDataModule: tasks must describe at least one task, got {tasks!r}.")
        self.root = root
        self.tasks = dict(tasks)
        self._forms = {name: _form("TextFolderDataModule", name, task) for name, task in tasks.items()}
        groups: dict[tuple[Any, ...], list[str]] = {}
        for name, task in tasks.items():
            place = tuple(sorted(task.files.items())) if task.files else (task.folder or name)
            columns = tuple(task.texts), tuple(task.choices), task.id, task.quoted
            groups.setdefault((place, self._forms[name].inputs, *columns), []).append(name)
        self._sources = {"+".join(names): tuple(names) for names in groups.values()}

    def forms(self) -> Mapping[str, Form]:
        """Return task -> form of its target."""
        return self._forms

    def sources(self) -> Mapping[str, Sequence[str]]:
        """Return the tasks that share their rows; such a source is called by their names with ``+`` between."""
        return self._sources

    def read(self, task: str, split: Split) -> TextRecords | None:
        """Return the rows of a source in a split, None where there is no file for it.

        Raises:
            DatasetNotFoundError: If there is no training file, or one that is named is not there.
        """
        names = self._sources[task]
        path = self._file(names[0], split)
        if path is not None:
            found = self._rows(path, names, labelled=split in ("train", "val"))
            held_out = split == "train" and self._file(names[0], "val") is None
            return self.hold_out(found, split) if held_out else found
        if split != "val":
            return None
        train = self._file(names[0], "train")
        return None if train is None else self.hold_out(self._rows(train, names, labelled=True), split)

    # ------------------------------------------------------------------ files
    def _file(self, name: str, split: Split) -> Path | None:
        owner, task = type(self).__name__, self.tasks[name]
        root = resolve_root(owner, self.root, "text_folder", _REMEDY)
        wanted: list[Path]
        if task.files is not None:
            keys = [key for key in _NAMES[split] if key in task.files]
            wanted = [root / task.files[key] for key in keys[:1]]
        else:
            folder = root / (task.folder or name)
            if task.folder is None and not folder.is_dir():
                folder = root
            wanted = [folder / f"{key}{suffix}" for key in _NAMES[split] for suffix in SUFFIXES]
        found = [path for path in wanted if path.is_file()]
        missing = wanted if task.files is not None or split == "train" else []
        if not found and (missing or split == "train"):
            shown: list[Path | str] = [path.relative_to(root) for path in missing]
            shown = shown or [f"a file for 'train' of the task '{name}'"]
            raise DatasetNotFoundError.of(owner, root, shown, _REMEDY)
        return found[0] if found else None

    def _rows(self, path: Path, names: Sequence[str], labelled: bool) -> TextRecords:
        owner = type(self).__name__
        table = read_table(owner, path, self.tasks[names[0]].quoted)
        task = self.tasks[names[0]]
        needed = [*task.texts, *task.choices, *([task.id] if task.id else [])]
        needed += [column for name in names if labelled for column in _target_columns(self.tasks[name])]
        if absent := [column for column in needed if column not in table.columns]:
            raise DataFileError.of(
                owner,
                f"{path}:{table.lines[0] if path.suffix == '.jsonl' else 1}",
                f"must have the columns {', '.join(needed)}, got {', '.join(table.columns)} without "
                f"{', '.join(absent)}",
                "correct the file or the columns of the task",
            )
        texts: list[tuple[str, ...]] = []
        choices: list[tuple[tuple[str, ...], ...]] = []
        targets: dict[str, list[Any]] = {
            name: [] for name in names if all(c in table.columns for c in _target_columns(self.tasks[name]))
        }
        for line, row in zip(table.lines, table.rows, strict=True):
            try:
                texts.append(_words(row, task.texts[0]) if task.kind == "tagging" else _texts(row, task))
                if task.kind in ("choice", "pair"):
                    choices.append(_alternatives(row, task))
                for name, values in targets.items():
                    values.append(_target(row, self.tasks[name]))
            except ValueError as error:
                raise DataFileError.of(owner, f"{path}:{line}", str(error), "correct the file") from error
        if not _target_columns(task):
            targets = {}
        return TextRecords(
            path=path,
            lines=table.lines,
            texts=texts,
            choices=choices or None,
            targets=targets or None,
            ids=[row[task.id] for row in table.rows] if task.id else None,
        )


def _form(owner: str, name: str, task: TextFolderTask) -> Form:
    """Return the form of a task's target.

    Raises:
        ValueError: If the task is described in part.
    """

    def refuse(problem: str) -> ValueError:
        return ValueError(f"{owner}: tasks['{name}'] of kind {task.kind!r} {problem}.")

    if isinstance(task.texts, str) or isinstance(task.choices, str):
        raise refuse("must have lists of columns as texts and choices")
    numbers = {"tagging": (1,), "span": (2,), "pair": (2,), "generation": (1, 2), "choice": (0, 1)}
    if len(task.texts) not in numbers.get(task.kind, (1, 2)):
        raise refuse(f"must have {' or '.join(map(str, numbers.get(task.kind, (1, 2))))} texts, got {list(task.texts)}")
    if task.kind in _NO_LABELS and not task.labels:
        raise refuse("must have labels, the names of the classes in order")
    if (task.kind == "choice") != bool(task.choices):
        raise refuse("must name the columns of the alternatives, choices" if not task.choices else "has no choices")
    if task.target is None and task.kind != "pair":
        raise refuse("must have a target, the column of the label")
    if (task.kind == "span") != (len(_target_columns(task)) == 2):
        raise refuse(f"must have {'two columns' if task.kind == 'span' else 'one column'} as target")
    if task.kind == "choice":
        num = task.num_choices or (len(task.labels) if task.labels else 0) or len(task.choices)
        if len(task.choices) not in (1, num) or num < 2:
            raise refuse(f"must have num_choices as many as choices, got {num} and {list(task.choices)}")
        return Choice(num)
    if task.kind == "classification":
        return Classes(tuple(task.labels or ()))
    if task.kind == "tagging":
        return Tags(tuple(task.labels or ()))
    if task.kind == "regression":
        return Score(task.low, task.high)
    if task.kind == "generation":
        return Generation(task.max_length, task.start)
    forms: dict[str, Form] = {"span": Span(), "pair": Pair()}
    if task.kind not in forms:
        raise refuse("is unknown; it must be classification, regression, tagging, span, choice, pair or generation")
    return forms[task.kind]


def _target_columns(task: TextFolderTask) -> tuple[str, ...]:
    if task.target is None:
        return ()
    return (task.target,) if isinstance(task.target, str) else tuple(task.target)


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row.get(column)
    if not isinstance(value, str):
        raise ValueError(f"column '{column}' must hold text, got {value!r}")
    return value


def _texts(row: Mapping[str, Any], task: TextFolderTask) -> tuple[str, ...]:
    if task.kind in ("choice", "pair"):
        return ()
    return tuple(_text(row, column) for column in task.texts)


def _words(row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    value = row.get(column)
    words = value.split() if isinstance(value, str) else value
    if not isinstance(words, list) or not words or not all(isinstance(word, str) for word in words):
        raise ValueError(f"column '{column}' must hold words, a list or text with spaces, got {value!r}")
    return tuple(words)


def _alternatives(row: Mapping[str, Any], task: TextFolderTask) -> tuple[tuple[str, ...], ...]:
    if task.kind == "pair":
        return tuple((_text(row, column),) for column in task.texts)
    start = tuple(_text(row, column) for column in task.texts)
    value = row.get(task.choices[0])
    if len(task.choices) == 1 and isinstance(value, list):
        if not all(isinstance(text, str) for text in value):
            raise ValueError(f"column '{task.choices[0]}' must hold a list of texts, got {value!r}")
        return tuple((*start, text) for text in value)
    return tuple((*start, _text(row, column)) for column in task.choices)


def _target(row: Mapping[str, Any], task: TextFolderTask) -> Any:
    """Return the raw target of a row, None where the field is empty."""
    values = [row.get(column) for column in _target_columns(task)]
    if not values or any(value is None or value == "" for value in values):
        return None
    if task.kind == "span":
        return _span(row, task, values)
    value = values[0]
    if task.kind == "tagging":
        return [str(label) for label in (value.split() if isinstance(value, str) else cast(Any, value))]
    if task.kind == "choice" and task.labels:
        return Classes(task.labels).encode(value)
    if task.kind == "generation":
        return value
    return str(value).lower() if isinstance(value, bool) else str(value)


def _span(row: Mapping[str, Any], task: TextFolderTask, values: Sequence[Any]) -> tuple[int, int]:
    passage = _text(row, task.texts[1])
    first, last = _target_columns(task)
    try:
        start = int(values[0])
    except (TypeError, ValueError):
        raise ValueError(f"column '{first}' must hold the number of a character, got {values[0]!r}") from None
    answer = values[1]
    end = start + len(str(answer))
    if isinstance(answer, int) or (passage[start:end] != answer and str(answer).isdigit()):
        end = int(answer)
    elif passage[start:end] != answer:
        raise ValueError(
            f"column '{last}' must stand in the passage at character {start}, got {answer!r} but there is "
            f"{passage[start:end]!r}"
        )
    if not 0 <= start < end <= len(passage):
        raise ValueError(f"the answer must lie in the {len(passage)} characters of the passage, got {start}..{end}")
    return start, end
