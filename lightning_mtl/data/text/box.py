"""BoX: 32 biomedical tasks as texts to write."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from typing_extensions import Unpack

from lightning_mtl.data.base import Split, resolve_root
from lightning_mtl.data.errors import DatasetNotFoundError
from lightning_mtl.data.text.instruction_files import read_pairs, templates_of
from lightning_mtl.data.text.instructions import InstructionMixture, InstructionOptions
from lightning_mtl.data.text.records import TextRecords
from lightning_mtl.data.text.templates import InstructionTemplate

BoXScore = Literal["entity_f1", "label_f1", "exact_match", "token_f1"]


@dataclass(frozen=True)
class BoXTask:
    """A task of BoX.

    Attributes:
        category: Kind of task.
        score: Its main score here, a name of ``scores`` of :class:`~lightning_mtl.tasks.TextToText`: the F1 of listed
            entities or labels, the share of exact answers, or the F1 of words.
    """

    category: str
    score: BoXScore


def _of(category: str, score: BoXScore, *names: str) -> dict[str, BoXTask]:
    return {name: BoXTask(category, score) for name in names}


BOX_TASKS: dict[str, BoXTask] = {
    **_of(
        "named entity recognition",
        "entity_f1",
        "AnatEM",
        "BC2GM",
        "BC4CHEMD",
        "BC5CDR",
        "BioNLP11EPI",
        "BioNLP11ID",
        "BioNLP13CG",
        "BioNLP13GE",
        "BioNLP13PC",
        "BioNLP_09",
        "CRAFT",
        "Ex-PTM",
        "JNLPBA",
        "NCBI",
        "linnaeus",
    ),
    **_of("part-of-speech tagging", "token_f1", "POS_Genia"),
    **_of("question answering", "token_f1", "BioASQ-8b_factoid", "PubMed"),
    **_of("question answering", "label_f1", "BioASQ-8b_list"),
    **_of("question answering", "exact_match", "BioASQ-8b_yesno"),
    **_of("relation extraction", "exact_match", "Chemprot", "DDI"),
    **_of("sentiment analysis", "exact_match", "Medical_Drugs"),
    **_of("systematic review", "exact_match", "Accelerometer", "Acromegaly", "COVID", "Cooking", "HRT"),
    **_of("de-identification", "entity_f1", "De-identification_2006"),
    **_of("document classification", "label_f1", "HoC"),
    **_of("risk factor identification", "exact_match", "Riskfactors_heart_disease_2014_yesno"),
    **_of("risk factor identification", "label_f1", "Time_riskfactors_heart_disease_2014_multi-label"),
}
"""Task -> what it is; the names are those of the authors' template file."""

_FILES: dict[Split, str] = {"train": "train", "val": "validation", "test": "test", "predict": "test"}
_REMEDY = (
    "Lay out every task as TASK/{train,validation,test}.csv (or .jsonl) with the columns Input and Output, and name "
    "the tasks that you have with tasks=. Most of the corpora need a licence of their own; none is part of this "
    "package."
)


class BoXDataModule(InstructionMixture):
    """The layout of BoX: ``root/TASK/{train,validation,test}.csv`` or ``.jsonl`` with the columns Input and Output.

    Neither the corpora nor the authors' instructions are part of this package: ``templates`` is a file of theirs
    (``templates/BoX_instructions.json`` in their repository), or of one's own.

    Args:
        root: Folder of the tasks; None takes ``box`` in the folder that LIGHTNING_MTL_DATA names.
        tasks: Names of the tasks, folders below ``root``; None takes all 32 of ``BOX_TASKS``. Others than these may be
            given.
        templates: JSON file of instructions, or task -> template; None for the modes ``"task_name"`` and ``"none"``.
        max_examples: Most examples that are shown, for templates from a file; None shows all.
        include_explanations: Whether examples are shown with explanations, for templates from a file.
        options: See :class:`~lightning_mtl.data.text.InstructionOptions`,
            :class:`~lightning_mtl.data.text.TextOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`.

    Shape:
        As for :class:`InstructionMixtureDataModule`.

    Raises:
        DatasetNotFoundError: If tasks are missing; names all of them.
        ValueError: If an argument is out of range.

    Note:
        Sizes differ by orders of magnitude. Drawing in proportion, the default, is what the paper does; ``sampling`` of
        :class:`~lightning_mtl.data.TemperatureSampling` gives small tasks more. A split that a task has no file for is
        left out for it, but every task must have training rows in training.

    References:
        Parmar, Mishra, Purohit, Luo, Murad, Baral. *In-BoXBART: Get Instructions into Biomedical Multi-Task Learning*.
        Findings of NAACL 2022. https://arxiv.org/abs/2204.07600
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[str] | None = None,
        templates: str | dict[str, InstructionTemplate] | None = None,
        max_examples: int | None = None,
        include_explanations: bool = True,
        **options: Unpack[InstructionOptions],
    ) -> None:
        super().__init__(**options)
        name = type(self).__name__
        self.root = root
        self.tasks = tuple(BOX_TASKS if tasks is None else tasks)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"{name}: tasks must name at least one task and each once, got {list(self.tasks)}.")
        self._templates = templates_of(name, templates, self.tasks, self.mode, max_examples, include_explanations)

    def templates(self) -> Mapping[str, InstructionTemplate]:
        """Return task -> what the model is told about it."""
        return self._templates

    def rows(self, task: str, split: Split) -> TextRecords | None:
        """Return the rows of a task in a split, None where it has no file for it."""
        path = self._file(task, split)
        return None if path is None else read_pairs(type(self).__name__, path)

    def _file(self, task: str, split: Split) -> Path | None:
        owner = type(self).__name__
        root = resolve_root(owner, self.root, "box", _REMEDY)
        missing = [name for name in self.tasks if not (root / name).is_dir()]
        if missing:
            raise DatasetNotFoundError.of(owner, root, missing, _REMEDY)
        for ending in (".csv", ".jsonl"):
            path = root / task / f"{_FILES[split]}{ending}"
            if path.is_file():
                return path
        if split == "train":
            raise DatasetNotFoundError.of(owner, root, [Path(task) / "train.csv"], _REMEDY)
        return None
