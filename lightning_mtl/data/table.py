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
        inputs: ``(n, ...)``.
        targets: Task -> ``(n, ...)``.

    Raises:
        ValueError: If the lengths differ.

    Example:
        >>> import torch
        >>> table = Table(torch.arange(4.0), {"double": 2 * torch.arange(4)})
        >>> table[3]
        (tensor(3.), {'double': tensor(6)})
    """

    def __init__(self, inputs: Tensor, targets: Mapping[str, Tensor]) -> None:
        lengths = {task: len(target) for task, target in targets.items()}
        if set(lengths.values()) - {len(inputs)}:
            raise ValueError(f"Table: targets must have the length of the inputs, {len(inputs)}, got {lengths}.")
        self.inputs = inputs
        self.targets = dict(targets)

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.inputs)

    def __getitem__(self, index: int) -> Sample:
        """Return a sample."""
        return self.inputs[index], {task: target[index] for task, target in self.targets.items()}

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return a whole batch; ``torch.utils.data.DataLoader`` asks for it where it is there."""
        rows = [int(index) for index in indices]
        return self.inputs[rows], {task: target[rows] for task, target in self.targets.items()}


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
