"""Data sets that fit in memory as a few tensors, and full-batch training on them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

from lightning_mtl.data.base import MultiTaskDataModule, Sample, Split


class Table(Dataset[Sample]):
    """Inputs and targets as whole tensors; a batch is taken out in one go instead of sample by sample.

    Args:
        inputs: ``(n, ...)``, or name -> ``(n, ...)`` where there are several.
        targets: Task -> ``(n, ...)``.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> import torch
        >>> table = Table(torch.arange(4.0), {"double": 2 * torch.arange(4)})
        >>> table[3]
        (tensor(3.), {'double': tensor(6)})
    """

    def __init__(self, inputs: Tensor | Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
        columns = {"inputs": inputs} if isinstance(inputs, Tensor) else dict(inputs)
        self._length = len(next(iter(columns.values())))
        lengths = {name: len(column) for name, column in {**columns, **targets}.items()}
        if wrong := {name: length for name, length in lengths.items() if length != self._length}:
            raise ValueError(f"Table: targets must have the length of the inputs, {self._length}, got {wrong}.")
        self.inputs: Any = inputs if isinstance(inputs, Tensor) else columns
        self.targets = dict(targets)

    def __len__(self) -> int:
        """Return the number of samples."""
        return self._length

    def _rows(self, rows: int | list[int]) -> tuple[Any, dict[str, Tensor]]:
        whole = isinstance(self.inputs, Tensor)
        inputs = self.inputs[rows] if whole else {name: column[rows] for name, column in self.inputs.items()}
        return inputs, {task: target[rows] for task, target in self.targets.items()}

    def __getitem__(self, index: int) -> Sample:
        """Return a sample."""
        return self._rows(index)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Any, dict[str, Tensor]]:
        """Return a whole batch; ``torch.utils.data.DataLoader`` asks for it where it is there."""
        return self._rows([int(index) for index in indices])


class TableDataModule(MultiTaskDataModule):
    """A data module whose splits are tables, with the whole training set as the default batch.

    Subclasses set up what :meth:`make_dataset` needs before they call this constructor.

    Args:
        num_train: Number of training samples.
        batch_size: Samples per batch and process; None takes all of them (full-batch training).
        num_workers: Processes that load data.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of everything drawn and of the order.
        drop_last: Leave out the last training batch when it is smaller than the others. No meaning for full batches.
        label_fraction: Task -> fraction of the training samples that keep this task's label.
    """

    def __init__(
        self,
        num_train: int,
        *,
        batch_size: int | None,
        num_workers: int | None,
        pin_memory: bool | None,
        persistent_workers: bool | None,
        seed: int,
        drop_last: bool,
        label_fraction: dict[str, float] | None,
    ) -> None:
        super().__init__(
            batch_size=num_train if batch_size is None else batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            seed=seed,
            # of several processes each has its share of the full batch, which is smaller than batch_size
            drop_last=drop_last and batch_size is not None,
            label_fraction=label_fraction,
        )

    @abstractmethod
    def make_dataset(self, split: Split) -> Table:
        """Return the table of a split."""

    def collate(self, samples: Any) -> Any:
        """Return a batch that a table has already joined as it is; join single samples."""
        return samples if isinstance(samples, tuple) else super().collate(samples)
