"""What all data modules with boxes share."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from torch import Generator, Tensor
from typing_extensions import Unpack

from lightning_mtl.data.base import LoaderOptions, MultiTaskDataModule, Sample, Split
from lightning_mtl.data.dense.transforms import (
    Compose,
    JointTransform,
    PhotometricJitter,
    RandomHorizontalFlip,
    Resize,
)
from lightning_mtl.data.detection.dataset import DetectionDataset, TaskKind, join_samples
from lightning_mtl.data.detection.labels import Classes, LabelTable, Unmatched, label_table
from lightning_mtl.data.detection.records import InvalidBoxes, Records
from lightning_mtl.data.detection.transforms import FitInside, RandomBoxCrop
from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.low_light import LowLight
from lightning_mtl.data.samplers import mix_seed


class DetectionOptions(LoaderOptions, total=False):
    """Options that all data modules with boxes have in common, besides those of the loaders.

    Attributes:
        label_maps: Task -> its classes, where they are not the categories of the annotations: class -> regular
            expression, or list of them, that matches the whole name of a category; or a list of the categories that
            count.
        unmatched: What a task does with objects in none of its classes: ``raise`` (default); ``ignore`` makes crowd
            boxes of them; ``drop`` makes them background.
        size: Height and width of a batch, 512 x 512 by default; None keeps the images' own and pads to the largest of
            the batch.
        resize: ``letterbox`` (default) keeps the shape of an image and pads it on the right and below; ``stretch`` does
            not.
        augment: Augmentation of the training images: True (default) for random crop, mirror image and colour jitter,
            False for none, or transforms of one's own (before resizing).
        low_light: Darkens the images of all splits as a camera would have taken them with less light; None (default)
            leaves them as they are.
        invalid_boxes: ``raise`` (default) names invalid boxes in one error; ``skip`` leaves them out, clips those that
            stick out of their image, and warns once with the counts.
        val_fraction: Part of the training images, 0.1 by default, that is set aside for validation where the data set
            has no images for it.
    """

    label_maps: dict[str, Classes] | None
    unmatched: Unmatched
    size: tuple[int, int] | None
    resize: Literal["letterbox", "stretch"]
    augment: bool | list[JointTransform]
    low_light: LowLight | None
    invalid_boxes: InvalidBoxes
    val_fraction: float


class DetectionDataModule(MultiTaskDataModule):
    """Images with boxes; one or more tasks read the same annotations.

    Subclasses implement :meth:`read` and :meth:`categories`, and call :meth:`hold_out` where a data set has no
    validation images of its own.

    Args:
        root: Folder of the data.
        tasks: Names of the tasks, or name -> kind of target. In a list, ``segmentation`` is a class map painted from
            the masks, every other name a detection task.
        options: See :class:`DetectionOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`.

    Shape:
        - images: ``(B, 3, H, W)`` float32, normalised with the ImageNet statistics; padding is 0, the mean
        - target of a detection task: a list of B dicts with ``boxes`` ``(n, 4)`` float32 x1, y1, x2, y2 in pixels of
          the batch, ``labels`` ``(n,)`` int64 in 1..C, ``iscrowd`` ``(n,)`` bool, ``area`` ``(n,)`` float32 (of the
          object, in pixels of the batch), ``size`` ``(2,)`` height and width before padding, ``image_id`` int64. With
          n = 0 the image has no objects; None in the list is an image without label
        - target of a segmentation task: ``(B, H, W)`` int64, 0 background, 1..C, 255 crowd, ignored and padding

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None,
        tasks: Sequence[str] | Mapping[str, TaskKind],
        **options: Unpack[DetectionOptions],
    ) -> None:
        label_maps, unmatched = options.pop("label_maps", None), options.pop("unmatched", "raise")
        size, resize = options.pop("size", (512, 512)), options.pop("resize", "letterbox")
        augment, invalid_boxes = options.pop("augment", True), options.pop("invalid_boxes", "raise")
        val_fraction, low_light = options.pop("val_fraction", 0.1), options.pop("low_light", None)
        super().__init__(**cast(LoaderOptions, options))
        name = type(self).__name__
        if isinstance(tasks, str) or not tasks:
            raise ValueError(f"{name}: tasks must be a list of names or a mapping of name to kind, got {tasks!r}.")
        kinds = dict(tasks) if isinstance(tasks, Mapping) else {task: _kind_of(task) for task in tasks}
        for task, kind in kinds.items():
            if kind not in ("boxes", "segmentation"):
                raise ValueError(f"{name}: tasks['{task}'] must be 'boxes' or 'segmentation', got {kind!r}.")
        if unknown := sorted(set(label_maps or {}) - set(kinds)):
            raise ValueError(f"{name}: label_maps must name some of the tasks {sorted(kinds)}, got {unknown}.")
        for argument, value, choices in (
            ("unmatched", unmatched, ("raise", "ignore", "drop")),
            ("resize", resize, ("letterbox", "stretch")),
            ("invalid_boxes", invalid_boxes, ("raise", "skip")),
        ):
            if value not in choices:
                raise ValueError(f"{name}: {argument} must be one of {choices}, got {value!r}.")
        if size is not None and min(size) < 1:
            raise ValueError(f"{name}: size must be positive, got {tuple(size)}.")
        if not 0 < val_fraction < 1:
            raise ValueError(f"{name}: val_fraction must be between 0 and 1, got {val_fraction}.")
        self.root = root
        self.tasks: dict[str, TaskKind] = kinds
        self.label_maps = dict(label_maps or {})
        self.unmatched: Unmatched = unmatched
        self.size = None if size is None else (size[0], size[1])
        self.resize = resize
        self.augment = augment
        self.low_light = low_light
        self.invalid_boxes: InvalidBoxes = invalid_boxes
        self.val_fraction = val_fraction

    @abstractmethod
    def read(self, split: Split) -> tuple[Records, Tensor]:
        """Return images and boxes of a file, and which of its images belong to the split."""

    @abstractmethod
    def categories(self) -> tuple[str, ...]:
        """Return the names of the categories, in the order of their ids."""

    def refuse_segmentation(self, have: str) -> None:
        """Raise if a task is to be painted from masks, for data sets that have none."""
        if self.wants_masks:
            raise ValueError(f"{type(self).__name__}: tasks must be detection tasks, this data set has only {have}.")

    @property
    def wants_masks(self) -> bool:
        """Whether a task is painted from the masks."""
        return "segmentation" in self.tasks.values()

    @property
    def ignore_values(self) -> dict[str, float | None]:
        """Task -> value of a target without label."""
        return {task: None if kind == "boxes" else 255.0 for task, kind in self.tasks.items()}

    @property
    def class_names(self) -> dict[str, tuple[str, ...]]:
        """Task -> names of its labels 1..C; for a segmentation, of 0..C. Reads the annotations."""
        return {
            task: (("background",) if kind == "segmentation" else ()) + self._table(task).names
            for task, kind in self.tasks.items()
        }

    @property
    def num_classes(self) -> dict[str, int]:
        """Task -> number of its classes: C without background for boxes, C + 1 for a segmentation."""
        return {task: len(names) for task, names in self.class_names.items()}

    def make_dataset(self, split: Split) -> DetectionDataset:
        """Return the images of a split."""
        records, images = self.read(split)
        categories = self.categories()
        if records.categories != categories:
            raise DataFileError.of(
                type(self).__name__,
                records.source,
                f"categories must be those of the training images, {', '.join(categories)}, "
                f"got {', '.join(records.categories)}",
                "export all splits with the same list of categories",
            )
        tables = {task: self._table(task) for task in self.tasks}
        self._refuse_unmatched(records, tables)
        transforms: list[JointTransform] = []
        fit: list[JointTransform] = []
        if self.size is not None:
            fit = [FitInside(self.size) if self.resize == "letterbox" else Resize(self.size)]
        if split == "train" and self.augment is True:
            transforms = [RandomBoxCrop(), *fit, RandomHorizontalFlip(), PhotometricJitter()]  # small images are cheap
        elif split == "train" and isinstance(self.augment, list):
            transforms = [*self.augment, *fit]
        else:
            transforms = fit
        if self.low_light is not None:
            transforms = [*transforms, self.low_light]
        return DetectionDataset(type(self).__name__, records, images, self.tasks, tables, Compose(transforms))

    def collate(self, samples: list[Sample]) -> Any:
        """Join samples into a batch, images padded on the right and below, boxes as lists."""
        return join_samples(samples, self.tasks, self.size)

    def hold_out(self, length: int, split: Split) -> Tensor:
        """Return the rows of the images that a split has when ``val_fraction`` of them is set aside by the seed."""
        order = torch.randperm(length, generator=Generator().manual_seed(mix_seed(self.seed)))
        count = min(max(1, round(self.val_fraction * length)), max(1, length - 1))
        return (order[count:] if split == "train" else order[:count]).sort().values

    def _table(self, task: str) -> LabelTable:
        return label_table(type(self).__name__, task, self.categories(), self.label_maps.get(task), self.unmatched)

    def _refuse_unmatched(self, records: Records, tables: Mapping[str, LabelTable]) -> None:
        there = set(records.category.tolist())
        for task, table in tables.items():
            if found := [records.categories[i] for i in table.unmatched if i in there]:
                raise ValueError(
                    f"{type(self).__name__}: label_maps['{task}'] must have a class for every category with boxes, got "
                    f"none for {', '.join(found)} of '{records.source}'; add them, or pass unmatched='ignore' (crowd "
                    "boxes) or 'drop' (background)."
                )


def _kind_of(task: str) -> TaskKind:
    return "segmentation" if task == "segmentation" else "boxes"
