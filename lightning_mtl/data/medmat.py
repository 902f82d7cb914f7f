"""Med-MAT: medical images with multiple-choice questions, in subsets of one modality, area and task each."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF

from lightning_mtl.data.base import MultiTaskDataModule, Sample, Split, resolve_root
from lightning_mtl.data.compositional import CompositionalSplit, Triplet
from lightning_mtl.data.dense.transforms import Normalize
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError
from lightning_mtl.data.images import decode_image
from lightning_mtl.data.medmat_files import (
    FOLDERS,
    JSON_FILE,
    REMEDY,
    REPAIR,
    Collection,
    Locator,
    MedMATRecord,
    check_images,
    duplicates,
    given_options,
    load,
    medmat_registry,
)
from lightning_mtl.data.multiple_choice import to_multiple_choice
from lightning_mtl.data.samplers import mix_seed


class MedMATDataset(Dataset[Sample]):
    """Images and questions of some records.

    Args:
        records: The records.
        subsets: Subsets in the order of their numbers as inputs.
        tasks: Subset -> name of the task to which its answers belong.
        size: Height and width to which images are resized.
    """

    def __init__(
        self,
        records: Sequence[MedMATRecord],
        subsets: Sequence[int],
        tasks: Mapping[int, str],
        size: tuple[int, int],
    ) -> None:
        self.records = list(records)
        self._place = {subset: place for place, subset in enumerate(subsets)}
        self._tasks = dict(tasks)
        self._names = tuple(dict.fromkeys(tasks[subset] for subset in subsets))
        self._size = list(size)
        self._normalize = Normalize()

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Return inputs and targets of a record."""
        record = self.records[index]
        pixels = TF.resize(decode_image("MedMATDataModule", record.image), self._size, antialias=True)
        inputs = {
            "image": self._normalize.normalized(pixels),
            "task": torch.tensor(self._place[record.subset]),
            "question": record.question,
            "num_options": torch.tensor(record.num_options),
        }
        targets = {name: torch.tensor(-100) for name in self._names}
        targets[self._tasks[record.subset]] = torch.tensor(record.answer)
        return inputs, targets


