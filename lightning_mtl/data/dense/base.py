"""What the dense data sets on disk share: frames, their files, and how a sample is made of them."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset
from typing_extensions import Unpack

from lightning_mtl.data.base import LoaderOptions, MultiTaskDataModule, Sample, Split, resolve_root
from lightning_mtl.data.dense.frames import FrameFiles, hold_out
from lightning_mtl.data.dense.transforms import (
    IGNORE_VALUES,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Compose,
    JointTransform,
    Normalize,
    RandomHorizontalFlip,
    RandomScaleCrop,
    Resize,
)
from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.low_light import LowLight
from lightning_mtl.data.samplers import sample_generator

Reader = Callable[[Path], Tensor]


@dataclass(frozen=True)
class DenseTarget:
    """How the target of a task comes from a sample that has been read and transformed.

    Attributes:
        kind: What the target is, a key of ``IGNORE_VALUES``.
        key: Key of the sample, which names the kind that the transforms treat it as.
        derive: Makes the target of what is under ``key``; None takes it as it is.
    """

    kind: str
    key: str
    derive: Callable[[Tensor], Tensor] | None = None

    def of(self, sample: Mapping[str, Tensor]) -> Tensor:
        """Return the target in the form of a batch: classes int64, everything else float32."""
        value = sample[self.key] if self.derive is None else self.derive(sample[self.key])
        return value.to(torch.int64 if self.kind == "segmentation" else torch.float32)


class DenseDataset(Dataset[Sample]):
    """Frames of a dense data set, read from disk when they are asked for.

    Args:
        owner: Name of the data module, for errors.
        frames: The files of each frame: ``image`` and the keys of ``readers``.
        readers: Key of the sample -> function that reads its file; every file of a frame is read once.
        targets: Task -> how its target comes from the sample.
        transform: Joint transform of 8-bit image and targets.
        prepare: Changes the sample between reading and transforming, where one target needs several files.
        normalize: Turns the image into float32.
    """

    def __init__(
        self,
        owner: str,
        frames: Sequence[dict[str, Path]],
        readers: Mapping[str, Reader],
        targets: Mapping[str, DenseTarget],
        transform: JointTransform,
        prepare: Callable[[dict[str, Tensor]], dict[str, Tensor]] | None = None,
        normalize: Normalize | None = None,
    ) -> None:
        self.owner = owner
        self.frames = frames
        self.readers = dict(readers)
        self.targets = dict(targets)
        self.transform = transform
        self.prepare = prepare
        self._normalize = Normalize() if normalize is None else normalize

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        """Return image and targets of a frame, augmented with the random stream of the index."""
        files = self.frames[index]
        sample = {key: self.readers[key](path) for key, path in files.items()}
        size = tuple(sample["image"].shape[-2:])
        for key, value in sample.items():
            if value.ndim > 1 and tuple(value.shape[-2:]) != size:
                raise DataFileError.of(
                    self.owner,
                    files[key],
                    f"size must be that of '{files['image'].name}', {size}, got {tuple(value.shape[-2:])}",
                    "export both at the same resolution",
                )
        if self.prepare is not None:
            sample = self.prepare(sample)
        sample = self.transform(sample, sample_generator(index))
        targets: dict[str, Any] = {task: target.of(sample) for task, target in self.targets.items()}
        return self._normalize.normalized(sample["image"]), targets


class DenseOptions(LoaderOptions, total=False):
    """Options that all dense data modules have in common.

    Attributes:
        batch_size: Samples per batch and process; 8 by default.
        num_workers: Processes that load data; None (default) takes one per available core, at most 8, and none on one
            core.
        pin_memory: Whether batches are copied to pinned memory; None (default) does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None (default) does so when there are any.
        seed: Seed of hold-out, order and augmentation; 0 by default.
        drop_last: Leave out the last training batch when it is smaller than the others; True by default.
        label_fraction: Task -> fraction of the training samples that keep this task's label; tasks not named keep all.
        size: Height and width of images and targets; None (default) keeps those of the files.
        augment: Augmentation of the training frames: True (default) for that of the data set's benchmarks, False for
            none, or transforms of one's own (before resizing).
        low_light: Darkens the images of all splits as a camera would have taken them with less light; None (default)
            leaves them as they are.
        mean: Mean of the three colour channels, of values in 0..1, that is subtracted; ImageNet's by default.
        std: Standard deviation that the channels are divided by; ImageNet's by default.
    """

    size: tuple[int, int] | None
    augment: bool | list[JointTransform]
    low_light: LowLight | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


class DenseDataModule(MultiTaskDataModule):
    """A dense data set on disk; subclasses say where the files are and how they are read.

    Subclasses set ``folder`` and ``remedy`` and implement :meth:`find_frames`, :meth:`readers` and
    :meth:`known_targets`.

    Args:
        root: Folder of the data; None takes ``folder`` below ``$LIGHTNING_MTL_DATA``.
        tasks: Which targets to return.
        options: See :class:`DenseOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`.

    Raises:
        ValueError: If an argument is out of range.
    """

    folder: str
    remedy: str

    def __init__(
        self, root: str | os.PathLike[str] | None, tasks: Sequence[str], **options: Unpack[DenseOptions]
    ) -> None:
        size = options.pop("size", None)
        self.augment = options.pop("augment", True)
        self.low_light = options.pop("low_light", None)
        mean, std = options.pop("mean", IMAGENET_MEAN), options.pop("std", IMAGENET_STD)
        super().__init__(**cast(LoaderOptions, options))
        known = tuple(self.known_targets())
        if not tasks or not set(tasks) <= set(known):
            raise ValueError(f"{self.owner}: tasks must be some of {known}, got {tuple(tasks)}.")
        if size is not None and min(size) < 1:
            raise ValueError(f"{self.owner}: size must be positive, got {tuple(size)}.")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"{self.owner}: mean and std must be three numbers, std positive, got {mean} and {std}.")
        self.root = root
        self.tasks = tuple(tasks)
        self.size = None if size is None else (size[0], size[1])
        self.mean = (mean[0], mean[1], mean[2])
        self.std = (std[0], std[1], std[2])

    @property
    def owner(self) -> str:
        """Name of the class, for errors."""
        return type(self).__name__

    @abstractmethod
    def known_targets(self) -> dict[str, DenseTarget]:
        """Return every task of the data set and how its target is made."""

    @abstractmethod
    def find_frames(self, root: Path, split: Split) -> FrameFiles:
        """Return the files of a split: of the image and of everything that the tasks need."""

    @abstractmethod
    def readers(self, root: Path) -> dict[str, Reader]:
        """Return how the files under each key are read."""

    def prepare(self) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
        """Return a function between reading and transforming, or None."""
        return None

    def augmentation(self) -> list[JointTransform]:
        """Return what ``augment=True`` does: random zoom and mirror image, as in the multi-task benchmarks."""
        return [RandomScaleCrop(size=self.size), RandomHorizontalFlip()]

    def framing(self) -> list[JointTransform]:
        """Return what brings a frame of any split to its size."""
        return [] if self.size is None else [Resize(self.size)]

    @property
    def targets(self) -> dict[str, DenseTarget]:
        """Task -> how its target is made, for the tasks that were asked for."""
        known = self.known_targets()
        return {task: known[task] for task in self.tasks}

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of a sample that the tasks need, besides the image."""
        return tuple(dict.fromkeys(target.key for target in self.targets.values()))

    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return {task: IGNORE_VALUES[target.kind] for task, target in self.targets.items()}

    def make_dataset(self, split: Split) -> DenseDataset:
        """Return the frames of a split."""
        root = resolve_root(self.owner, self.root, self.folder, self.remedy)
        frames = self.find_frames(root, split)
        transforms: list[JointTransform] = []
        if split == "train" and self.augment is True:
            transforms = self.augmentation()
        elif split == "train" and isinstance(self.augment, list):
            transforms = list(self.augment)
        transforms += self.framing()
        if self.low_light is not None:
            transforms.append(self.low_light)
        return DenseDataset(
            self.owner,
            frames,
            self.readers(root),
            self.targets,
            Compose(transforms),
            self.prepare(),
            Normalize(self.mean, self.std),
        )


