"""Several data sets, one a task, in one training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any, cast, overload

from torch.utils.data import Dataset

from lightning_mtl.data.base import MultiTaskDataModule, Sample, Split
from lightning_mtl.data.loader import ResumableDataLoader
from lightning_mtl.data.samplers import (
    ProportionalSampling,
    SampleIndex,
    SequentialTaskSampler,
    TaskSampler,
    TaskSampling,
)

_STAGES: dict[Split, str] = {"train": "fit", "val": "validate", "test": "test", "predict": "predict"}


class TaskConcat(Dataset[Sample]):
    """The data sets of several tasks one after the other, of which a whole batch is taken at once.

    A sample's random stream (:class:`SampleIndex`) is handed on to its data set.

    Args:
        datasets: Task -> map-style data set of ``(inputs, {task: target})``; others of its targets are left out.

    Raises:
        ValueError: If a sample lacks the target of its task, and has not one target alone.

    Example:
        >>> import torch
        >>> from lightning_mtl.data.table import Table
        >>> tables = {name: Table(torch.arange(3.0), {name: torch.arange(3)}) for name in ("a", "b")}
        >>> TaskConcat(tables)[[1, 5]]
        [(tensor(1.), {'a': tensor(1)}), (tensor(2.), {'b': tensor(2)})]
    """

    def __init__(self, datasets: Mapping[str, Dataset[Sample]]) -> None:
        self.datasets = dict(datasets)
        self.lengths = {task: len(cast(Sized, dataset)) for task, dataset in datasets.items()}

    def __len__(self) -> int:
        """Return the number of samples of all data sets."""
        return sum(self.lengths.values())

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: Sequence[int]) -> list[Sample]: ...
    def __getitem__(self, index: int | Sequence[int]) -> Sample | list[Sample]:
        """Return a sample, or the samples of a batch."""
        if not isinstance(index, int):
            return [self[one] for one in index]
        place = int(index)
        for task, length in self.lengths.items():
            if place < length:
                own = SampleIndex(place, index.seed) if isinstance(index, SampleIndex) else place
                return self._sample(task, own)
            place -= length
        raise IndexError(f"TaskConcat: index must be below {len(self)}, got {int(index)}.")

    def _sample(self, task: str, index: int) -> Sample:
        inputs, targets = self.datasets[task][index]
        if task in targets:
            return inputs, {task: targets[task]}
        if len(targets) != 1:
            raise ValueError(
                f"TaskConcat: the data set of task {task!r} must have a target of that name or one target alone, got "
                f"{list(targets)}."
            )
        return inputs, {task: next(iter(targets.values()))}


class TaskMixtureDataModule(MultiTaskDataModule):
    """Several data modules, one a task, drawn from in one training.

    Every step trains one task, or, with ``mixed=True``, a batch of samples of several tasks, which then has the form
    ``{task: (inputs, {task: target})}``. Evaluation goes through the tasks one after the other.

    Args:
        sources: Task -> data module. It gives the target of that name, or its only target, and collates; its own
            options about loaders are not used.
        batch_size: Samples per batch and process.
        batch_sizes: Task -> samples per batch and process where they are others; unmixed batches only.
        sampling: How often every task is drawn; in proportion to its number of samples by default.
        mixed: Whether a batch holds samples of several tasks.
        steps_per_epoch: Steps of an epoch; by default as many as one pass over all data sets has full batches, of all
            processes together.
        batches_per_draw: Consecutive steps that train the drawn task; set it to the Trainer's
            ``accumulate_grad_batches`` where every update shall be of one task.
        num_workers: Processes that load data.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of draws, order and augmentation.

    Raises:
        ValueError: If there is no source, or an argument is out of range.

    Example:
        >>> from lightning_mtl.data import TwoGlyphDataModule
        >>> sources = {task: TwoGlyphDataModule(num_train=90, num_val=10) for task in ("left", "right")}
        >>> data = TaskMixtureDataModule(sources, batch_size=30, num_workers=0)
        >>> data.setup("fit")
        >>> [(images.shape[0], *targets) for images, targets in data.train_dataloader()]
        [(30, 'left'), (30, 'left'), (30, 'left'), (30, 'left'), (30, 'left'), (30, 'right')]
    """

    def __init__(
        self,
        sources: dict[str, MultiTaskDataModule],
        *,
        batch_size: int = 8,
        batch_sizes: dict[str, int] | None = None,
        sampling: TaskSampling | None = None,
        mixed: bool = False,
        steps_per_epoch: int | None = None,
        batches_per_draw: int = 1,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            seed=seed,
        )
        if not sources:
            raise ValueError("TaskMixtureDataModule: sources must hold at least one data module, got none.")
        if unknown := sorted(set(batch_sizes or {}) - set(sources)):
            raise ValueError(
                f"TaskMixtureDataModule: batch_sizes must name tasks of {list(sources)}, got {', '.join(unknown)}."
            )
        if mixed and batch_sizes:
            raise ValueError("TaskMixtureDataModule: batch_sizes must be left out for mixed batches; set batch_size.")
        self.sources = dict(sources)
        self.batch_sizes = {task: (batch_sizes or {}).get(task, batch_size) for task in sources}
        self.sampling = ProportionalSampling() if sampling is None else sampling
        self.mixed = mixed
        self.steps_per_epoch = steps_per_epoch
        self.batches_per_draw = batches_per_draw

    @property
    def task_ratios(self) -> dict[str, float]:
        """Task -> probability of a draw in the epoch under way; known once the training data are set up."""
        if isinstance(self._stateful_sampler, TaskSampler):
            return dict(self._stateful_sampler.ratios)
        if "train" not in self.datasets:
            raise RuntimeError("TaskMixtureDataModule: the training split is not set up; call setup('fit') first.")
        return self.sampling.probabilities(cast(TaskConcat, self.datasets["train"]).lengths, 0)

    def prepare_data(self) -> None:
        """Let every source prepare its data."""
        for source in self.sources.values():
            source.prepare_data()

    def make_dataset(self, split: Split) -> TaskConcat:
        """Return the data sets of a split, one a task."""
        datasets = {}
        for task, source in self.sources.items():
            source.setup(_STAGES[split])
            datasets[task] = source.datasets[split]
        return TaskConcat(datasets)

    def collate(self, samples: list[Sample] | Sample) -> Any:
        """Join samples into one batch, or one batch a task where they are of several.

        A sample alone is a batch of one: with ``overfit_batches`` Lightning puts a sampler of single samples in place.
        """
        groups: dict[str, list[Sample]] = {}
        for sample in samples if isinstance(samples, list) else [samples]:
            groups.setdefault(next(iter(sample[1])), []).append(sample)
        batches = {task: self.sources[task].collate(groups[task]) for task in self.sources if task in groups}
        return next(iter(batches.values())) if len(batches) == 1 else batches

    def loader_over(self, dataset: Dataset[Sample], train: bool) -> ResumableDataLoader:
        """Return a loader over a :class:`TaskConcat` that draws tasks, or, for evaluation, goes through them.

        Any other data set is gone through as other data modules do it.
        """
        if not isinstance(dataset, TaskConcat):
            return super().loader_over(dataset, train)
        sampler: TaskSampler | SequentialTaskSampler
        if train:
            sampler = TaskSampler(
                dataset.lengths,
                self.batch_size if self.mixed else self.batch_sizes,
                self.sampling,
                mixed=self.mixed,
                steps_per_epoch=self.steps_per_epoch,
                batches_per_draw=self.batches_per_draw,
                seed=self.seed,
                **self._shards(),
            )
        else:
            sampler = SequentialTaskSampler(dataset.lengths, self.batch_sizes, seed=self.seed, **self._shards())
        return self._new_loader(dataset, sampler, self.collate)
