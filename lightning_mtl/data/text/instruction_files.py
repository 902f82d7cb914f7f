"""Text-to-text mixtures of tasks whose texts and answers are in files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import Unpack

from lightning_mtl.data.base import Split
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError
from lightning_mtl.data.text.files import read_table
from lightning_mtl.data.text.instructions import InstructionMixture, InstructionOptions
from lightning_mtl.data.text.records import TextRecords
from lightning_mtl.data.text.templates import InstructionMode, InstructionTemplate, read_templates


@dataclass(frozen=True)
class TaskFiles:
    """The files of a task: jsonl, csv, tsv or parquet, with a column of texts and one of answers.

    Attributes:
        train: Training rows.
        val: Validation rows; None where there are none.
        test: Test rows, which are the prediction rows too; None where there are none.
        input_column: Column of the texts; None takes ``Input`` where there is one, else the first column.
        output_column: Column of the answers; None takes ``Output`` where there is one, else the second column.
    """

    train: str | None = None
    val: str | None = None
    test: str | None = None
    input_column: str | None = None
    output_column: str | None = None

    def of(self, split: Split) -> str | None:
        """Return the file of a split."""
        return {"train": self.train, "val": self.val, "test": self.test, "predict": self.test}[split]


def read_pairs(
    owner: str, path: Path, input_column: str | None = None, output_column: str | None = None
) -> TextRecords:
    """Return the texts and answers of a file; a file for prediction needs no answers.

    Args:
        owner: Name of the class that asks, for errors.
        path: The file.
        input_column: See :class:`TaskFiles`.
        output_column: See :class:`TaskFiles`.

    Raises:
        DataFileError: If a column is absent or holds something else than text. No message shows a text: some corpora
            may not be shown.
    """
    table = read_table(owner, path)
    columns = [_column(owner, path, table.columns, input_column, "Input", 0)]
    if output_column is not None or len(table.columns) > 1:
        columns.append(_column(owner, path, table.columns, output_column, "Output", 1))
    for line, row in zip(table.lines, table.rows, strict=True):
        for column in columns:
            if not isinstance(row.get(column), str):
                problem = f"column {column!r} must be a text, got {type(row.get(column)).__name__}"
                raise DataFileError.of(owner, f"{path}:{line}", problem, "correct the row")
    return TextRecords(
        path=path,
        lines=table.lines,
        texts=[(row[columns[0]],) for row in table.rows],
        targets=[row[columns[1]] for row in table.rows] if len(columns) > 1 else None,
    )


def _column(owner: str, path: Path, names: tuple[str, ...], given: str | None, usual: str, place: int) -> str:
    wanted = given or (usual if usual in names else None)
    if wanted is None and len(names) > place:
        return names[place]
    if wanted is None or wanted not in names:
        problem = f"must have the column {wanted or usual!r}, got {', '.join(names)}"
        raise DataFileError.of(owner, path, problem, "name the columns of the file")
    return wanted


def templates_of(
    owner: str,
    given: str | Mapping[str, InstructionTemplate] | None,
    tasks: tuple[str, ...],
    mode: InstructionMode,
    max_examples: int | None = None,
    include_explanations: bool = True,
) -> dict[str, InstructionTemplate]:
    """Return the template of every task, from a file, from a mapping, or empty ones where the mode needs none.

    Args:
        owner: Name of the class that asks, for errors.
        given: A JSON file, task -> template, or None.
        tasks: The tasks.
        mode: What stands before a text.
        max_examples: Most examples of the templates of a file.
        include_explanations: Whether the examples of a file are shown with their explanations.

    Raises:
        ValueError: If there is no template for a task, and the mode needs one.
    """
    if isinstance(given, str):
        return read_templates(given, tasks, max_examples, include_explanations, owner)
    known = given or {}
    missing = [task for task in tasks if task not in known]
    if missing and mode in ("prompt", "full"):
        raise ValueError(
            f"{owner}: templates must hold the tasks {missing} for mode={mode!r}, got {sorted(known)}; give a JSON "
            "file of instructions, or set mode='task_name' or 'none'."
        )
    return {task: known.get(task, InstructionTemplate("")) for task in tasks}


class InstructionMixtureDataModule(InstructionMixture):
    """A text-to-text mixture of tasks in files, each with an instruction in front of every text.

    Args:
        tasks: Task -> its files.
        templates: JSON file of instructions (see :func:`~lightning_mtl.data.text.read_templates`), or task -> template;
            None for the modes ``"task_name"`` and ``"none"``.
        max_examples: Most examples that are shown, for templates from a file; None shows all.
        include_explanations: Whether examples are shown with explanations, for templates from a file.
        options: See :class:`~lightning_mtl.data.text.InstructionOptions`,
            :class:`~lightning_mtl.data.text.TextOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`.

    Shape:
        - inputs for an encoder-decoder: ``input_ids``, ``attention_mask`` ``(B, L)``, ``decoder_input_ids``,
          ``decoder_attention_mask`` ``(B, T)``; target ``(B, T)`` int64, -100 padding
        - inputs for a causal model: ``input_ids``, ``attention_mask`` ``(B, L)`` of prompt and answer,
          ``prompt_length`` ``(B,)``; target ``(B, L)`` int64, moved by one, -100 over the prompt

        Training batches are mixed: one batch holds rows of all tasks, those of other tasks have the target -100.

    Raises:
        ValueError: If an argument is out of range.
        DatasetNotFoundError: If a file is not there.

    Note:
        Rows are never joined: the same text with different answers in several tasks is what instructions are for.

    References:
        Parmar, Mishra, Purohit, Luo, Murad, Baral. *In-BoXBART: Get Instructions into Biomedical Multi-Task Learning*.
        Findings of NAACL 2022. https://arxiv.org/abs/2204.07600
    """

    def __init__(
        self,
        tasks: dict[str, TaskFiles],
        templates: str | dict[str, InstructionTemplate] | None = None,
        max_examples: int | None = None,
        include_explanations: bool = True,
        **options: Unpack[InstructionOptions],
    ) -> None:
        super().__init__(**options)
        if not tasks:
            raise ValueError(f"{type(self).__name__}: tasks must hold at least one task, got none.")
        self.files = dict(tasks)
        self._templates = templates_of(
            type(self).__name__, templates, tuple(tasks), self.mode, max_examples, include_explanations
        )

    def templates(self) -> Mapping[str, InstructionTemplate]:
        """Return task -> what the model is told about it."""
        return self._templates

    def rows(self, task: str, split: Split) -> TextRecords | None:
        """Return the rows of a task in a split, None where it has no file for it."""
        files = self.files[task]
        given = files.of(split)
        if given is None:
            return None
        path = Path(given).expanduser()
        if not path.is_file():
            raise DatasetNotFoundError(
                f"{type(self).__name__}: task {task!r}: there is no file '{path}'; correct {split} of its TaskFiles."
            )
        return read_pairs(type(self).__name__, path, files.input_column, files.output_column)