class TrainAndTestModule(DenseDataModule):
    """A data set that was published in two parts: one to train on, and one to report numbers on.

    Subclasses implement :meth:`part` instead of :meth:`find_frames`. Validation and test frames are the second part, or
    validation frames are set aside from the first.

    Args:
        root: Folder of the data.
        tasks: Which targets to return.
        val_split: ``test`` validates on the frames of the second part, ``holdout`` sets frames of the first one aside.
        val_fraction: Part of the training frames that ``holdout`` sets aside.
        options: See :class:`DenseOptions`.
    """

    run = 16
    """Frames per run of the hold-out: neighbouring frames show the same scene and stay together."""

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        tasks: Sequence[str],
        val_split: Literal["holdout", "test"],
        val_fraction: float,
        **options: Unpack[DenseOptions],
    ) -> None:
        super().__init__(root, tasks, **options)
        if val_split not in ("holdout", "test"):
            raise ValueError(f"{self.owner}: val_split must be 'holdout' or 'test', got {val_split!r}.")
        if not 0 < val_fraction < 1:
            raise ValueError(f"{self.owner}: val_fraction must be between 0 and 1, got {val_fraction}.")
        self.val_split = val_split
        self.val_fraction = val_fraction

    @abstractmethod
    def part(self, root: Path, train: bool) -> FrameFiles:
        """Return the files of the first part, or of the second one."""

    def find_frames(self, root: Path, split: Split) -> FrameFiles:
        """Return the files of a split."""
        held_out = self.val_split == "holdout"
        if split != "train" and not (split == "val" and held_out):
            return self.part(root, train=False)
        frames = self.part(root, train=True)
        if not held_out:
            return frames
        chosen = hold_out(len(frames), self.val_fraction, self.seed, self.run)
        return frames.select([held == (split == "val") for held in chosen])