class MedMATDataModule(MultiTaskDataModule):
    """Multiple-choice questions about medical images, with pools of subsets by their factors.

    Batches are ``(inputs, targets)`` with ``inputs`` a mapping of ``image`` ``(B, 3, H, W)`` (ImageNet statistics),
    ``task`` ``(B,)`` (place of the subset in ``subsets``), ``question`` (a list of B texts, options included) and
    ``num_options`` ``(B,)``; targets are places of the right options, ``(B,)`` int64.

    A subset is divided by its own files (``...-train.json``, ``...-test.json``), or 9 to 1 where there is no test file;
    a tenth of what is left for training is for validation, and ``cap`` training items are kept, as many of each label
    as possible. Subsets that are only tested give all their items to the test split. Images that occur, byte for byte,
    in the validation or test split too are taken out of the training split; ``leaked`` counts them.

    Args:
        root: Folder with ``med-mat`` and the folders of json files; None reads ``med_mat`` below the environment
            variable ``LIGHTNING_MTL_DATA``.
        collection: The ``"aggregated"`` subsets or the ``"original"`` data sets.
        train_on: Numbers of the subsets to train on; None takes all with at least ``min_items`` items, or those of the
            condition.
        test_on: Numbers of the subsets to test; None takes the target, or those that are trained on.
        table: Markdown file with the factors of the subsets (:func:`medmat_registry`), needed for the next three.
        target: Number of a subset that is held out and tested.
        condition: Which of the other subsets are trained on (:meth:`CompositionalSplit.pool`).
        allow_shared: Numbers of factors that a related subset may share with the target; None allows any.
        cap: Largest number of training items of a subset.
        min_items: Smaller subsets are not trained on unless named; 3000 in the paper.
        options: ``"given"`` takes questions and options from the file; ``"made"`` makes them from the labels
            (:func:`to_multiple_choice`).
        label_separator: What separates the labels of an item where it has several, for ``"made"``.
        group_by: ``"subset"`` makes a task of every subset, a factor of the table one of each of its values; None has
            the one task ``answer``.
        size: Height and width to which images are resized.
        batch_size: Samples per batch and process.
        num_workers: Processes that load data; None takes one per available core, at most 8.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of divisions, made questions, a random pool, and the order.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training samples that keep this task's label.

    Raises:
        ValueError: If the arguments contradict each other or are out of range.
        DatasetNotFoundError: In ``setup``, if json files or images are missing; it counts them and names the first.
        DataFileError: In ``setup``, if a record cannot be used.

    Note:
        Questions are texts: the network of an experiment tokenizes them. The chance level differs between subsets
        (:meth:`chance`).

    References:
        Cai, Chen, Wang, Wang, Deng, Song, Chen, Zhang, Wang. *Exploring Compositional Generalization of
        Multimodal LLMs for Medical Imaging*. ACL 2025.
        https://arxiv.org/abs/2412.20070. Data: https://github.com/FreedomIntelligence/Med-MAT.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        collection: Collection = "aggregated",
        train_on: Sequence[int] | None = None,
        test_on: Sequence[int] | None = None,
        table: str | os.PathLike[str] | None = None,
        target: int | None = None,
        condition: str = "related",
        allow_shared: Sequence[int] | None = None,
        cap: int = 3000,
        min_items: int = 0,
        options: Literal["given", "made"] = "given",
        label_separator: str | None = None,
        group_by: str | None = None,
        size: tuple[int, int] = (224, 224),
        *,
        batch_size: int = 32,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
        drop_last: bool = True,
        label_fraction: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            seed=seed,
            drop_last=drop_last,
            label_fraction=label_fraction,
        )
        if collection not in FOLDERS or options not in ("given", "made"):
            raise ValueError(
                "MedMATDataModule: collection must be 'aggregated' or 'original' and options 'given' or 'made', got "
                f"{collection!r} and {options!r}."
            )
        if cap < 1 or min_items < 0 or min(size) < 1:
            raise ValueError(
                "MedMATDataModule: cap and size must be positive and min_items not negative, got "
                f"cap={cap}, size={tuple(size)}, min_items={min_items}."
            )
        if target is not None and (table is None or train_on is not None):
            raise ValueError(
                "MedMATDataModule: target chooses the subsets by their factors, so it needs table= and no train_on, "
                f"got table={table} and train_on={train_on}."
            )
        self.registry = None if table is None else medmat_registry(table, collection)
        factors = () if self.registry is None else self.registry.factors
        if group_by not in (None, "subset", *factors):
            raise ValueError(
                f"MedMATDataModule: group_by must be 'subset' or, with table=, one of {Triplet._fields}, got "
                f"{group_by!r}."
            )
        self.root = root
        self.collection = collection
        self.train_on = train_on
        self.test_on = test_on
        self.target = target
        self.condition = condition
        self.allow_shared = allow_shared
        self.cap = cap
        self.min_items = min_items
        self.options = options
        self.label_separator = label_separator
        self.group_by = group_by
        self.size = (size[0], size[1])
        self.subsets: list[int] = []
        self.leaked: dict[int, int] = {}
        self._records: dict[str, list[MedMATRecord]] | None = None

    # ------------------------------------------------------------------ tasks
    def task_of(self, subset: int) -> str:
        """Return the name of the task to which a subset's answers belong."""
        if self.group_by is None:
            return "answer"
        if self.group_by == "subset" or self.registry is None:
            return f"subset_{subset:02d}"
        return re.sub(r"[^\w-]+", "_", self.registry.values(str(subset))[self.group_by])

    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return dict.fromkeys((self.task_of(subset) for subset in self.subsets), -100.0)

    def chance(self, split: Split = "test") -> dict[int, float]:
        """Return subset -> accuracy of guessing in a split that has been set up."""
        found: dict[int, list[float]] = {}
        for record in self._split(split):
            found.setdefault(record.subset, []).append(1 / record.num_options)
        return {subset: sum(values) / len(values) for subset, values in found.items()}

    def counts(self, split: Split = "test") -> dict[int, int]:
        """Return subset -> number of items in a split that has been set up."""
        return {subset: sum(r.subset == subset for r in self._split(split)) for subset in self.chance(split)}

    # ------------------------------------------------------------------ data
    def make_dataset(self, split: Split) -> MedMATDataset:
        """Return the questions of a split."""
        records = self._split(split)
        return MedMATDataset(records, self.subsets, {s: self.task_of(s) for s in self.subsets}, self.size)

    def _split(self, split: Split) -> list[MedMATRecord]:
        if self._records is None:
            self._records = self._divided()
        return self._records["test" if split == "predict" else split]

    def _divided(self) -> dict[str, list[MedMATRecord]]:
        root = resolve_root("MedMATDataModule", self.root, "med_mat", REMEDY)
        files = self._files(root)
        train_on, test_on = self._chosen(files)
        self.subsets = sorted({*train_on, *test_on})
        splits: dict[str, list[MedMATRecord]] = {"train": [], "val": [], "test": []}
        for subset in self.subsets:
            parts = {part: self._read(root, subset, path) for part, path in sorted(files[subset].items())}
            items = parts.get("train", [])
            if subset not in train_on:
                splits["test"] += [*items, *parts.get("test", [])]
                continue
            held = parts.get("test")
            if held is None:
                held, items = self._held_out(items, subset, 1)
            if subset in test_on:
                splits["test"] += held
            val, items = self._held_out(items, subset, 2)
            splits["val"] += val
            splits["train"] += self._capped(items, subset)
        check_images(root, [record.image for records in splits.values() for record in records])
        leaked = duplicates(splits["train"], [*splits["val"], *splits["test"]])
        self.leaked = {s: n for s in self.subsets if (n := sum(record.subset == s for record in leaked))}
        gone = {id(record) for record in leaked}
        splits["train"] = [record for record in splits["train"] if id(record) not in gone]
        return splits

    def _files(self, root: Path) -> dict[int, dict[str, Path]]:
        wanted = FOLDERS[self.collection]
        found: dict[int, dict[str, Path]] = {}
        for parent in (root, root / "med-mat"):
            folders = [p for p in parent.iterdir() if p.name.casefold() == wanted.casefold()] if parent.is_dir() else []
            for path in sorted(file for folder in folders for file in folder.iterdir()):
                if match := JSON_FILE.fullmatch(path.name):
                    found.setdefault(int(match.group(1)), {})[match.group(2).lower()] = path
        if not found:
            raise DatasetNotFoundError.of("MedMATDataModule", root, [f"{wanted}/*-train.json"], REMEDY)
        return found

    def _chosen(self, files: Mapping[int, Mapping[str, Path]]) -> tuple[list[int], list[int]]:
        if self.target is not None and self.registry is not None:
            split = CompositionalSplit(self.registry, str(self.target), self.allow_shared)
            train = [int(name) for name in split.pool(self.condition, self.seed) if int(name) in files]
            test = [self.target]
        else:
            train = sorted(files) if self.train_on is None else list(self.train_on)
            test = []
        if self.train_on is None and self.min_items:
            train = [
                subset for subset in train if sum(len(load(path)) for path in files[subset].values()) >= self.min_items
            ]
        test = list(self.test_on) if self.test_on is not None else test or train
        if missing := sorted({*train, *test} - set(files)):
            raise DatasetNotFoundError.of(
                "MedMATDataModule",
                Path(os.fspath(self.root or "")),
                [f"{FOLDERS[self.collection]}/*-{subset:02d}-train.json" for subset in missing],
                REMEDY,
            )
        return train, test

    def _read(self, root: Path, subset: int, path: Path) -> list[MedMATRecord]:
        rows = load(path)
        labels = [self._labels(row) for row in rows] if self.options == "made" else []
        vocabulary = list(dict.fromkeys(label for found in labels for label in found))
        instructions = list(dict.fromkeys(str(row.get("Question", "")).strip() for row in rows))
        locate = Locator(root)
        records = []
        for place, row in enumerate(rows):
            identity = str(row.get("id", place))
            try:
                image = locate(str(row["image"]))
                if self.options == "made":
                    key = f"{subset}/{identity}"
                    made = to_multiple_choice(labels[place], vocabulary, instructions, key, self.seed)
                    question, count, answer = made.text, len(made.options), made.answer
                    label = made.options[made.answer]
                else:
                    question, label = str(row["Question-choice"]), str(row["Answer"])
                    count, answer = given_options(question, str(row["Answer-choice"]))
            except KeyError as error:
                raise DataFileError.of(
                    "MedMATDataModule", path, f"record {identity!r} must have {error.args[0]!r}", REPAIR
                ) from error
            except ValueError as error:
                raise DataFileError.of("MedMATDataModule", path, f"record {identity!r}: {error}", REPAIR) from error
            records.append(MedMATRecord(subset, identity, image, question, count, answer, label))
        return records

    def _labels(self, row: Mapping[str, Any]) -> list[str]:
        text = str(row.get("Answer", ""))
        parts = [text] if self.label_separator is None else text.split(self.label_separator)
        return [part.strip() for part in parts if part.strip()]

    def _order(self, count: int, *place: int) -> list[int]:
        stream = Generator().manual_seed(mix_seed(self.seed, *place))
        order: list[int] = torch.randperm(count, generator=stream).tolist()
        return order

    def _held_out(
        self, items: list[MedMATRecord], subset: int, purpose: int
    ) -> tuple[list[MedMATRecord], list[MedMATRecord]]:
        """Return a tenth of the items, at least one, and the others."""
        order = self._order(len(items), subset, purpose)
        chosen = set(order[: max(1, round(len(items) / 10))]) if len(items) > 1 else set()
        return (
            [item for place, item in enumerate(items) if place in chosen],
            [item for place, item in enumerate(items) if place not in chosen],
        )

    def _capped(self, items: list[MedMATRecord], subset: int) -> list[MedMATRecord]:
        """Return at most ``cap`` items, as many of each label as possible."""
        if len(items) <= self.cap:
            return items
        queues: dict[str, list[int]] = {}
        for place in self._order(len(items), subset, 3):
            queues.setdefault(items[place].label, []).append(place)
        kept: list[int] = []
        waiting = [queues[label] for label in sorted(queues, key=lambda label: (zlib.crc32(label.encode()), label))]
        while len(kept) < self.cap:
            for queue in waiting:
                if queue and len(kept) < self.cap:
                    kept.append(queue.pop())
        return [items[place] for place in sorted(kept)]
