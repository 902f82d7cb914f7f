"""Cityscapes as the multi-task benchmarks have it: small npy arrays."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.dense.base import DenseOptions, DenseTarget, Reader, TrainAndTestModule
from lightning_mtl.data.dense.cityscapes import CATEGORY_NAMES, CLASS_NAMES
from lightning_mtl.data.dense.files import read_array, read_npy_labels, read_npy_rgb
from lightning_mtl.data.dense.frames import FrameFiles, find_files, frames_in
from lightning_mtl.data.errors import DatasetNotFoundError

CityscapesMTANTask = Literal["segmentation", "inverse_depth"]


def _inverse_depth(path: Path, owner: str) -> Tensor:
    return read_array(path, owner, 1).permute(2, 0, 1).to(torch.float32).clamp_(min=0)


class CityscapesMTANDataModule(TrainAndTestModule):
    """Cityscapes in the npy layout of MTAN: 7 or 19 classes and inverse depth at 128 x 256.

    The copy that most multi-task optimisation papers report on: folders ``train`` (2975 frames) and ``val`` (500), the
    latter being the official validation frames.

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/cityscapes_mtan``.
        tasks: Which targets to return.
        num_classes: 7 reads ``label_7`` (or ``label``), 19 reads ``label_19``.
        val_split: ``test`` validates on the frames of ``val``, the habit of the benchmarks, which must then not choose
            a model; ``holdout`` sets a part of the training frames aside.
        val_fraction: Part of the training frames that ``holdout`` sets aside, in runs of 16.
        options: See :class:`~lightning_mtl.data.dense.DenseOptions`.

    Shape:
        - image: ``(B, 3, H, W)`` float32, normalised with the ImageNet statistics
        - ``segmentation``: ``(B, H, W)`` int64, 0..C-1, 255 void
        - ``inverse_depth``: ``(B, 1, H, W)`` float32, in the unit of the files, 0 unlabelled

    Raises:
        DatasetNotFoundError: If ``root`` or a file of a split is missing.
        DataFileError: When a sample is read: damaged file, size other than the image's, unknown class, NaN.
        ValueError: If an argument is out of range.

    Note:
        The target that these benchmarks call depth is inverse depth; train it with
        ``Depth(representation="inverse")``. Values below zero count as unlabelled. The default augmentation multiplies
        it by the zoom, as geometry asks; several public codes divide.

    References:
        Liu, Johns, Davison. *End-to-End Multi-Task Learning with Attention*. CVPR 2019.
        https://arxiv.org/abs/1803.10704. Data: https://github.com/lorenmt/mtan. Original: Cordts et al. *The Cityscapes
        Dataset for Semantic Urban Scene Understanding*. CVPR 2016. https://arxiv.org/abs/1604.01685.
    """

    folder = "cityscapes_mtan"
    remedy = (
        "The preprocessed copy is linked from https://github.com/lorenmt/mtan; the page docs/data/cityscapes.md shows "
        "the tree."
    )

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[CityscapesMTANTask] = ("segmentation", "inverse_depth"),
        num_classes: Literal[7, 19] = 7,
        val_split: Literal["holdout", "test"] = "test",
        val_fraction: float = 0.1,
        **options: Unpack[DenseOptions],
    ) -> None:
        super().__init__(root, tasks, val_split, val_fraction, **options)
        if num_classes not in (7, 19):
            raise ValueError(f"{self.owner}: num_classes must be 7 or 19, got {num_classes}.")
        self.num_classes = num_classes
        self.class_names = CLASS_NAMES if num_classes == 19 else CATEGORY_NAMES

    def known_targets(self) -> dict[str, DenseTarget]:
        """Return the tasks of the data set."""
        return {
            "segmentation": DenseTarget("segmentation", "segmentation"),
            "inverse_depth": DenseTarget("disparity", "disparity"),
        }

    def part(self, root: Path, train: bool) -> FrameFiles:
        """Return the files of a part, in the order of their numbers."""
        part = "train" if train else "val"
        names = frames_in(root, f"{part}/image", [".npy"])
        if not names:
            raise DatasetNotFoundError.of(self.owner, root, [f"{part}/image/*.npy"], self.remedy)
        labels = [f"label_{self.num_classes}"] + (["label"] if self.num_classes == 7 else [])
        folders = {"image": ["image"], "segmentation": labels, "disparity": ["depth"]}
        places = {
            key: [(f"{part}/{folder}", ".npy") for folder in candidates]
            for key, candidates in folders.items()
            if key in ("image", *self.keys)
        }
        return find_files(self.owner, root, names, places, self.remedy)

    def readers(self, root: Path) -> dict[str, Reader]:
        """Return how the files are read."""
        return {
            "image": partial(read_npy_rgb, owner=self.owner),
            "segmentation": partial(read_npy_labels, owner=self.owner, num_classes=self.num_classes),
            "disparity": partial(_inverse_depth, owner=self.owner),
        }
