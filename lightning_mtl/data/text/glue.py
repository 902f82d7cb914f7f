"""The nine tasks of GLUE and its diagnostics, in the files of the official archive."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.base import Split, resolve_root
from lightning_mtl.data.errors import DatasetNotFoundError
from lightning_mtl.data.loader import ResumableDataLoader
from lightning_mtl.data.text.base import TextOptions
from lightning_mtl.data.text.dataset import TextSource
from lightning_mtl.data.text.files import read_tsv
from lightning_mtl.data.text.records import Classes, Form, Score, TextRecords
from lightning_mtl.data.text.submission import BenchmarkDataModule, chosen_classes

GLUETaskName = Literal["cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"]

_DIAGNOSTICS = ("diagnostic/diagnostic.tsv", "AX/AX.tsv", "AX/diagnostic.tsv", "AX.tsv")

_REMEDY = (
    "Download it from https://gluebenchmark.com/tasks and keep its folders: CoLA, SST-2, MRPC, STS-B, QQP, MNLI, QNLI, "
    "RTE, WNLI, each with its tsv files."
)


@dataclass(frozen=True)
class GLUETask:
    """Where a task's files hold what.

    Attributes:
        folder: Its folder in the archive, which is also the name of its file in a submission.
        inputs: Columns of the one or two sentences.
        label: Column of the label.
        form: Form of the target; its labels are in the order of the class ids.
        headless: Columns of the training and development files, where these have no header.
        test_id: Column with the id of a test row.
        broken: Whether the distributed files have rows that line breaks inside a text have cut.
    """

    folder: str
    inputs: tuple[str, ...]
    label: str
    form: Classes | Score
    headless: tuple[str, ...] | None = None
    test_id: str = "index"
    broken: bool = False


_BINARY = Classes(("0", "1"))
_ENTAILMENT = Classes(("entailment", "not_entailment"))
_PAIR = ("sentence1", "sentence2")

GLUE_TASKS: dict[str, GLUETask] = {
    "cola": GLUETask("CoLA", ("sentence",), "label", _BINARY, headless=("source", "label", "mark", "sentence")),
    "sst2": GLUETask("SST-2", ("sentence",), "label", _BINARY),
    "mrpc": GLUETask("MRPC", ("#1 String", "#2 String"), "Quality", _BINARY),
    "stsb": GLUETask("STS-B", _PAIR, "score", Score(0, 5)),
    "qqp": GLUETask("QQP", ("question1", "question2"), "is_duplicate", _BINARY, test_id="id", broken=True),
    "mnli": GLUETask("MNLI", _PAIR, "gold_label", Classes(("entailment", "neutral", "contradiction"))),
    "qnli": GLUETask("QNLI", ("question", "sentence"), "label", _ENTAILMENT),
    "rte": GLUETask("RTE", _PAIR, "label", _ENTAILMENT),
    "wnli": GLUETask("WNLI", _PAIR, "label", _BINARY),
}
"""Task -> its files, columns and labels, as in the archive of https://gluebenchmark.com."""


