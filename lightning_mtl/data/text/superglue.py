"""SuperGLUE: seven of its eight tasks, in the benchmark's own files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.base import Split, resolve_root
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError
from lightning_mtl.data.loader import ResumableDataLoader
from lightning_mtl.data.text.base import TextOptions
from lightning_mtl.data.text.dataset import TextSource
from lightning_mtl.data.text.files import read_table
from lightning_mtl.data.text.records import Answers, Choice, Classes, Form, TextRecords
from lightning_mtl.data.text.submission import BenchmarkDataModule, chosen_classes
from lightning_mtl.data.text.superglue_rows import LAYOUTS, YES_NO, Row

SuperGLUETaskName = Literal["boolq", "cb", "copa", "multirc", "rte", "wic", "wsc"]
TASKS: tuple[SuperGLUETaskName, ...] = ("boolq", "cb", "copa", "multirc", "rte", "wic", "wsc")
"""The tasks of SuperGLUE that are read here; ReCoRD is not."""

FORMS: Mapping[str, Form] = {
    "boolq": Classes(YES_NO),
    "cb": Classes(("entailment", "contradiction", "neutral")),
    "copa": Choice(2),
    "multirc": Answers(),
    "rte": Classes(("entailment", "not_entailment")),
    "wic": Classes(YES_NO),
    "wsc": Classes(YES_NO),
}

_REMEDY = (
    "Unpack combined.zip of https://super.gluebenchmark.com/tasks, or some of its folders, and pass the folder above "
    "BoolQ, CB, COPA, MultiRC, RTE, WiC and WSC; see docs/data/superglue.md."
)


class SuperGLUEDataModule(BenchmarkDataModule):
    """Question answering, entailment, causes, word senses and coreference: the tasks of SuperGLUE.

    Reads ``train.jsonl``, ``val.jsonl`` and ``test.jsonl`` of the folders ``BoolQ``, ``CB``, ``COPA``, ``MultiRC``,
    ``RTE``, ``WiC`` and ``WSC``.

    The test files carry no labels. ``predict`` reads them, and :meth:`write_submission` writes what the benchmark's
    server takes. For scores on rows that chose no checkpoint, ``val_split="holdout"`` takes ``val_fraction`` of the
    training lines for validation (of multirc whole paragraphs) and tests on ``val.jsonl``.

    Args:
        root: Folder with one folder a task; None takes ``superglue`` in the environment variable LIGHTNING_MTL_DATA.
        tasks: Which of ``boolq``, ``cb``, ``copa``, ``multirc``, ``rte``, ``wic`` and ``wsc``.
        val_split: ``val`` validates on ``val.jsonl``, and has no labelled test rows; ``holdout`` validates on a part of
            the training rows and tests on ``val.jsonl``.
        options: See :class:`~lightning_mtl.data.text.TextOptions`.

    Shape:
        - inputs: ``(B, L)``, see :class:`~lightning_mtl.data.text.TextDataModule`; of copa ``(B, 2, L)``
        - target of boolq, wic, wsc: ``(B,)`` int64: 0 false, 1 true
        - target of cb: 0 entailment, 1 contradiction, 2 neutral; of rte: 0 entailment, 1 not_entailment
        - target of copa: the number of the alternative, 0 or 1
        - target of multirc: ``(B, 2)`` int64: whether the answer is right, and the number of its question, for
          :class:`~lightning_mtl.tasks.MultiRC`

    Raises:
        ValueError: If an argument is out of range.

    Note:
        What the model reads: boolq the passage and the question; cb and rte premise and hypothesis; copa the premise
        with "What was the cause of this?" or "What happened as a result?", and an alternative; multirc the paragraph,
        and the question with an answer; wic the word, a colon and the first sentence, and the second sentence, with
        the word between ``*`` in both; wsc the text with the noun phrase between ``*`` and the pronoun between ``#``,
        as T5 has it. Models that pool the marked words, as the benchmark's baselines do, read other inputs.

        BoolQ's first release (``question``, ``title``, ``answer``, ``passage``; ``train.jsonl`` and ``dev.jsonl``) is
        read as well, in a folder ``BoolQ`` or ``boolq``. Its title is put before the passage as the benchmark did.

    References:
        Alex Wang, Yada Pruksachatkun, Nikita Nangia, Amanpreet Singh, Julian Michael, Felix Hill, Omer Levy, Samuel R.
        Bowman. *SuperGLUE: A Stickier Benchmark for General-Purpose Language Understanding Systems*. NeurIPS, 2019.
        https://arxiv.org/abs/1905.00537
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[SuperGLUETaskName] = TASKS,
        val_split: Literal["val", "holdout"] = "val",
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(**options)
        if not tasks or set(tasks) - set(TASKS):
            raise ValueError(f"{type(self).__name__}: tasks must be some of {list(TASKS)}, got {list(tasks)}.")
        if val_split not in ("val", "holdout"):
            raise ValueError(f"{type(self).__name__}: val_split must be 'val' or 'holdout', got {val_split!r}.")
        self.root = root
        self.tasks = tuple(dict.fromkeys(tasks))
        self.val_split = val_split

    def forms(self) -> Mapping[str, Form]:
        """Return the classes of the tasks."""
        return {task: FORMS[task] for task in self.tasks}

    def file(self, task: str, split: Split) -> Path:
        """Return the file that a split is read from.

        Raises:
            DatasetNotFoundError: If it is not there.
        """
        name = type(self).__name__
        root = resolve_root(name, self.root, "superglue", _REMEDY)
        held_out = self.val_split == "holdout"
        stem = {"train": "train", "val": "train" if held_out else "val", "test": "val" if held_out else "test"}
        wanted = [Path(LAYOUTS[task].folder) / f"{stem.get(split, 'test')}.jsonl"]
        if task == "boolq":
            release = {"train": "train", "val": "dev"}.get(wanted[0].stem)
            wanted += [Path(folder) / f"{release}.jsonl" for folder in ("BoolQ", "boolq") if release is not None]
        for path in wanted:
            if (root / path).is_file():
                return root / path
        raise DatasetNotFoundError.of(name, root, wanted[:1], f"{_REMEDY} Or leave '{task}' out of the tasks.")

    def read(self, task: str, split: Split) -> TextRecords:
        """Return the samples of a task.

        Raises:
            DatasetNotFoundError: If the file is not there.
            DataFileError: If it is not as it should be; names file and line.
        """
        name, layout, path = type(self).__name__, LAYOUTS[task], self.file(task, split)
        rows: list[Row] = []
        lines: list[int] = []
        table = read_table(name, path)
        for number, line in zip(table.lines, table.rows, strict=True):
            try:
                found = list(layout.rows(line))
                if path.stem != "test" and any(row.target is None for row in found):
                    raise ValueError("there must be a label, got a line without one")
            except ValueError as error:
                remedy = "use the file as it was distributed"
                raise DataFileError.of(name, f"{path}:{number}", str(error), remedy) from error
            rows += found
            lines += [number] * len(found)
        records = TextRecords(
            path=path,
            lines=lines,
            texts=[row.texts for row in rows],
            choices=[row.choices for row in rows] if isinstance(FORMS[task], Choice) else None,
            targets=[row.target for row in rows],
            ids=[position if row.idx is None else row.idx for position, row in enumerate(rows)],
        )
        return self.hold_out(records, split) if self.val_split == "holdout" and path.stem == "train" else records

    def hold_out(self, records: TextRecords, split: Split) -> TextRecords:
        """Return the rows that a split has when ``val_fraction`` of a file's lines is set aside for validation."""
        lines = list(dict.fromkeys(records.lines))
        held = TextRecords(records.path, lines, [()] * len(lines))
        kept = set(super().hold_out(held, split).lines)
        return records.take([row for row, line in enumerate(records.lines) if line in kept])

    def test_dataloader(self) -> ResumableDataLoader:
        """Return the loader of ``val.jsonl``, where that is not used for validation.

        Raises:
            MisconfigurationException: If it is: the test files carry no labels.
        """
        if self.val_split == "val":
            raise MisconfigurationException(
                f"{type(self).__name__}: the test files of SuperGLUE carry no labels. For scores on val.jsonl run "
                "`validate`, or set val_split='holdout' to test on it; for a submission run `predict`."
            )
        return super().test_dataloader()

    def submission_files(self, task: str, values: Tensor, source: TextSource) -> dict[str, str]:
        """Return predictions as SuperGLUE wants them: a JSON object a line in ``BoolQ.jsonl`` etc."""
        labels = [_SPELLINGS[task][number] for number in chosen_classes(values)]
        lines = _nested(source.ids, labels) if task == "multirc" else _flat(source.ids, labels)
        return {f"{LAYOUTS[task].folder}.jsonl": "".join(json.dumps(line) + "\n" for line in lines)}


_SPELLINGS: dict[str, Sequence[Any]] = {
    "boolq": YES_NO,
    "cb": ("entailment", "contradiction", "neutral"),
    "copa": (0, 1),
    "multirc": (0, 1),
    "rte": ("entailment", "not_entailment"),
    "wic": YES_NO,
    "wsc": ("False", "True"),
}
"""Task -> how a submission spells its classes."""


def _flat(ids: Sequence[Any], labels: Sequence[Any]) -> list[dict[str, Any]]:
    return [{"idx": idx, "label": label} for idx, label in zip(ids, labels, strict=True)]


def _nested(ids: Sequence[Any], labels: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the answers of MultiRC under their questions and paragraphs."""
    paragraphs: dict[int, dict[int, list[dict[str, Any]]]] = {}
    for (paragraph, question, answer), label in zip(ids, labels, strict=True):
        paragraphs.setdefault(paragraph, {}).setdefault(question, []).append({"idx": answer, "label": label})
    return [
        {"idx": paragraph, "passage": {"questions": [{"idx": idx, "answers": found} for idx, found in asked.items()]}}
        for paragraph, asked in paragraphs.items()
    ]
