"""Arithmetic modulo p on all pairs of residues, part of which is held out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from lightning_mtl.data.base import Split
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.data.table import Table, TableDataModule

Operation = Literal["add", "sub", "mul", "div"]


class ModularArithmeticDataModule(TableDataModule):
    r"""Compute :math:`a \circ b \bmod p` for pairs of residues, one task an operation.

    All pairs are shuffled with the seed; the first ``train_fraction`` of them is for training, the rest is halved into
    validation and test. Whether, and when, a network generalizes to the held-out pairs depends on the fraction.
    Targets are classes ``(B,)`` int64 in 0..p-1, -100 without label, or with ``one_hot_targets`` their one-hot vectors
    ``(B, p)`` float32, NaN without label. Inputs are

    - with ``one_hot`` two one-hot vectors side by side, ``(B, 2p)`` float32;
    - else the sequence of tokens ``a b =``, ``(B, 3)`` int64, ``=`` being token p of a vocabulary of p + 1.

    Args:
        p: Modulus, at least 2.
        operations: ``"add"``, ``"sub"``, ``"mul"``, ``"div"``; the task has the operation's name. Division is
            multiplication with the inverse; it needs a prime p and leaves out the pairs with b = 0.
        train_fraction: Share of the pairs for training, in (0, 1).
        one_hot: Form of the inputs.
        one_hot_targets: Form of the targets: vectors for a squared error rather than classes.
        batch_size: Samples per batch and process; None takes the whole training set.
        num_workers: Processes that load data. The samples are in memory.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of the split and of the order.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training samples that keep this task's label.

    Raises:
        ValueError: If an argument is out of range, or a split would be empty.

    Note:
        Pairs are held out one by one: a + b may be in training and b + a in the test.

    Example:
        >>> data = ModularArithmeticDataModule(p=5, operations=["add", "div"], train_fraction=0.5)
        >>> data.setup("fit")
        >>> inputs, targets = next(iter(data.train_dataloader()))
        >>> inputs.shape, {task: target.shape for task, target in targets.items()}
        (torch.Size([10, 10]), {'add': torch.Size([10]), 'div': torch.Size([10])})

    References:
        Power, Burda, Edwards, Babuschkin, Misra. *Grokking: Generalization Beyond Overfitting on Small Algorithmic
        Datasets*. 2022. https://arxiv.org/abs/2201.02177
    """

    def __init__(
        self,
        p: int = 23,
        operations: Sequence[Operation] = ("add",),
        train_fraction: float = 0.6,
        one_hot: bool = True,
        one_hot_targets: bool = False,
        *,
        batch_size: int | None = None,
        num_workers: int | None = 0,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
        drop_last: bool = True,
        label_fraction: dict[str, float] | None = None,
    ) -> None:
        name = type(self).__name__
        if p < 2:
            raise ValueError(f"{name}: p must be at least 2, got {p}.")
        if not operations or not set(operations) <= {"add", "sub", "mul", "div"}:
            raise ValueError(
                f"{name}: operations must name at least one of 'add', 'sub', 'mul', 'div', got {list(operations)}."
            )
        if "div" in operations and any(p % factor == 0 for factor in range(2, int(p**0.5) + 1)):
            raise ValueError(f"{name}: p must be a prime for 'div', got {p}; choose a prime, or leave 'div' out.")
        if not 0 < train_fraction < 1:
            raise ValueError(f"{name}: train_fraction must be between 0 and 1, got {train_fraction}.")
        pairs = p * (p - 1) if "div" in operations else p * p
        num_train = round(train_fraction * pairs)
        num_val = (pairs - num_train) // 2
        if min(num_train, num_val) < 1:
            raise ValueError(
                f"{name}: train_fraction must leave pairs for all splits, got {train_fraction} of {pairs} pairs."
            )
        super().__init__(
            num_train,
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            seed=seed,
            drop_last=drop_last,
            label_fraction=label_fraction,
        )
        self.p = p
        self.operations = tuple(operations)
        self.one_hot = one_hot
        self.one_hot_targets = one_hot_targets
        self._bounds: dict[Split, tuple[int, int]] = {
            "train": (0, num_train),
            "val": (num_train, num_train + num_val),
            "test": (num_train + num_val, pairs),
            "predict": (num_train + num_val, pairs),
        }

    @property
    def num_classes(self) -> int:
        """Number of classes of every task."""
        return self.p

    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return dict.fromkeys(self.operations, float("nan") if self.one_hot_targets else -100.0)

    def make_dataset(self, split: Split) -> Table:
        """Return the pairs of a split."""
        pairs = torch.cartesian_prod(torch.arange(self.p), torch.arange("div" in self.operations, self.p))
        order = torch.randperm(len(pairs), generator=Generator().manual_seed(mix_seed(self.seed)))
        first, second = pairs[order[slice(*self._bounds[split])]].unbind(1)
        if self.one_hot:
            inputs = torch.cat([F.one_hot(first, self.p), F.one_hot(second, self.p)], 1).float()
        else:
            inputs = torch.stack([first, second, torch.full_like(first, self.p)], 1)
        targets: dict[str, Tensor] = {name: self._answer(name, first, second) for name in self.operations}
        if self.one_hot_targets:
            targets = {operation: F.one_hot(answer, self.p).float() for operation, answer in targets.items()}
        return Table(inputs, targets)

    def _answer(self, operation: Operation, first: Tensor, second: Tensor) -> Tensor:
        if operation == "add":
            return (first + second) % self.p
        if operation == "sub":
            return (first - second) % self.p
        if operation == "mul":
            return (first * second) % self.p
        inverses = torch.tensor([pow(int(b), -1, self.p) for b in second], dtype=torch.int64)
        return (first * inverses) % self.p
