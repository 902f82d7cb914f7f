"""Cityscapes in the tree of its authors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.dense.base import DenseOptions, DenseTarget, Reader, TrainAndTestModule
from lightning_mtl.data.dense.files import GREY_16, VOID, LabelTable, read_labels, read_rgb
from lightning_mtl.data.dense.frames import FrameFiles, find_files
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError
from lightning_mtl.data.images import decode_image

CityscapesTask = Literal["segmentation", "disparity", "depth"]

CLASS_NAMES = (
    "road",
    "sidewalk",
    "building",
    "wall",
    "fence",
    "pole",
    "traffic light",
    "traffic sign",
    "vegetation",
    "terrain",
    "sky",
    "person",
    "rider",
    "car",
    "truck",
    "bus",
    "train",
    "motorcycle",
    "bicycle",
)
"""The train ids 0 to 18."""

CATEGORY_NAMES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")
"""The category ids 1 to 7; 0 is void."""

_TRAIN_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
_FIRST_OF_CATEGORY = (7, 11, 17, 21, 23, 24, 26, 34)  # the ids of a category follow each other, from 7 to 33
_MAX_ID = 33

TRAIN_CLASSES = {**dict.fromkeys(range(_MAX_ID + 1), VOID), **{id_: k for k, id_ in enumerate(_TRAIN_IDS)}}
"""Label id -> train id."""

CATEGORY_CLASSES = {
    **dict.fromkeys(range(_MAX_ID + 1), VOID),
    **{id_: k for k in range(7) for id_ in range(_FIRST_OF_CATEGORY[k], _FIRST_OF_CATEGORY[k + 1])},
}
"""Label id -> category id less one."""


def read_disparity(path: Path, owner: str) -> Tensor:
    """Return the disparity in pixels of a 16-bit image, ``(value - 1) / 256``; 0 where ``value`` is 0 or 1."""
    stored = decode_image(owner, path, GREY_16, "16-bit grey")
    return stored.to(torch.float32).sub_(1).clamp_(min=0).mul_(1 / 256)[None]


def read_camera(path: Path, owner: str) -> Tensor:
    """Return baseline times focal length of a camera file, metres times pixels."""
    try:
        camera = json.loads(path.read_text(encoding="utf-8"))
        product = float(camera["extrinsic"]["baseline"]) * float(camera["intrinsic"]["fx"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataFileError.of(
            owner, path, f"must hold extrinsic.baseline and intrinsic.fx, got: {error!r}", "copy it again"
        ) from error
    if not 0 < product < float("inf"):
        raise DataFileError.of(owner, path, f"baseline times fx must be positive, got {product}", "copy it again")
    return torch.tensor(product)


def depth_of(sample: dict[str, Tensor], max_depth: float | None, keep_disparity: bool) -> dict[str, Tensor]:
    """Add the depth to a sample that holds a disparity and a camera: baseline times focal length over disparity."""
    out = {key: value for key, value in sample.items() if key != "camera" and (keep_disparity or key != "disparity")}
    disparity = sample["disparity"]
    depth = torch.where(disparity > 0, sample["camera"] / disparity, torch.zeros_like(disparity))
    out["depth"] = depth if max_depth is None else depth.masked_fill_(depth > max_depth, 0)
    return out


class CityscapesDataModule(TrainAndTestModule):
    """Cityscapes: street scenes with 19 classes or 7 categories, disparity and depth.

    Reads the tree of the authors' archives (1024 x 2048): ``leftImg8bit``, ``gtFine``, ``disparity`` and ``camera``, of
    which only what the tasks need has to be there. The annotation of the official test frames is not published, hence
    the 500 official validation frames are the test frames here.

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/cityscapes``.
        tasks: Which targets to return. ``disparity`` is in pixels of the 2048 wide image; ``depth`` is in metres and
            needs the camera files.
        num_classes: 19 for the train ids, 7 for the categories.
        labels: Which files of annotation to read: ``labelIds``, as in the archive, or ``labelTrainIds``, as the scripts
            of the authors write them, for 19 classes.
        max_depth: Depth in metres beyond which pixels are unlabelled; None keeps all.
        val_split: ``test`` validates on the official validation frames, the habit of the field, which must then not
            choose a model; ``holdout`` sets a part of the training frames aside.
        val_fraction: Part of the training frames that ``holdout`` sets aside, in runs of 16.
        options: See :class:`~lightning_mtl.data.dense.DenseOptions`.

    Shape:
        - image: ``(B, 3, H, W)`` float32, normalised with the ImageNet statistics
        - ``segmentation``: ``(B, H, W)`` int64, 0..C-1, 255 void
        - ``disparity``: ``(B, 1, H, W)`` float32 pixels, 0 unlabelled
        - ``depth``: ``(B, 1, H, W)`` float32 metres, 0 unlabelled

    Raises:
        DatasetNotFoundError: If ``root`` or a file of a split is missing.
        DataFileError: When a sample is read: damaged file, size other than the image's, unknown label id, camera file
            without baseline or focal length.
        ValueError: If an argument is out of range.

    Note:
        A disparity of exactly zero (the file holds 1) is a point at infinity; it is unlabelled here, as the depth tasks
        cannot tell it from a missing one. With 7 classes every label id counts for its category, also those that the
        19 classes leave out, such as parking.

    References:
        Cordts, Omran, Ramos, Rehfeld, Enzweiler, Benenson, Franke, Roth, Schiele. *The Cityscapes Dataset for Semantic
        Urban Scene Understanding*. CVPR 2016. https://arxiv.org/abs/1604.01685. Table of labels:
        https://github.com/mcordts/cityscapesScripts (cityscapesscripts/helpers/labels.py); encoding of the disparity:
        its README.
    """

    folder = "cityscapes"
    remedy = (
        "Register at https://www.cityscapes-dataset.com, get leftImg8bit_trainvaltest.zip, gtFine_trainvaltest.zip and "
        "for depth disparity_trainvaltest.zip and camera_trainvaltest.zip, and unpack them into one folder; the page "
        "docs/data/cityscapes.md shows the tree."
    )

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[CityscapesTask] = ("segmentation", "disparity"),
        num_classes: Literal[7, 19] = 19,
        labels: Literal["labelIds", "labelTrainIds"] = "labelIds",
        max_depth: float | None = 80.0,
        val_split: Literal["holdout", "test"] = "test",
        val_fraction: float = 0.1,
        **options: Unpack[DenseOptions],
    ) -> None:
        super().__init__(root, tasks, val_split, val_fraction, **options)
        if num_classes not in (7, 19):
            raise ValueError(f"{self.owner}: num_classes must be 7 or 19, got {num_classes}.")
        if labels not in ("labelIds", "labelTrainIds"):
            raise ValueError(f"{self.owner}: labels must be 'labelIds' or 'labelTrainIds', got {labels!r}.")
        if labels == "labelTrainIds" and num_classes != 19:
            raise ValueError(f"{self.owner}: num_classes must be 19 with labelTrainIds, got {num_classes}.")
        if max_depth is not None and max_depth <= 0:
            raise ValueError(f"{self.owner}: max_depth must be positive, got {max_depth}.")
        self.num_classes = num_classes
        self.class_names = CLASS_NAMES if num_classes == 19 else CATEGORY_NAMES
        self.labels = labels
        self.max_depth = max_depth

    def known_targets(self) -> dict[str, DenseTarget]:
        """Return the tasks of the data set."""
        return {task: DenseTarget(task, task) for task in ("segmentation", "disparity", "depth")}

    def part(self, root: Path, train: bool) -> FrameFiles:
        """Return the files of the official training or validation frames."""
        part = "train" if train else "val"
        images = root / "leftImg8bit" / part
        cities = sorted(path for path in images.iterdir() if path.is_dir()) if images.is_dir() else []
        if not cities:
            raise DatasetNotFoundError.of(self.owner, root, [f"leftImg8bit/{part}/CITY"], self.remedy)
        ending = "_leftImg8bit.png"
        names = [
            f"{city.name}/{path.name[: -len(ending)]}"
            for city in cities
            for path in sorted(city.iterdir())
            if path.name.endswith(ending)
        ]
        places = {
            "image": (f"leftImg8bit/{part}", ending),
            "segmentation": (f"gtFine/{part}", f"_gtFine_{self.labels}.png"),
            "disparity": (f"disparity/{part}", "_disparity.png"),
            "camera": (f"camera/{part}", "_camera.json"),
        }
        needed = {"image", *self.tasks} | ({"disparity", "camera"} if "depth" in self.tasks else set())
        chosen = {key: [place] for key, place in places.items() if key in needed}
        return find_files(self.owner, root, names, chosen, self.remedy)

    def readers(self, root: Path) -> dict[str, Reader]:
        """Return how the files are read."""
        if self.labels == "labelTrainIds":
            table = LabelTable({**{i: i for i in range(19)}, VOID: VOID})
        else:
            table = LabelTable(TRAIN_CLASSES if self.num_classes == 19 else CATEGORY_CLASSES)
        return {
            "image": partial(read_rgb, owner=self.owner),
            "segmentation": partial(read_labels, owner=self.owner, table=table),
            "disparity": partial(read_disparity, owner=self.owner),
            "camera": partial(read_camera, owner=self.owner),
        }

    def prepare(self) -> Callable[[dict[str, Tensor]], dict[str, Tensor]] | None:
        """Return what makes depth of disparity and camera."""
        if "depth" not in self.tasks:
            return None
        return partial(depth_of, max_depth=self.max_depth, keep_disparity="disparity" in self.tasks)
