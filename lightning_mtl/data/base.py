"""The data module that all others build on, and what their batches look like."""

from __future__ import annotations

import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sized
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

import torch
from lightning.pytorch import LightningDataModule
from torch import Generator, Tensor
from torch.utils.data import Dataset, Sampler, default_collate

from lightning_mtl.data.errors import DatasetNotFoundError, EmptySplitError
from lightning_mtl.data.loader import ResumableDataLoader, StatefulSampler
from lightning_mtl.data.samplers import SeededSampler, mix_seed

Split = Literal["train", "val", "test", "predict"]
Sample = tuple[Any, dict[str, Any]]

DATA_VARIABLE = "LIGHTNING_MTL_DATA"
"""Environment variable with the folder that holds all data sets, used where ``root`` is None."""

_SPLITS_OF_STAGE: dict[str | None, tuple[Split, ...]] = {
    "fit": ("train", "val"),
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
    None: ("train", "val", "test", "predict"),
}


def resolve_root(owner: str, root: str | os.PathLike[str] | None, folder: str, remedy: str) -> Path:
    """Return the folder of a data set: ``root``, or ``folder`` below the environment variable where that is None.

    Raises:
        DatasetNotFoundError: If neither is given, or the folder does not exist.
    """
    if root is None:
        base = os.environ.get(DATA_VARIABLE)
        if not base:
            raise DatasetNotFoundError.of(
                owner,
                None,
                [],
                f"Pass root= (--data.root), or set {DATA_VARIABLE} to the folder above '{folder}'. {remedy}",
            )
        root = Path(base) / folder
    root = Path(root).expanduser()
    if not root.is_dir():
        raise DatasetNotFoundError.of(owner, root, [], remedy)
    return root


def labelled_rows(task: str, length: int, share: float, seed: int) -> Tensor:
    """Return which of ``length`` samples keep a task's label; a smaller share keeps a subset of a larger one's."""
    stream = Generator().manual_seed(mix_seed(seed, zlib.crc32(task.encode())))
    chosen = torch.randperm(length, generator=stream)[: round(share * length)]
    return torch.zeros(length, dtype=torch.bool).index_fill_(0, chosen, True)


class PartialLabels(Dataset[Sample]):
    """A data set in which some samples lack the label of some tasks.

    Which ones follows from the seed and the task's name, and a smaller fraction keeps a subset of a larger one's.

    Args:
        dataset: Yields ``(inputs, targets)``.
        fraction: Task -> fraction of the samples that keep this task's label; the number is rounded.
        ignore_values: Task -> value that means "no label"; fills the targets of the others. None replaces the target.
        seed: Seed of the choice.
    """

    def __init__(
        self,
        dataset: Dataset[Sample],
        fraction: Mapping[str, float],
        ignore_values: Mapping[str, float | None],
        seed: int = 0,
    ) -> None:
        self.dataset = dataset
        self.ignore_values = dict(ignore_values)
        length = len(cast(Sized, dataset))
        self.labelled = {task: labelled_rows(task, length, share, seed) for task, share in fraction.items()}

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(cast(Sized, self.dataset))

    def __getitem__(self, index: int) -> Sample:
        """Return a sample, its absent labels filled with the ignore value."""
        inputs, targets = self.dataset[index]
        for task, labelled in self.labelled.items():
            if task in targets and not labelled[index]:
                value = self.ignore_values[task]
                absent = None if value is None else torch.full_like(torch.as_tensor(targets[task]), value)
                targets = {**targets, task: absent}
        return inputs, targets


class LoaderOptions(TypedDict, total=False):
    """Options of the loaders that all data modules have in common.

    Attributes:
        batch_size: Samples per batch and process; 8 by default.
        num_workers: Processes that load data; None (default) takes one per available core, at most 8, and none on one
            core.
        pin_memory: Whether batches are copied to pinned memory; None (default) does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None (default) does so when there are any.
        seed: Seed of order, augmentation and everything generated; 0 by default.
        drop_last: Leave out the last training batch when it is smaller than the others; True by default.
        label_fraction: Task -> fraction of the training samples that keep this task's label; tasks not named keep all.
    """

    batch_size: int
    num_workers: int | None
    pin_memory: bool | None
    persistent_workers: bool | None
    seed: int
    drop_last: bool
    label_fraction: dict[str, float] | None


