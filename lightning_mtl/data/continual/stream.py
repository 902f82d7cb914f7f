"""A sequence of tasks as one run of a Trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Generator, Tensor
from torch.utils.data import Dataset, default_collate

from lightning_mtl.data.base import MultiTaskDataModule, Sample, Split
from lightning_mtl.data.continual.domains import DomainShift
from lightning_mtl.data.continual.sources import ClassificationSource, LabelledDataset
from lightning_mtl.data.loader import ResumableDataLoader
from lightning_mtl.data.samplers import SampleIndex, mix_seed

Scheme = Literal["class", "task", "domain", "blurry"]
IGNORED = -100


class StreamDataset(Dataset[Sample]):
    """The samples of all tasks of a stream, task after task.

    Args:
        data: Inputs and classes.
        rows: For every task, which samples of ``data`` are its own.
        scheme: What the targets are; see :class:`TaskStream`.
        classes: Task -> its classes.
        shift: Change of the input by task; None leaves it alone.
    """

    def __init__(
        self,
        data: LabelledDataset,
        rows: Sequence[Tensor],
        scheme: Scheme,
        classes: Sequence[Sequence[int]],
        shift: DomainShift | None = None,
    ) -> None:
        self.data = data
        self.scheme = scheme
        self.shift = shift
        self.rows = torch.cat(list(rows)).tolist()
        self.task = [task for task, own in enumerate(rows) for _ in range(len(own))]
        self.num_tasks = len(rows)
        self.local = [{label: i for i, label in enumerate(own)} for own in classes]

    def __len__(self) -> int:
        """Return the number of samples of all tasks."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        """Return input and targets; those of a task-incremental stream hold -100 for all tasks but the sample's own."""
        task = self.task[index]
        row = self.rows[index]
        inputs, label = self.data[SampleIndex(row, index.seed) if isinstance(index, SampleIndex) else row]
        if self.shift is not None:
            inputs = self.shift(inputs, task, self.num_tasks)
        if self.scheme != "task":
            return inputs, {"class": torch.tensor(label)}
        targets = {f"task{t}": torch.tensor(IGNORED) for t in range(self.num_tasks)}
        targets[f"task{task}"] = torch.tensor(self.local[task][label])
        return inputs, targets


class _Part(Dataset[Sample]):
    """Some samples of a data set, which keep their random streams."""

    def __init__(self, dataset: Dataset[Sample], rows: Sequence[int]) -> None:
        self.dataset = dataset
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        row = self.rows[index]
        return self.dataset[SampleIndex(row, index.seed) if isinstance(index, SampleIndex) else row]


