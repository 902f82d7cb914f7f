"""A user's own images with dense targets: one folder a task."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.base import Split
from lightning_mtl.data.dense.base import DenseDataModule, DenseOptions, DenseTarget, Reader
from lightning_mtl.data.dense.files import (
    GREY_8,
    GREY_16,
    VOID,
    LabelTable,
    read_array,
    read_binary,
    read_labels,
    read_normals,
    read_npy_normals,
    read_npy_rgb,
    read_rgb,
)
from lightning_mtl.data.dense.frames import FrameFiles, find_files, frames_in, hold_out, read_list
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError
from lightning_mtl.data.images import decode_image

FolderKind = Literal["segmentation", "depth", "disparity", "normals", "edges", "saliency", "regression"]

_IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".npy")
_MAPS = (".png", ".npy", ".tif", ".tiff", ".bmp")


@dataclass(frozen=True)
class FolderTarget:
    """What one folder of targets holds, and how its numbers are to be read.

    Attributes:
        kind: What the target is; the joint transforms treat it accordingly.
        folder: Name of the folder; None takes the task's name.
        num_classes: For ``segmentation``: the files hold 0..C-1.
        classes: For ``segmentation``, instead: the id in the files of every class, in order.
        ignore: For ``segmentation``: ids in the files that mean void.
        positive: For ``edges`` and ``saliency``: what stands for yes; 0 stands for no. With 1, 255 is void.
        scale: For ``depth``, ``disparity`` and ``regression``: factor of the number in the file, for example 0.001 for
            millimetres.
        invalid: For the same: number in the file that means unknown; None is none. ``depth`` and ``disparity`` are
            unknown at 0 in any case, npy files of ``regression`` at NaN.
        signs: For ``normals``: factors 1 or -1 that turn the axes of the files to x right, y up, z towards the viewer.
        channels: For ``regression``: numbers per pixel; more than one needs npy files.

    Raises:
        ValueError: If an attribute is out of range or missing.
    """

    kind: FolderKind
    folder: str | None = None
    num_classes: int | None = None
    classes: tuple[int, ...] | None = None
    ignore: tuple[int, ...] = (VOID,)
    positive: Literal[1, 255] = 255
    scale: float = 1.0
    invalid: float | None = None
    signs: tuple[int, int, int] = (1, 1, 1)
    channels: int = 1

    def __post_init__(self) -> None:
        """Check the attributes."""
        if self.kind == "segmentation":
            if (self.num_classes is None) == (self.classes is None):
                raise ValueError("FolderTarget: segmentation must have num_classes or classes; give one of them.")
            if self.classes is not None and len(set(self.classes)) != len(self.classes):
                raise ValueError(f"FolderTarget: classes must be different ids, got {self.classes}.")
            if len(self.ids) < 1:
                raise ValueError("FolderTarget: classes must name at least one class, got an empty list.")
            if set(self.ids) & set(self.ignore):
                raise ValueError(f"FolderTarget: ignore must name no class, got {self.ignore} and {self.ids}.")
        if self.positive not in (1, 255):
            raise ValueError(f"FolderTarget: positive must be 1 or 255, got {self.positive}.")
        if self.scale == 0:
            raise ValueError("FolderTarget: scale must not be 0.")
        if len(self.signs) != 3 or not set(self.signs) <= {1, -1}:
            raise ValueError(f"FolderTarget: signs must be three of 1 and -1, got {tuple(self.signs)}.")
        if self.channels < 1:
            raise ValueError(f"FolderTarget: channels must be at least 1, got {self.channels}.")

    @property
    def ids(self) -> tuple[int, ...]:
        """Id in the files of every class."""
        return tuple(range(self.num_classes or 0)) if self.classes is None else tuple(self.classes)

    @property
    def table(self) -> LabelTable:
        """What the numbers in 8-bit files mean."""
        if self.kind == "segmentation":
            return LabelTable({**dict.fromkeys(self.ignore, VOID), **{id_: k for k, id_ in enumerate(self.ids)}})
        return LabelTable({0: 0, 255: 1} if self.positive == 255 else {0: 0, 1: 1, 255: VOID})


def _image(path: Path, owner: str) -> Tensor:
    return read_npy_rgb(path, owner) if path.suffix == ".npy" else read_rgb(path, owner)


def _segmentation(path: Path, owner: str, target: FolderTarget) -> Tensor:
    if path.suffix != ".npy":
        return read_labels(path, owner, target.table)
    stored = read_array(path, owner, None).to(torch.float64)  # exact for ids, and PyTorch searches no uint16
    classes = torch.full(stored.shape, VOID, dtype=torch.uint8)
    known = torch.isin(stored, torch.tensor(target.ignore, dtype=stored.dtype))
    for number, id_ in enumerate(target.ids):
        here = stored == id_
        classes[here] = number
        known |= here
    if not known.all():
        raise DataFileError.of(
            owner,
            path,
            f"class ids must be in {target.table.expected}, got {stored[~known][0].item():g}",
            "check num_classes and the file",
        )
    return classes


def _numbers(path: Path, owner: str, target: FolderTarget) -> Tensor:
    if path.suffix == ".npy":
        if target.kind == "regression":
            stored = read_array(path, owner, target.channels, nan=True)
        else:
            stored = read_array(path, owner, 1)
        stored = stored.permute(2, 0, 1).to(torch.float32)
    else:
        stored = decode_image(owner, path, (*GREY_8, *GREY_16, "F"), "grey").to(torch.float32)[None]
        if target.kind == "regression" and target.channels != 1:
            raise DataFileError.of(
                owner, path, f"must be an npy array for channels={target.channels}, got an image", "export it again"
            )
    values = stored * target.scale
    if target.kind == "regression":
        return values if target.invalid is None else values.masked_fill_(stored == target.invalid, torch.nan)
    if target.invalid is not None:
        values.masked_fill_(stored == target.invalid, 0)
    if not values.isfinite().all() or values.min() < 0:
        raise DataFileError.of(
            owner,
            path,
            f"{target.kind} must be finite and not negative, got {values.nan_to_num(-1).min().item():g}",
            "name the value that means unknown with invalid, or export it again",
        )
    return values


def _normals(path: Path, owner: str, target: FolderTarget) -> Tensor:
    read = read_npy_normals if path.suffix == ".npy" else read_normals
    return read(path, owner, target.signs)


def _binary(path: Path, owner: str, target: FolderTarget) -> Tensor:
    return read_binary(path, owner, target.table)


class DenseFolderDataModule(DenseDataModule):
    """Images and dense targets of one's own: a folder of images, a folder a task, lists of names.

    Reads ``FOLDER/NAME.EXT`` for the names in ``train.txt``, ``val.txt`` and ``test.txt``; or, where there are no
    lists, ``PART/FOLDER/NAME.EXT`` for the names in the folder of images of the parts ``train``, ``val`` and ``test``.
    Without validation frames, training frames are set aside. Images may be PNG, JPEG, BMP, TIFF, WebP or npy, targets
    PNG, BMP, TIFF or npy.

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/dense_folder``.
        targets: Task -> what its folder holds.
        images: Name of the folder of images.
        val_fraction: Part of the training frames that is set aside where there are no validation frames.
        options: See :class:`~lightning_mtl.data.dense.DenseOptions`.

    Shape:
        - image: ``(B, 3, H, W)`` float32, normalised with the ImageNet statistics
        - targets: as :mod:`lightning_mtl.data.dense.transforms` says for their kind; segmentation int64, all others
          float32

    Raises:
        DatasetNotFoundError: If ``root``, a list or a file is missing.
        DataFileError: When a sample is read: damaged file, size other than the image's, unknown class id, depth that
            is not a finite number.
        ValueError: If an argument is out of range.

    Note:
        Images of different sizes need ``size``, or a batch of one.
    """

    folder = "dense_folder"
    remedy = "The page docs/data/folder.md shows the tree that is expected."

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        targets: dict[str, FolderTarget] | None = None,
        images: str = "images",
        val_fraction: float = 0.1,
        **options: Unpack[DenseOptions],
    ) -> None:
        if not targets:
            raise ValueError(f"{self.owner}: targets must name at least one task and what its folder holds, got none.")
        if not 0 < val_fraction < 1:
            raise ValueError(f"{self.owner}: val_fraction must be between 0 and 1, got {val_fraction}.")
        self.folders = dict(targets)
        self.images = images
        self.val_fraction = val_fraction
        super().__init__(root, tuple(targets), **options)

    @property
    def num_classes(self) -> dict[str, int]:
        """Task -> number of its classes, for the tasks of segmentation."""
        return {task: len(target.ids) for task, target in self.folders.items() if target.kind == "segmentation"}

    def known_targets(self) -> dict[str, DenseTarget]:
        """Return the tasks that the folders are for."""
        return {task: DenseTarget(target.kind, f"{target.kind}/{task}") for task, target in self.folders.items()}

    def find_frames(self, root: Path, split: Split) -> FrameFiles:
        """Return the files of a split."""
        part: Split = "test" if split == "predict" else split
        if part == "test" or (part == "val" and self._has(root, "val")):
            return self._frames(root, part)
        frames = self._frames(root, "train")
        if self._has(root, "val"):
            return frames
        chosen = hold_out(len(frames), self.val_fraction, self.seed, run=1)
        return frames.select([held == (part == "val") for held in chosen])

    @staticmethod
    def _has(root: Path, part: str) -> bool:
        return (root / f"{part}.txt").is_file() or (root / part).is_dir()

    def _frames(self, root: Path, part: str) -> FrameFiles:
        if (root / f"{part}.txt").is_file():
            above, names = "", read_list(self.owner, root, f"{part}.txt", self.remedy)
        else:
            above, names = f"{part}/", frames_in(root, f"{part}/{self.images}", _IMAGES)
            if not names:
                looked_for = f"{part}.txt (or {part}/{self.images}/ with images)"
                raise DatasetNotFoundError.of(self.owner, root, [looked_for], self.remedy)
        places = {"image": [(f"{above}{self.images}", ending) for ending in _IMAGES]}
        for task, target in self.folders.items():
            folder = target.folder or task
            places[f"{target.kind}/{task}"] = [(f"{above}{folder}", ending) for ending in _MAPS]
        return find_files(self.owner, root, names, places, self.remedy)

    def readers(self, root: Path) -> dict[str, Reader]:
        """Return how the files of each folder are read."""
        of_kind = {
            "segmentation": _segmentation,
            "depth": _numbers,
            "disparity": _numbers,
            "regression": _numbers,
            "normals": _normals,
            "edges": _binary,
            "saliency": _binary,
        }
        readers: dict[str, Reader] = {"image": partial(_image, owner=self.owner)}
        for task, target in self.folders.items():
            readers[f"{target.kind}/{task}"] = partial(of_kind[target.kind], owner=self.owner, target=target)
        return readers
