"""Two overlaid digits, two classification tasks."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset

from lightning_mtl.data.base import MultiTaskDataModule, Sample, Split, resolve_root
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError
from lightning_mtl.data.samplers import mix_seed

_REMEDY = (
    "Download train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and "
    "t10k-labels-idx1-ubyte.gz, e.g. from https://ossci-datasets.s3.amazonaws.com/mnist/, into that folder."
)

_STREAMS: dict[Split, int] = {"train": 0, "val": 1, "test": 2, "predict": 2}


def read_idx(path: Path) -> Tensor:
    """Read a file of unsigned bytes in the idx format, packed with gzip or not.

    Args:
        path: The file.

    Returns:
        A uint8 tensor of the shape that the header states.

    Raises:
        DataFileError: If the file is damaged or of another kind.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataFileError.of(
            "MultiMNIST", path, f"must be a readable idx file, got {error}", "download it again"
        ) from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08":
        raise DataFileError.of(
            "MultiMNIST", path, f"must start with the idx header 00 00 08, got {data[:3].hex(' ')}", "download it again"
        )
    axes = data[3]
    shape = [int(n) for n in np.frombuffer(data, ">u4", count=axes, offset=4)] if len(data) >= 4 + 4 * axes else [-1]
    values = np.frombuffer(data, np.uint8, offset=min(4 + 4 * axes, len(data)))
    if values.size != int(np.prod(shape)):
        raise DataFileError.of(
            "MultiMNIST", path, f"must hold {shape} bytes by its header, got {values.size}", "download it again"
        )
    return torch.from_numpy(values.reshape(shape).copy())


class MultiMNIST(Dataset[Sample]):
    """Pairs of digits: the left one in the top left corner of a 36 x 36 canvas, the right one in the bottom right.

    Args:
        digits: ``(M, 28, 28)`` uint8.
        labels: ``(M,)`` classes.
        pairs: ``(N, 2)``, the left and the right digit of each sample.
        tasks: Which digits to give the classes of: ``left``, ``right`` or both.
    """

    size = 36

    def __init__(self, digits: Tensor, labels: Tensor, pairs: Tensor, tasks: Sequence[str] = ("left", "right")) -> None:
        self.digits = digits
        self.labels = labels.long()
        self.pairs = pairs
        self.columns = {task: ("left", "right").index(task) for task in tasks}

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.pairs)

    def __getitem__(self, index: int) -> Sample:
        """Return the overlay ``(1, 36, 36)`` in 0..1 and the classes of its digits."""
        pair = self.pairs[index].tolist()
        left, right = pair
        canvas = torch.zeros(1, self.size, self.size)
        canvas[0, :28, :28] = self.digits[left]
        corner = canvas[0, -28:, -28:]
        torch.maximum(corner, self.digits[right].float(), out=corner)
        return canvas.div_(255), {task: self.labels[pair[column]] for task, column in self.columns.items()}


class MultiMNISTDataModule(MultiTaskDataModule):
    """Overlaid pairs of MNIST digits; task ``left`` reads the top left digit, task ``right`` the bottom right one.

    Inputs are ``(B, 1, 36, 36)`` float32 in 0..1; both targets are ``(B,)`` int64 in 0..9, -100 without label. The
    digits of training and validation come from disjoint parts of the training file (the last sixth validates), those of
    the test from the test file. Pairs are drawn with the seed, every digit being used equally often.

    Args:
        root: Folder of the four idx files, packed or not; None takes ``$LIGHTNING_MTL_DATA/mnist``.
        num_train: Number of training pairs.
        num_val: Number of validation pairs.
        num_test: Number of test pairs, which are the prediction pairs too.
        tasks: Which digits have labels; the images are the same.
        batch_size: Samples per batch and process.
        num_workers: Processes that load data; None takes one per available core, at most 8. The digits are in memory.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of pairs and order.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training samples that keep this task's label.

    Raises:
        ValueError: If ``tasks`` is empty or names something else.
        DatasetNotFoundError: If a file is missing.
        DataFileError: If a file is damaged.

    Note:
        Follows the second paper: overlay by the brighter pixel, classes may be equal. The first one shifts each digit
        by up to 4 pixels within the canvas and pairs different classes only.

    References:
        Sabour, Frosst, Hinton. *Dynamic Routing Between Capsules*. NeurIPS 2017. https://arxiv.org/abs/1710.09829.
        Sener, Koltun. *Multi-Task Learning as Multi-Objective Optimization*. NeurIPS 2018.
        https://arxiv.org/abs/1810.04650.
    """

    num_classes = 10

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        num_train: int = 60000,
        num_val: int = 10000,
        num_test: int = 10000,
        *,
        tasks: Sequence[str] = ("left", "right"),
        batch_size: int = 256,
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
        if not tasks or len(set(tasks)) < len(tasks) or not set(tasks) <= {"left", "right"}:
            raise ValueError(
                f"MultiMNISTDataModule: tasks must be 'left', 'right' or both, each once, got {list(tasks)}."
            )
        self.tasks = tuple(tasks)
        self.root = root
        self.lengths: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test, "predict": num_test}

    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return dict.fromkeys(self.tasks, -100.0)

    def make_dataset(self, split: Split) -> MultiMNIST:
        """Return the pairs of a split."""
        digits, labels = self._read("train" if split in ("train", "val") else "t10k")
        kept = len(digits) - len(digits) // 6
        if split == "train":
            digits, labels = digits[:kept], labels[:kept]
        elif split == "val":
            digits, labels = digits[kept:], labels[kept:]
        length = self.lengths[split]
        stream = Generator().manual_seed(mix_seed(self.seed, _STREAMS[split]))
        columns = []
        for _ in range(2):
            rounds = [torch.randperm(len(digits), generator=stream) for _ in range(-(-length // max(len(digits), 1)))]
            columns.append(torch.cat([torch.empty(0, dtype=torch.int64), *rounds])[:length])
        return MultiMNIST(digits, labels, torch.stack(columns, dim=1), self.tasks)

    def _read(self, part: Literal["train", "t10k"]) -> tuple[Tensor, Tensor]:
        root = resolve_root("MultiMNISTDataModule", self.root, "mnist", _REMEDY)
        found: list[Path] = []
        missing: list[str] = []
        for name in (f"{part}-images-idx3-ubyte", f"{part}-labels-idx1-ubyte"):
            here = [path for path in (root / f"{name}.gz", root / name) if path.is_file()]
            found += here[:1]
            missing += [] if here else [f"{name}.gz"]
        if missing:
            raise DatasetNotFoundError.of("MultiMNISTDataModule", root, missing, _REMEDY)
        digits, labels = (read_idx(path) for path in found)
        if digits.shape[1:] != (28, 28) or labels.shape != digits.shape[:1]:
            raise DataFileError.of(
                "MultiMNIST",
                found[0],
                f"must hold 28 x 28 images for {len(labels)} labels ('{found[1].name}'), got {tuple(digits.shape)}",
                "take both files from the same source",
            )
        return digits, labels