class TaskStream(MultiTaskDataModule):
    """Show a classification data set as a sequence of tasks, ``epochs_per_task`` epochs each, in one ``fit``.

    ========== ===================================================================== ==================================
    scheme     a task is                                                             targets
    ========== ===================================================================== ==================================
    class      a group of classes; one head must tell all classes apart              ``{"class": label}``
    task       a group of classes; every task has a head, and it is told which       ``{"task0": ..., "task1": ...}``,
                                                                                     -100 for all but one of them
    domain     all classes, with inputs from another domain                          ``{"class": label}``
    blurry     a group of classes, and a few samples of all others                   ``{"class": label}``
    ========== ===================================================================== ==================================

    The training loader is that of the current task; the data module has the Trainer ask for it in every epoch
    (``reload_dataloaders_every_n_epochs``), and the Trainer needs ``max_epochs = num_tasks * epochs_per_task``.
    Callbacks read ``current_task``, ``num_tasks``, ``epochs_per_task``, ``num_training_samples``,
    ``num_training_steps()`` and ``task_dataloaders()``; they do not ask for this class.

    Args:
        source: The data set.
        scheme: What a task is.
        num_tasks: Number of tasks; None takes the groups or domains of the data set (Omniglot: alphabets).
        epochs_per_task: Epochs of every task.
        class_order: The classes in the order in which they are dealt out to tasks; None takes 0, 1, 2, ...
        shift: For ``scheme="domain"``, how the inputs of a task differ; None takes the domains of the data set.
        blur: For ``scheme="blurry"``, which share of a task's samples is spread over the other tasks.
        samples_per_class: Use only so many training samples of each class; None uses all.
        val_fraction: Share of the training samples of every class that validates.
        evaluate: Validate on the tasks seen so far, on the current one, or on all. Testing is on all.
        plain: Give batches ``(inputs, labels)`` instead of ``(inputs, {name: labels})``, for modules that know nothing
            of this package; with ``scheme="task"`` they are ``(inputs, labels, task)`` with the label among all
            classes.
        batch_size: Samples per batch and process.
        num_workers: Processes that load data; None takes one per available core, at most 8.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of order, split and blur.
        drop_last: Leave out the last training batch of an epoch when it is smaller than the others.
        label_fraction: Task -> fraction of the training samples that keep this task's label.

    Raises:
        ValueError: If an argument is out of range or does not go with the scheme.
        MisconfigurationException: If the Trainer's ``max_epochs`` does not fit the stream.

    Note:
        With gradient accumulation, Lightning steps at the end of every epoch, so no step mixes two tasks.

    Example:
        >>> from lightning_mtl.data import TextureCrops
        >>> stream = TaskStream(TextureCrops(num_classes=6), num_tasks=3, batch_size=16, num_workers=0)
        >>> stream.setup("fit")
        >>> stream.classes, sorted(next(iter(stream.train_dataloader()))[1]["class"].unique().tolist())
        ([[0, 1], [2, 3], [4, 5]], [0, 1])

    References:
        van de Ven, Tuytelaars, Tolias. *Three types of incremental learning*. Nature Machine Intelligence 4, 2022.
        https://doi.org/10.1038/s42256-022-00568-3. Bang, Kim, Yoo, Ha, Choi. *Rainbow Memory: Continual Learning with a
        Memory of Diverse Samples*. CVPR 2021. https://arxiv.org/abs/2103.17230 (blurry streams).
    """

    def __init__(
        self,
        source: ClassificationSource,
        scheme: Scheme = "class",
        num_tasks: int | None = 5,
        epochs_per_task: int = 1,
        class_order: Sequence[int] | None = None,
        shift: DomainShift | None = None,
        blur: float = 0.1,
        samples_per_class: int | None = None,
        val_fraction: float = 0.1,
        evaluate: Literal["seen", "current", "all"] = "seen",
        plain: bool = False,
        *,
        batch_size: int = 32,
        num_workers: int | None = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
        drop_last: bool = False,
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
        for name, value, choices in (
            ("scheme", scheme, ("class", "task", "domain", "blurry")),
            ("evaluate", evaluate, ("seen", "current", "all")),
        ):
            if value not in choices:
                raise ValueError(f"TaskStream: {name} must be one of {', '.join(choices)}, got {value!r}.")
        counts = {"num_tasks": num_tasks, "epochs_per_task": epochs_per_task, "samples_per_class": samples_per_class}
        for name, number in counts.items():
            if number is not None and number < 1:
                raise ValueError(f"TaskStream: {name} must be at least 1, got {number}.")
        if not 0 < val_fraction < 1:
            raise ValueError(f"TaskStream: val_fraction must be between 0 and 1, got {val_fraction}.")
        if not 0 <= blur < 1:
            raise ValueError(f"TaskStream: blur must be in [0, 1), got {blur}.")
        if shift is not None and scheme != "domain":
            raise ValueError(f"TaskStream: shift must be None for scheme {scheme!r}; set scheme='domain'.")
        self.source = source
        self.scheme: Scheme = scheme
        self.epochs_per_task = epochs_per_task
        self.class_order = None if class_order is None else list(class_order)
        self.shift = shift
        self.blur = blur
        self.samples_per_class = samples_per_class
        self.val_fraction = val_fraction
        self.evaluate = evaluate
        self.plain = plain
        self._wanted_tasks = num_tasks
        self._read: dict[bool, LabelledDataset] = {}
        self._classes: list[list[int]] | None = None
        self._tasks_of: dict[Split, Tensor] = {}
        self._loaders: dict[tuple[str, int], ResumableDataLoader] = {}
        self._task = 0

    # ------------------------------------------------------------------ the stream
    @property
    def classes(self) -> list[list[int]]:
        """The classes of every task. They are read from the data set when they are first asked for."""
        if self._classes is None:
            self._classes = self._deal()
        return self._classes

    @property
    def num_tasks(self) -> int:
        """Number of tasks."""
        return len(self.classes)

    @property
    def num_classes(self) -> int:
        """Number of classes of the data set."""
        return self.source.num_classes

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the targets."""
        return tuple(f"task{t}" for t in range(self.num_tasks)) if self.scheme == "task" else ("class",)

    @property
    def current_task(self) -> int:
        """Number of the task that is trained now: that of the Trainer's epoch, or the one set by :meth:`set_task`."""
        if self.trainer is not None and self.trainer.state.fn == "fit":
            return min(self.trainer.current_epoch // self.epochs_per_task, self.num_tasks - 1)
        return self._task

    def set_task(self, task: int) -> None:
        """Choose the task of the training loader, for loops without a Trainer.

        Raises:
            ValueError: If there is no such task.
        """
        if not 0 <= task < self.num_tasks:
            raise ValueError(f"TaskStream: task must be 0 to {self.num_tasks - 1}, got {task}.")
        self._task = task

    @property
    def num_training_samples(self) -> int:
        """Number of training samples of all tasks."""
        return len(self._tasks_of["train"])

    def num_training_steps(self) -> int:
        """Return the number of optimizer steps of the whole stream in the Trainer of this data module.

        Lightning's own estimate takes all tasks to be as long as the first.

        Raises:
            RuntimeError: If the data module is not attached to a Trainer.
        """
        trainer = cast(Any, self.trainer)
        if trainer is None:
            raise RuntimeError("TaskStream: num_training_steps needs a Trainer; pass the data module to Trainer.fit.")
        limit = trainer.limit_train_batches
        steps = 0
        for task in range(self.num_tasks):
            batches = len(self._loader("train", task))
            batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
            steps += self.epochs_per_task * math.ceil(batches / trainer.accumulate_grad_batches)
        return steps if trainer.max_steps < 0 else min(steps, trainer.max_steps)

    def _deal(self) -> list[list[int]]:
        """Return the classes of every task."""
        order = list(range(self.num_classes)) if self.class_order is None else self.class_order
        if sorted(set(order)) != sorted(order) or not set(order) <= set(range(self.num_classes)):
            raise ValueError(
                f"TaskStream: class_order must hold classes 0..{self.num_classes - 1}, each at most once, got {order}."
            )
        if self.scheme == "domain":
            domains = self._part(train=True).domains
            if self.shift is None and domains is None:
                raise ValueError(
                    f"TaskStream: {type(self.source).__name__} has no domains; pass shift=, for example "
                    "PermutedPixels() or Rotation()."
                )
            count = self._wanted_tasks if self.shift is not None or domains is None else int(domains.max()) + 1
            if count is None:
                raise ValueError("TaskStream: num_tasks must be given for scheme 'domain' with a shift, got None.")
            return [list(order) for _ in range(count)]
        if self._wanted_tasks is None:
            groups = self.source.groups
            if groups is None:
                raise ValueError(
                    f"TaskStream: num_tasks must be given, since {type(self.source).__name__} has no groups of classes."
                )
            return [[label for label in group if label in set(order)] for group in groups]
        if self._wanted_tasks > len(order):
            raise ValueError(
                f"TaskStream: num_tasks must be at most the number of classes {len(order)}, got {self._wanted_tasks}."
            )
        share, rest = divmod(len(order), self._wanted_tasks)
        ends = [(t + 1) * share + min(t + 1, rest) for t in range(self._wanted_tasks)]
        return [order[start:end] for start, end in zip([0, *ends[:-1]], ends, strict=True)]

    def _part(self, train: bool) -> LabelledDataset:
        if train not in self._read:
            self._read[train] = self.source.read(train)
        return self._read[train]

    # ------------------------------------------------------------------ data
    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return dict.fromkeys(self.tasks, float(IGNORED))

    def collate(self, samples: list[Sample]) -> Any:
        """Join samples into a batch."""
        inputs, targets = default_collate(samples)
        if not self.plain:
            return inputs, targets
        if self.scheme != "task":
            return inputs, targets["class"]
        columns = torch.stack([targets[name] for name in self.tasks], dim=1)
        task = (columns != IGNORED).long().argmax(dim=1)
        local = columns.gather(1, task.unsqueeze(1))[:, 0]
        labels = [self.classes[t][i] if i >= 0 else IGNORED for t, i in zip(task.tolist(), local.tolist(), strict=True)]
        return inputs, torch.tensor(labels), task

    def setup(self, stage: str | None = None) -> None:
        """Build the data sets that ``stage`` needs, and look whether the Trainer fits the stream."""
        super().setup(stage)
        trainer = cast(Any, self.trainer)
        if stage != "fit" or trainer is None:
            return
        self._loaders = {}  # they depend on the number of processes
        trainer.reload_dataloaders_every_n_epochs = 1
        epochs = self.num_tasks * self.epochs_per_task
        if trainer.max_steps < 0 and not 0 <= (trainer.max_epochs or 0) <= epochs:
            raise MisconfigurationException(
                f"TaskStream: the Trainer's max_epochs must be {epochs}, {self.num_tasks} tasks of "
                f"{self.epochs_per_task} epochs, got {trainer.max_epochs}; set max_epochs={epochs}."
            )

    def make_dataset(self, split: Split) -> Dataset[Sample]:
        """Return the samples of all tasks of a split, task after task."""
        data = self._part(train=split in ("train", "val"))
        kept = self._kept_rows(data, split)
        rows = self._rows_of_tasks(data, kept, blurred=split == "train" and self.scheme == "blurry")
        lengths = torch.tensor([len(own) for own in rows])
        if (lengths == 0).any():
            empty = int((lengths == 0).nonzero()[0])
            raise ValueError(
                f"TaskStream: task {empty} has no samples in split '{split}'; raise samples_per_class or val_fraction, "
                "or lower num_tasks."
            )
        self._tasks_of[split] = torch.repeat_interleave(torch.arange(len(rows)), lengths)
        return StreamDataset(data, rows, self.scheme, self.classes, self.shift)

    def _kept_rows(self, data: LabelledDataset, split: Split) -> Tensor:
        """Return the samples of a split: of every class the first share validates, in an order of the seed's."""
        if split in ("test", "predict"):
            return torch.arange(len(data))
        kept = []
        for label in range(self.num_classes):
            own = (data.labels == label).nonzero()[:, 0]
            own = own[torch.randperm(len(own), generator=Generator().manual_seed(mix_seed(self.seed, 1, label)))]
            held_out = round(self.val_fraction * len(own))
            chosen = own[:held_out] if split == "val" else own[held_out:][: self.samples_per_class]
            kept.append(chosen)
        return torch.cat(kept).sort().values

    def _rows_of_tasks(self, data: LabelledDataset, kept: Tensor, blurred: bool) -> list[Tensor]:
        count = self.num_tasks
        if self.scheme == "domain":
            kept = kept[torch.isin(data.labels[kept], torch.tensor(self.classes[0]))]
            if self.shift is not None:  # every domain has all samples
                return [kept] * count
            assert data.domains is not None  # looked at in _deal
            return [kept[data.domains[kept] == number] for number in range(count)]
        task = torch.full((len(kept),), -1)
        for number, labels in enumerate(self.classes):
            task[torch.isin(data.labels[kept], torch.tensor(labels))] = number
        if blurred and count > 1:
            stream = Generator().manual_seed(mix_seed(self.seed, 2))
            original = task.clone()
            for number in range(count):
                own = (original == number).nonzero()[:, 0]
                moved = own[torch.randperm(len(own), generator=stream)[: round(self.blur * len(own))]]
                step = 1 + torch.arange(len(moved)) % (count - 1)
                task[moved] = (number + step) % count
        return [kept[task == number] for number in range(count)]

    # ------------------------------------------------------------------ loaders
    def _rows(self, split: Split, tasks: Sequence[int]) -> list[int]:
        return torch.isin(self._tasks_of[split], torch.tensor(list(tasks))).nonzero()[:, 0].tolist()

    def _loader(self, split: Split, task: int) -> ResumableDataLoader:
        """Return the loader of a task; it is built once, so that its position is kept."""
        if split not in self.datasets:
            raise RuntimeError(f"TaskStream: split '{split}' is not set up; call setup() first.")
        if (split, task) not in self._loaders:
            part = _Part(self.datasets[split], self._rows(split, [task]))
            self._loaders[split, task] = self.loader_over(part, train=split == "train")
        return self._loaders[split, task]

    def train_dataloader(self) -> ResumableDataLoader:
        """Return the training loader of the current task."""
        trainer = self.trainer
        if trainer is not None and trainer.current_epoch >= self.num_tasks * self.epochs_per_task:
            raise MisconfigurationException(
                f"TaskStream: the stream ends after {self.num_tasks * self.epochs_per_task} epochs; set max_epochs to "
                "that."
            )
        return self._loader("train", self.current_task)

    def val_dataloader(self) -> ResumableDataLoader:
        """Return one loader over the tasks that ``evaluate`` names."""
        current = self.current_task
        tasks = {"seen": range(current + 1), "current": [current], "all": range(self.num_tasks)}[self.evaluate]
        if "val" not in self.datasets:
            raise RuntimeError("TaskStream: split 'val' is not set up; call setup() first.")
        return self.loader_over(_Part(self.datasets["val"], self._rows("val", tasks)), train=False)

    def task_dataloaders(self, split: Literal["val", "test"] = "val") -> list[ResumableDataLoader]:
        """Return one loader for every task of a split, in order; the split is set up if it is not.

        Args:
            split: ``"val"`` or ``"test"``.
        """
        if split not in self.datasets:
            self.setup("test" if split == "test" else "validate")
        return [self._loader(split, task) for task in range(self.num_tasks)]