class MultiTaskDataModule(LightningDataModule, ABC):
    """Data of a multi-task problem: batches ``(inputs, targets)``, where ``targets`` maps task name to target.

    Subclasses implement :meth:`make_dataset`. The training loader is exactly resumable in the middle of an epoch: order
    and augmentation of every sample follow from (seed, epoch, index) alone, whatever the number of workers.

    Args:
        batch_size: Samples per batch and process.
        num_workers: Processes that load data; None takes one per available core, at most 8, and none on one core.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of order, augmentation and everything generated.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training samples that keep this task's label, for studies of partial
            supervision; other samples get the ignore value. Tasks not named keep all labels.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        The module shards by itself over the processes of the Trainer (:class:`SeededSampler`), so
        ``Trainer(use_distributed_sampler=...)`` makes no difference. Validation and test samples are seen exactly once
        over all processes, hence some processes may have one batch fewer: do not call collectives in every
        ``validation_step``.
    """

    def __init__(
        self,
        *,
        batch_size: int = 8,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
        drop_last: bool = True,
        label_fraction: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if batch_size < 1:
            raise ValueError(f"{name}: batch_size must be at least 1, got {batch_size}.")
        if num_workers is None:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            num_workers = 0 if cores == 1 else min(cores, 8)
        if num_workers < 0:
            raise ValueError(f"{name}: num_workers must be at least 0, got {num_workers}.")
        if persistent_workers and not num_workers:
            raise ValueError(f"{name}: persistent_workers must be False when num_workers is 0; leave it out.")
        for task, share in (label_fraction or {}).items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name}: label_fraction must be in [0, 1], got {share} for task '{task}'.")
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.persistent_workers = num_workers > 0 if persistent_workers is None else persistent_workers
        self.seed = seed
        self.drop_last = drop_last
        self.label_fraction = label_fraction or {}
        self.datasets: dict[Split, Dataset[Sample]] = {}
        self._stateful_sampler: StatefulSampler | None = None
        self._sampler_state: dict[str, Any] | None = None

    @abstractmethod
    def make_dataset(self, split: Split) -> Dataset[Sample]:
        """Return the data set of a split, a map-style data set of ``(inputs, targets)``."""

    @property
    def ignore_values(self) -> Mapping[str, float | None]:
        """Task -> value of a target without label, None for None itself; by default no label can be left out."""
        return {}

    def collate(self, samples: list[Sample]) -> Any:
        """Join samples into a batch; ``default_collate`` unless overridden."""
        return default_collate(samples)

    def setup(self, stage: str | None = None) -> None:
        """Build the data sets that ``stage`` needs and that are not there yet."""
        for split in _SPLITS_OF_STAGE[stage]:
            if split not in self.datasets:
                self.datasets[split] = self._checked(split, self.make_dataset(split))

    def _checked(self, split: Split, dataset: Dataset[Sample]) -> Dataset[Sample]:
        name = type(self).__name__
        length = len(cast(Sized, dataset))
        if length == 0:
            raise EmptySplitError(
                f"{name}: split '{split}' must hold at least one sample, got 0; check the split's list or its size."
            )
        if split != "train":
            return dataset
        for task in self.label_fraction:
            if task not in self.ignore_values:
                raise ValueError(
                    f"{name}: label_fraction must name tasks whose labels can be left out "
                    f"({', '.join(sorted(self.ignore_values)) or 'none here'}), got '{task}'."
                )
        return self.partly_labelled(dataset) if self.label_fraction else dataset

    def partly_labelled(self, dataset: Dataset[Sample]) -> Dataset[Sample]:
        """Return the training data with the labels that ``label_fraction`` leaves."""
        return PartialLabels(dataset, self.label_fraction, self.ignore_values, self.seed)

    def make_loader(self, split: Split) -> ResumableDataLoader:
        """Return a loader over a split that has been set up.

        Raises:
            RuntimeError: If :meth:`setup` was not called for it.
        """
        if split not in self.datasets:
            raise RuntimeError(f"{type(self).__name__}: split '{split}' is not set up; call setup() first.")
        return self.loader_over(self.datasets[split], train=split == "train")

    def loader_over(self, dataset: Dataset[Sample], train: bool) -> ResumableDataLoader:
        """Return a loader over a data set of samples, in the form of this module's loaders.

        Args:
            dataset: A map-style data set of ``(inputs, targets)``.
            train: Whether it is shuffled, and padded to the same length on all processes.

        Raises:
            ValueError: If there are fewer training samples than make a batch.
        """
        sampler = SeededSampler(
            cast(Sized, dataset), seed=self.seed, shuffle=train, pad=train, fixed_streams=not train, **self._shards()
        )
        if train and self.drop_last and len(sampler) < self.batch_size:
            raise ValueError(
                f"{type(self).__name__}: batch_size must be at most the {len(sampler)} training samples of a process, "
                f"got {self.batch_size}; lower it or set drop_last=False."
            )
        return self._new_loader(dataset, sampler, self.collate, self.batch_size, train and self.drop_last)

    def _shards(self) -> dict[str, Any]:
        """Return the number and the rank of the Trainer's processes for a sampler, nothing without a Trainer."""
        return (None if self.trainer is None else self.trainer.distributed_sampler_kwargs) or {}

    def _new_loader(
        self,
        dataset: Dataset[Sample],
        sampler: Sampler[Any],
        collate: Callable[[list[Sample]], Any],
        batch_size: int | None = None,
        drop_last: bool = False,
    ) -> ResumableDataLoader:
        """Return a loader with this module's options; without a batch size the sampler gives whole batches."""
        return ResumableDataLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            collate_fn=collate,
            pin_memory=self.pin_memory,
            drop_last=drop_last,
            persistent_workers=self.persistent_workers,
            generator=Generator().manual_seed(self.seed),
        )

    def train_dataloader(self) -> ResumableDataLoader:
        """Return the training loader: shuffled, augmented, resumable."""
        loader = self.make_loader("train")
        self._stateful_sampler = loader.sampler if isinstance(loader.sampler, StatefulSampler) else None
        if self._stateful_sampler is not None and self._sampler_state is not None:
            self._stateful_sampler.load_state_dict(self._sampler_state)
            self._sampler_state = None
        return loader

    def state_dict(self) -> dict[str, Any]:
        """Return the state of a training sampler that has one; Lightning stores it in checkpoints.

        The loader's own state is not restored from a checkpoint that was written at the end of an epoch.
        """
        return {} if self._stateful_sampler is None else {"sampler": self._stateful_sampler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state of the training sampler until its loader is made."""
        self._sampler_state = state_dict["sampler"]

    def val_dataloader(self) -> ResumableDataLoader:
        """Return the validation loader."""
        return self.make_loader("val")

    def test_dataloader(self) -> ResumableDataLoader:
        """Return the test loader."""
        return self.make_loader("test")

    def predict_dataloader(self) -> ResumableDataLoader:
        """Return the prediction loader; its batches have the same form as the others."""
        return self.make_loader("predict")
