"""Taskonomy, and data sets annotated with the Omnidata pipeline."""

from __future__ import annotations

import csv
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
from lightning_mtl.data.dense.files import VOID, LabelTable, read_depth, read_labels, read_normals, read_rgb, read_share
from lightning_mtl.data.dense.frames import FrameFiles, find_files, frames_in
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError

TaskonomyTask = Literal[
    "segment_semantic",
    "depth_zbuffer",
    "depth_euclidean",
    "normal",
    "edge_texture",
    "edge_occlusion",
    "keypoints2d",
    "keypoints3d",
    "reshading",
    "principal_curvature",
]

CLASS_NAMES = (
    "background",
    "bottle",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
)
"""Classes of ``segment_semantic``; the files hold them from 1 on, 0 is uncertain."""

_TARGETS = {
    "segment_semantic": DenseTarget("segmentation", "segmentation"),
    "depth_zbuffer": DenseTarget("depth", "depth/zbuffer"),
    "depth_euclidean": DenseTarget("depth", "depth/euclidean"),
    "normal": DenseTarget("normals", "normals"),
    "edge_texture": DenseTarget("regression", "regression/edge_texture"),
    "edge_occlusion": DenseTarget("regression", "regression/edge_occlusion"),
    "keypoints2d": DenseTarget("regression", "regression/keypoints2d"),
    "keypoints3d": DenseTarget("regression", "regression/keypoints3d"),
    "reshading": DenseTarget("regression", "regression/reshading"),
    "principal_curvature": DenseTarget("regression", "regression/principal_curvature"),
}

_ENDINGS = {"segment_semantic": ("segmentsemantic", "segment_semantic")}
"""Domain -> what its files are called, where that is not the domain."""


def _reshading(path: Path, owner: str) -> Tensor:
    return read_rgb(path, owner)[:1].to(torch.float32).mul_(1 / 255)  # white light: the channels are alike


def _curvature(path: Path, owner: str) -> Tensor:
    return read_rgb(path, owner)[:2].to(torch.float32).sub_(127).mul_(1 / 128)


