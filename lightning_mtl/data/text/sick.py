"""SICK: how related two sentences are, and whether one follows from the other."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from typing_extensions import Unpack

from lightning_mtl.data.base import Split, resolve_root
from lightning_mtl.data.errors import DatasetNotFoundError
from lightning_mtl.data.text.base import TextDataModule, TextOptions
from lightning_mtl.data.text.files import read_tsv
from lightning_mtl.data.text.records import Classes, Form, Score, TextRecords

_FILES: dict[Split, str] = {
    "train": "SICK_train.txt",
    "val": "SICK_trial.txt",
    "test": "SICK_test_annotated.txt",
    "predict": "SICK_test_annotated.txt",
}
_COLUMNS = {"relatedness": "relatedness_score", "entailment": "entailment_judgment"}
_REMEDY = (
    "The files of SemEval-2014 task 1 (SICK_train.txt, SICK_trial.txt, SICK_test_annotated.txt) are linked from "
    "https://alt.qcri.org/semeval2014/task1/index.php?id=data-and-tools; see docs/data/sick.md."
)


class SICKDataModule(TextDataModule):
    """Pairs of sentences with two labels each: relatedness, and entailment.

    Sentences Involving Compositional Knowledge, in the files of SemEval-2014 task 1: 4500 pairs to train, 500 to
    validate (called trial), 4927 to test. Both tasks are asked about the same input.

    Args:
        root: Folder with the three files; None takes ``sick`` in the environment variable LIGHTNING_MTL_DATA.
        tasks: Which of ``relatedness`` and ``entailment``.
        options: See :class:`~lightning_mtl.data.text.TextOptions`.

    Shape:
        - inputs: the pair, see :class:`~lightning_mtl.data.text.TextDataModule`
        - target of relatedness: ``(B,)`` float32 in 1..5
        - target of entailment: ``(B,)`` int64: 0 entailment, 1 neutral, 2 contradiction

    Raises:
        ValueError: If a task is unknown.

    Note:
        27 of the training pairs occur two or three times, 22 of them with labels that differ; 49 are also among the
        test pairs and 3 among the trial pairs. All are kept, as they are in published results.

    References:
        Marco Marelli, Stefano Menini, Marco Baroni, Luisa Bentivogli, Raffaella Bernardi, Roberto Zamparelli. *A SICK
        cure for the evaluation of compositional distributional semantic models*. LREC, 2014.
        https://aclanthology.org/L14-1314
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[str] = ("relatedness", "entailment"),
        **options: Unpack[TextOptions],
    ) -> None:
        super().__init__(**options)
        if not tasks or set(tasks) - set(_COLUMNS):
            raise ValueError(f"{type(self).__name__}: tasks must be some of {list(_COLUMNS)}, got {list(tasks)}.")
        self.root = root
        self.tasks = tuple(tasks)

    def forms(self) -> Mapping[str, Form]:
        """Return the range of relatedness and the classes of entailment."""
        known: dict[str, Form] = {
            "relatedness": Score(1, 5),
            "entailment": Classes(("ENTAILMENT", "NEUTRAL", "CONTRADICTION")),
        }
        return {task: known[task] for task in self.tasks}

    def sources(self) -> Mapping[str, Sequence[str]]:
        """Return that all tasks are asked about the same pairs."""
        return {"sick": self.tasks}

    def read(self, task: str, split: Split) -> TextRecords:
        """Return the pairs of a split.

        Raises:
            DatasetNotFoundError: If the file is not there.
            DataFileError: If it is not as it should be; names file and line.
        """
        name = type(self).__name__
        root = resolve_root(name, self.root, "sick", _REMEDY)
        path = root / _FILES[split]
        if not path.is_file():
            raise DatasetNotFoundError.of(name, root, [_FILES[split]], _REMEDY)
        columns = {task: _COLUMNS[task] for task in self.tasks}
        rows, _ = read_tsv(name, path, ("pair_ID", "sentence_A", "sentence_B", *columns.values()))
        return TextRecords(
            path=path,
            lines=[row.line for row in rows],
            texts=[(row.fields["sentence_A"], row.fields["sentence_B"]) for row in rows],
            targets={task: [row.fields[column] for row in rows] for task, column in columns.items()},
            ids=[row.fields["pair_ID"] for row in rows],
        )