class GLUEDataModule(BenchmarkDataModule):
    """Some or all tasks of GLUE, read from the official tsv files.

    The files are read as they are: never quoted, CoLA without a header, MRPC with a byte-order mark, ``index`` with
    gaps. Spaces around a sentence are dropped. MNLI is validated on ``dev_matched``, ``dev_mismatched`` or both.

    The official test files carry no labels. ``predict`` reads them (for MNLI the matched, the mismatched and, if they
    are there, the diagnostics), and :meth:`write_submission` writes the predictions as the benchmark wants them. For
    scores on rows that chose no checkpoint, ``val_split="holdout"`` takes ``val_fraction`` of the training rows for
    validation and tests on the development files.

    Args:
        root: Folder with the folders of the tasks; None takes ``glue`` below the environment variable
            LIGHTNING_MTL_DATA.
        tasks: Names of the tasks; None takes all whose folder is there.
        val_split: ``dev`` validates on the development files, and has no labelled test rows; ``holdout`` validates on
            a part of the training rows and tests on the development files.
        mnli_dev: Which development files of MNLI are used.
        options: See :class:`~lightning_mtl.data.text.TextOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`.

    Shape:
        - inputs: as in :class:`~lightning_mtl.data.text.TextDataModule`
        - target of ``stsb``: ``(B,)`` float32 in 0..5, NaN unlabelled; of the others ``(B,)`` int64, -100 unlabelled

    Raises:
        ValueError: If an argument is out of range.
        DatasetNotFoundError: If a task or file is not there.
        DataFileError: If a file is damaged; names the line.

    Note:
        QQP's files have rows that line breaks inside a question have cut; they are left out with one warning, as in
        the loaders that published results come from. Any other row with a wrong number of columns is an error.

    References:
        Wang et al. *GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding*. ICLR 2019.
        https://arxiv.org/abs/1804.07461
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[GLUETaskName] | None = None,
        val_split: Literal["dev", "holdout"] = "dev",
        mnli_dev: Literal["matched", "mismatched", "both"] = "matched",
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(**options)
        if isinstance(tasks, str) or (tasks is not None and not tasks):
            raise ValueError(
                f"GLUEDataModule: tasks must be a list of names, or None for all there are, got {tasks!r}."
            )
        if unknown := [task for task in tasks or () if task not in GLUE_TASKS]:
            raise ValueError(f"GLUEDataModule: tasks must be some of {', '.join(GLUE_TASKS)}, got {unknown}.")
        for argument, value, choices in (
            ("val_split", val_split, ("dev", "holdout")),
            ("mnli_dev", mnli_dev, ("matched", "mismatched", "both")),
        ):
            if value not in choices:
                raise ValueError(f"GLUEDataModule: {argument} must be one of {choices}, got {value!r}.")
        self.root = root
        self.val_split = val_split
        self.mnli_dev = mnli_dev
        self._tasks: tuple[str, ...] | None = None if tasks is None else tuple(dict.fromkeys(tasks))

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks; looks for their folders where none were named.

        Raises:
            DatasetNotFoundError: If there is no folder of any task.
        """
        if self._tasks is None:
            root = self._folder()
            there = tuple(task for task, spec in GLUE_TASKS.items() if (root / spec.folder).is_dir())
            if not there:
                raise DatasetNotFoundError.of(
                    "GLUEDataModule", root, [spec.folder for spec in GLUE_TASKS.values()], _REMEDY
                )
            self._tasks = there
        return self._tasks

    def forms(self) -> Mapping[str, Form]:
        """Return task -> form of its target."""
        return {task: GLUE_TASKS[task].form for task in self.tasks}

    def files(self, task: str, split: Split) -> list[Path]:
        """Return the files of a split.

        Raises:
            DatasetNotFoundError: If one is not there.
        """
        root = self._folder()
        folder = root / GLUE_TASKS[task].folder
        held_out = self.val_split == "holdout"
        if split == "train" or (split == "val" and held_out):
            names = ["train.tsv"]
        elif split == "val" or (split == "test" and held_out):
            parts = ("matched", "mismatched") if self.mnli_dev == "both" else (self.mnli_dev,)
            names = [f"dev_{part}.tsv" for part in parts] if task == "mnli" else ["dev.tsv"]
        else:
            names = ["test_matched.tsv", "test_mismatched.tsv"] if task == "mnli" else ["test.tsv"]
        found = [folder / name for name in names]
        if missing := [path.relative_to(root) for path in found if not path.is_file()]:
            raise DatasetNotFoundError.of(
                "GLUEDataModule", root, missing, f"{_REMEDY} Or leave '{task}' out of the tasks."
            )
        if split == "predict" and task == "mnli":
            found += [path for path in (root / name for name in _DIAGNOSTICS) if path.is_file()][:1]
        return found

    def read(self, task: str, split: Split) -> list[TextRecords]:
        """Return the rows of a task's files."""
        if split == "test" and self.val_split == "dev":
            split = "predict"
        records = [self._records_of(task, path, labelled=split != "predict") for path in self.files(task, split)]
        if self.val_split == "holdout" and split in ("train", "val"):
            records = [self.hold_out(part, split) for part in records]
        return records

    def _records_of(self, task: str, path: Path, labelled: bool) -> TextRecords:
        spec = GLUE_TASKS[task]
        needed = (*spec.inputs, spec.label) if labelled else spec.inputs
        rows, skipped = read_tsv("GLUEDataModule", path, needed, spec.headless if labelled else None, spec.broken)
        if skipped:
            rank_zero_warn(f"GLUEDataModule: '{path}': left out {skipped} rows that are cut by a line break.")
        key = "index" if "index" in rows[0].fields else spec.test_id
        return TextRecords(
            path=path,
            lines=[row.line for row in rows],
            texts=[tuple(row.fields[column].strip() for column in spec.inputs) for row in rows],
            targets=[row.fields[spec.label] for row in rows] if labelled else None,
            ids=[row.fields[key] if key in row.fields else str(number) for number, row in enumerate(rows)],
        )

    def _folder(self) -> Path:
        return resolve_root("GLUEDataModule", self.root, "glue", _REMEDY)

    def test_dataloader(self) -> ResumableDataLoader:
        """Return the loader of the development files, where these are not used for validation.

        Raises:
            MisconfigurationException: If they are: the official test files carry no labels.
        """
        if self.val_split == "dev":
            raise MisconfigurationException(
                "GLUEDataModule: the test files of GLUE carry no labels. For scores on the development files run "
                "`validate`, or set val_split='holdout' to test on them; for a submission run `predict`."
            )
        return super().test_dataloader()

    # ------------------------------------------------------------------ submission
    def submission_files(self, task: str, values: Tensor, source: TextSource) -> dict[str, str]:
        """Return predictions as GLUE wants them: ``TASK.tsv`` with the columns index and prediction.

        Scores are cut to 0..5.
        """
        lines: dict[str, list[str]] = {}
        for path, name, text in zip(source.paths, source.ids, _as_text(GLUE_TASKS[task].form, values), strict=True):
            lines.setdefault(_submission_name(path), ["index\tprediction\n"]).append(f"{name}\t{text}\n")
        return {name: "".join(rows) for name, rows in lines.items()}


def _task_of(path: Path) -> str:
    return next((task for task, spec in GLUE_TASKS.items() if spec.folder == path.parent.name), "mnli")


def _submission_name(path: Path) -> str:
    """Return what the benchmark calls the predictions of a test file."""
    if _task_of(path) != "mnli":
        return f"{path.parent.name}.tsv"
    return {"test_matched": "MNLI-m.tsv", "test_mismatched": "MNLI-mm.tsv"}.get(path.stem, "AX.tsv")


def _as_text(form: Classes | Score, values: Tensor) -> list[str]:
    if isinstance(form, Score):
        return [f"{value:.3f}" for value in values.flatten().clamp(form.low or 0.0, form.high).tolist()]
    return [form.labels[number] for number in chosen_classes(values)]