class TaskonomyDataModule(DenseDataModule):
    """Taskonomy: indoor views with depth, normals, edges, keypoints, shading, curvature and pseudo-labels of classes.

    Reads ``DOMAIN/BUILDING/point_P_view_V_domain_DOMAIN.png`` (512 x 512), or the same below ``DOMAIN/taskonomy``, as
    the Omnidata tool unpacks it, and honours the published lists of buildings ``train_val_test_PARTITION.csv``.

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/taskonomy``.
        tasks: Which domains to return, under their names.
        partition: Which of the published lists to use: 25 + 5 + 5 buildings for ``tiny``, 98 + 20 + 20 for ``medium``,
            344 + 67 + 71 for ``full``, 381 + 75 + 81 for ``fullplus``.
        without: Buildings to leave out. The default are those that the Omnidata loader leaves out, because they lack
            images or hold wrong views.
        incomplete: What to do with a view that lacks the file of a task: ``error`` names what is missing, ``skip``
            leaves the view out.
        normal_signs: Factors 1 or -1 that turn the axes of the files to x right, y up, z towards the viewer.
        options: See :class:`~lightning_mtl.data.dense.DenseOptions`.

    Shape:
        - image: ``(B, 3, H, W)`` float32, normalised with the ImageNet statistics
        - ``segment_semantic``: ``(B, H, W)`` int64, 0..16, 255 uncertain
        - ``depth_zbuffer``, ``depth_euclidean``: ``(B, 1, H, W)`` float32 metres, 0 invalid
        - ``normal``: ``(B, 3, H, W)`` float32 unit vectors (x right, y up, z towards the viewer), zero vector invalid
        - ``principal_curvature``: ``(B, 2, H, W)`` float32, 0 is flat
        - all others: ``(B, 1, H, W)`` float32, the file's numbers as a share of the largest that it can hold

    Raises:
        DatasetNotFoundError: If ``root``, the list, a building or a file is missing.
        DataFileError: If the list has other columns; when a sample is read: damaged file, size other than the image's,
            unknown class.
        ValueError: If an argument is out of range.

    Note:
        The normals in the files have x to the right, y down and z *into* the scene: a floor has the colour (128, 0,
        128), a wall that faces the camera (128, 128, 0), one on the left (255, 128, 128). That is how the Omnidata
        network, trained on them, colours photographs, and what the transform in Omnidata's loader assumes; the comment
        there and the paper on 2D-3D-S have z towards the viewer. Set ``normal_signs=(1, -1, 1)`` for files of that
        kind.

        ``depth_euclidean`` is the distance from the camera, not along its axis; dividing it by the zoom, as the default
        augmentation does with depth, is exact in the centre of the image only.

    References:
        Zamir, Sax, Shen, Guibas, Malik, Savarese. *Taskonomy: Disentangling Task Transfer Learning*. CVPR 2018.
        https://arxiv.org/abs/1804.08328, https://github.com/StanfordVL/taskonomy (data/README.md). Eftekhar, Sax,
        Malik, Zamir. *Omnidata: A Scalable Pipeline for Making Multi-Task Mid-Level Vision Datasets from 3D Scans*.
        ICCV 2021. https://arxiv.org/abs/2110.04994, https://github.com/EPFL-VILAB/omnidata.
    """

    folder = "taskonomy"
    remedy = (
        "The data set, under its own terms of use, and the lists of buildings (splits_taskonomy.zip) are described at "
        "https://github.com/StanfordVL/taskonomy/tree/master/data; the page docs/data/taskonomy.md shows the tree."
    )
    class_names = CLASS_NAMES
    num_classes = len(CLASS_NAMES)

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[TaskonomyTask] = ("segment_semantic", "depth_zbuffer", "normal"),
        partition: Literal["tiny", "medium", "full", "fullplus"] = "tiny",
        without: Sequence[str] = ("mosquito", "tansboro", "tomkins", "darnestown", "brinnon", "rough"),
        incomplete: Literal["error", "skip"] = "error",
        normal_signs: tuple[int, int, int] = (1, -1, -1),
        **options: Unpack[DenseOptions],
    ) -> None:
        super().__init__(root, tasks, **options)
        if partition not in ("tiny", "medium", "full", "fullplus"):
            raise ValueError(
                f"{self.owner}: partition must be 'tiny', 'medium', 'full' or 'fullplus', got {partition!r}."
            )
        if incomplete not in ("error", "skip"):
            raise ValueError(f"{self.owner}: incomplete must be 'error' or 'skip', got {incomplete!r}.")
        if len(normal_signs) != 3 or not set(normal_signs) <= {1, -1}:
            raise ValueError(f"{self.owner}: normal_signs must be three of 1 and -1, got {tuple(normal_signs)}.")
        self.partition = partition
        self.without = tuple(without)
        self.incomplete = incomplete
        self.normal_signs = tuple(normal_signs)

    def known_targets(self) -> dict[str, DenseTarget]:
        """Return the domains."""
        return dict(_TARGETS)

    def find_frames(self, root: Path, split: Split) -> FrameFiles:
        """Return the files of the views in the buildings of a split."""
        above = "/taskonomy" if (root / "rgb" / "taskonomy").is_dir() else ""
        buildings = self._buildings(root, "test" if split == "predict" else split)
        names = []
        absent = []
        for building in buildings:
            views = frames_in(root, f"rgb{above}/{building}", ["_domain_rgb.png"])
            names += [f"{building}/{view}" for view in views]
            absent += [] if views else [f"rgb{above}/{building}"]
        if absent:
            raise DatasetNotFoundError.of(self.owner, root, absent, self.remedy)
        places = {"image": [(f"rgb{above}", "_domain_rgb.png")]}
        for task in self.tasks:
            endings = _ENDINGS.get(task, (task,))
            places[_TARGETS[task].key] = [(f"{task}{above}", f"_domain_{ending}.png") for ending in endings]
        return find_files(self.owner, root, names, places, self._advice, skip=self.incomplete == "skip")

    @property
    def _advice(self) -> str:
        return f"Pass incomplete='skip' to leave such views out. {self.remedy}"

    def _buildings(self, root: Path, split: str) -> list[str]:
        name = f"train_val_test_{self.partition}.csv"
        path = next((p for p in (root / name, root / "splits_taskonomy" / name) if p.is_file()), None)
        if path is None:
            raise DatasetNotFoundError.of(self.owner, root, [name], self.remedy)
        with path.open(newline=None, encoding="utf-8") as file:  # the published files end their lines in several ways
            rows = list(csv.DictReader(file, skipinitialspace=True))
        if not rows or not {"id", split} <= set(rows[0]):
            raise DataFileError.of(
                self.owner, path, f"must have the columns id and {split} and a row a building", "copy it again"
            )
        return [row["id"] for row in rows if row[split] == "1" and row["id"] not in self.without]

    def readers(self, root: Path) -> dict[str, Reader]:
        """Return how the files of each domain are read."""
        table = LabelTable({0: VOID, **{i + 1: i for i in range(len(CLASS_NAMES))}})
        depth = partial(read_depth, owner=self.owner, unit=1 / 512, invalid=65535)
        share = partial(read_share, owner=self.owner)
        special: dict[str, Reader] = {
            "image": partial(read_rgb, owner=self.owner),
            "segmentation": partial(read_labels, owner=self.owner, table=table),
            "depth/zbuffer": depth,
            "depth/euclidean": depth,
            "normals": partial(read_normals, owner=self.owner, signs=self.normal_signs),
            "regression/reshading": partial(_reshading, owner=self.owner),
            "regression/principal_curvature": partial(_curvature, owner=self.owner),
        }
        return {**{target.key: share for target in _TARGETS.values()}, **special}
