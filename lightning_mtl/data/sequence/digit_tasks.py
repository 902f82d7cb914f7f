"""Two tasks on rows of digits, one frequent with long answers, one rare with short ones."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from lightning_mtl.data.base import MultiTaskDataModule, Sample, Split
from lightning_mtl.data.loader import ResumableDataLoader
from lightning_mtl.data.samplers import SampleIndex, mix_seed

_STREAMS: dict[Split, int] = {"train": 0, "val": 1, "test": 2, "predict": 2}
PAD, REVERSE, MAX, END = 10, 11, 12, 13
"""Tokens after the ten digits: padding, the two task markers, and the end, which occurs in no sequence."""
MARKERS = {"reverse": REVERSE, "max": MAX}


class DigitTasks(Dataset[Sample]):
    """Rows of digits to reverse, or to find the largest of.

    Args:
        is_max: Which samples are of the task ``max``, boolean, one a sample; the others are of ``reverse``.
        num_digits: Digits of a row.
        split: Splits are disjoint random streams.
        seed: Seed of the digits; with the indices of a sampler of this package every epoch draws new ones.
    """

    def __init__(self, is_max: Tensor, num_digits: int, split: Split, seed: int) -> None:
        self.is_max = is_max
        self.num_digits = num_digits
        self.split: Split = split
        self.seed = seed

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.is_max)

    def __getitem__(self, index: int) -> Sample:
        """Return a sequence without its last token, and for every task the next tokens of its answer."""
        task = "max" if self.is_max[index] else "reverse"
        own = index.seed if isinstance(index, SampleIndex) else int(index)
        stream = Generator().manual_seed(mix_seed(self.seed, _STREAMS[self.split], own))
        digits = torch.randint(10, (self.num_digits,), generator=stream)
        answer = digits.flip(0) if task == "reverse" else digits.max(dim=0, keepdim=True).values
        marker = torch.tensor([MARKERS[task]])
        tokens = torch.cat((marker, digits, marker, answer))
        prompt = self.num_digits + 2
        length = 2 * self.num_digits + 1
        inputs, labels = torch.full((length,), PAD), torch.full((length,), -100)
        inputs[: len(tokens) - 1] = tokens[:-1]
        labels[prompt - 1 : len(tokens) - 1] = answer
        nothing = torch.full_like(labels, -100)
        given = {"input_ids": inputs, "attention_mask": (torch.arange(length) < len(tokens) - 1).long()}
        return given, {name: labels if name == task else nothing for name in MARKERS}


class DigitTasksDataModule(MultiTaskDataModule):
    """Reverse rows of digits, or find their largest digit: two tasks of one causal language model.

    A sequence is the marker of its task, the digits, the marker again, and the answer: all digits in reverse order for
    ``reverse``, one digit for ``max``. With the defaults ``max`` has 1.3 samples in a batch of 32 on average, at least
    one, and as many trained tokens, against some 184 of ``reverse``: what weighs tokens alike drowns it. Data are
    generated without end. In validation and test both tasks have equally many samples.

    The vocabulary has 14 tokens: the digits, padding 10, the markers 11 and 12, and an end token 13 that does not
    occur. A batch is ``({"input_ids": (B, L), "attention_mask": (B, L)}, {task: (B, L)})`` with the next tokens of the
    answer as target, -100 elsewhere, and ``L = 2 num_digits + 1``.

    Args:
        max_share: Probability that a training sample is of ``max``, in (0, 1); every batch has at least one.
        num_digits: Digits of a row.
        num_train: Training sequences in an epoch.
        num_val: Validation sequences of each task.
        num_test: Test sequences of each task, which are the prediction sequences too.
        batch_size: Samples per batch and process, at least 2.
        num_workers: Processes that load data; the sequences are generated at once and need none.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of the digits.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training samples that keep this task's label.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> data = DigitTasksDataModule(num_train=64, num_val=8)
        >>> data.setup("fit")
        >>> inputs, targets = next(iter(data.train_dataloader()))
        >>> inputs["input_ids"].shape, {task: int((target != -100).sum()) for task, target in targets.items()}
        (torch.Size([32, 13]), {'reverse': 180, 'max': 2})

    References:
        Liu et al. *MFTCoder: Boosting Code LLMs with Multitask Fine-Tuning*. KDD 2024.
        https://arxiv.org/abs/2311.02303 (the losses that this shows at work; the tasks are not of the paper).
    """

    tasks = ("reverse", "max")
    vocab_size = 14

    def __init__(
        self,
        max_share: float = 0.03,
        num_digits: int = 6,
        num_train: int = 9600,
        num_val: int = 500,
        num_test: int = 500,
        *,
        batch_size: int = 32,
        num_workers: int | None = 0,
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
        if not 0 < max_share < 1:
            raise ValueError(f"DigitTasksDataModule: max_share must be between 0 and 1, got {max_share}.")
        if num_digits < 1:
            raise ValueError(f"DigitTasksDataModule: num_digits must be positive, got {num_digits}.")
        if batch_size < 2:
            raise ValueError(f"DigitTasksDataModule: batch_size must hold both tasks, at least 2, got {batch_size}.")
        self.max_share = max_share
        self.num_digits = num_digits
        self.lengths: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test, "predict": num_test}

    @property
    def ignore_values(self) -> Mapping[str, float | None]:
        """Task -> value of a target without label."""
        return dict.fromkeys(self.tasks, -100.0)

    def make_dataset(self, split: Split) -> DigitTasks:
        """Return the sequences of a split."""
        if split != "train":
            is_max = torch.arange(2 * self.lengths[split]) % 2 == 1
            return DigitTasks(is_max, self.num_digits, split, self.seed)
        batches = -(-self.lengths[split] // self.batch_size)
        chance = torch.rand(batches, self.batch_size, generator=Generator().manual_seed(mix_seed(self.seed)))
        is_max = chance < self.max_share
        is_max[:, 0] |= ~is_max.any(dim=1)
        return DigitTasks(is_max.flatten()[: self.lengths[split]], self.num_digits, split, self.seed)

    def loader_over(self, dataset: Dataset[Sample], train: bool) -> ResumableDataLoader:
        """Return a loader in the order of the samples, which are random already."""
        loader = super().loader_over(dataset, train)
        loader.sampler.shuffle = False  # type: ignore[attr-defined]
        return loader
