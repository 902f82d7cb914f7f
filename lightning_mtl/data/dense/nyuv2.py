"""NYU Depth v2 for joint dense prediction."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.dense.base import DenseOptions, DenseTarget, Reader, TrainAndTestModule
from lightning_mtl.data.dense.edges import close_gaps, label_boundaries
from lightning_mtl.data.dense.files import (
    VOID,
    LabelTable,
    read_depth,
    read_labels,
    read_normals,
    read_npy_depth,
    read_npy_labels,
    read_npy_normals,
    read_npy_rgb,
    read_rgb,
)
from lightning_mtl.data.dense.frames import FrameFiles, find_files, frames_in, read_list
from lightning_mtl.data.errors import DatasetNotFoundError

NYUv2Task = Literal["segmentation", "depth", "normals", "edges"]

_GAP = 8  # pixels that labels grow before edges are taken: the strips between objects are up to 16 wide at 480 x 640


def _edges(segmentation: Tensor) -> Tensor:
    return label_boundaries(close_gaps(segmentation, _GAP))[None]


class NYUv2DataModule(TrainAndTestModule):
    """NYU Depth v2: semantic segmentation, depth, surface normals and edges of indoor scenes.

    Reads the two layouts in use: the *png* tree of RGB-D segmentation toolkits (480 x 640, 13 or 40 classes, split
    lists ``train.txt`` and ``test.txt`` honoured) and the *mtan* npy tree of multi-task benchmarks (288 x 384,
    13 classes, folders ``train`` and ``val``, the latter being the official test frames).

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/nyuv2``.
        tasks: Which targets to return; ``edges`` are the boundaries between the classes of the segmentation.
        num_classes: 13 or 40.
        layout: ``auto`` finds out.
        val_split: ``holdout`` sets a part of the training frames aside and leaves the test frames alone; ``test``
            validates on the test frames, the habit of the benchmarks, which must then not choose a model.
        val_fraction: Part of the training frames that ``holdout`` sets aside.
        options: See :class:`~lightning_mtl.data.dense.DenseOptions`.

    Shape:
        - image: ``(B, 3, H, W)`` float32, normalised with the ImageNet statistics
        - ``segmentation``: ``(B, H, W)`` int64, 0..C-1, 255 void
        - ``depth``: ``(B, 1, H, W)`` float32 metres, 0 invalid
        - ``normals``: ``(B, 3, H, W)`` float32 unit vectors (x right, y up, z towards the viewer), zero vector invalid
        - ``edges``: ``(B, 1, H, W)`` float32 in {0, 1}, 255 void

    Raises:
        DatasetNotFoundError: If ``root`` or a file of a split is missing.
        DataFileError: When a sample is read: damaged file, size other than the image's, class out of range, depth that
            is not a finite number of metres.
        ValueError: If an argument is out of range.

    Note:
        The frames are in order of recording, neighbours show the same scene. ``holdout`` hence sets aside whole runs of
        16 neighbouring frames, chosen by the seed, not single frames.

        The class maps leave strips of void between objects; labels grow up to 8 pixels into void before edges are
        taken. Other works take edges from other maps, so numbers for this task are not comparable with theirs.

    References:
        Silberman, Hoiem, Kohli, Fergus. *Indoor Segmentation and Support Inference from RGBD Images*. ECCV 2012.
        https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html. Layout mtan: Liu, Johns, Davison. *End-to-End Multi-Task
        Learning with Attention*. CVPR 2019. https://arxiv.org/abs/1803.10704.
    """

    folder = "nyuv2"
    remedy = (
        "The 1449 labelled frames are at https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html, a copy in the mtan "
        "layout is linked from https://github.com/lorenmt/mtan; the page docs/data/nyuv2.md shows both trees."
    )

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[NYUv2Task] = ("segmentation", "depth", "normals"),
        num_classes: Literal[13, 40] = 13,
        layout: Literal["auto", "png", "mtan"] = "auto",
        val_split: Literal["holdout", "test"] = "holdout",
        val_fraction: float = 0.1,
        **options: Unpack[DenseOptions],
    ) -> None:
        super().__init__(root, tasks, val_split, val_fraction, **options)
        if num_classes not in (13, 40):
            raise ValueError(f"{self.owner}: num_classes must be 13 or 40, got {num_classes}.")
        self.num_classes = num_classes
        self.layout = layout

    def known_targets(self) -> dict[str, DenseTarget]:
        """Return the tasks of the data set."""
        return {
            "segmentation": DenseTarget("segmentation", "segmentation"),
            "depth": DenseTarget("depth", "depth"),
            "normals": DenseTarget("normals", "normals"),
            "edges": DenseTarget("edges", "segmentation", _edges),
        }

    def part(self, root: Path, train: bool) -> FrameFiles:
        """Return the files of the training or the test frames."""
        layout = self._layout(root)
        if layout == "mtan" and self.num_classes != 13 and "segmentation" in self.keys:
            raise ValueError(f"{self.owner}: num_classes must be 13 with the mtan layout, got {self.num_classes}.")
        part = "train" if train else ("test" if layout == "png" else "val")
        if layout == "png":
            images, endings = "rgb", [".png", ".jpg", ".jpeg"]
            folders = {"segmentation": f"semantic_{self.num_classes}", "depth": "depth", "normals": "normal"}
        else:
            images, endings = "image", [".npy"]
            folders = {"segmentation": "label", "depth": "depth", "normals": "normal"}
        if layout == "png" and (root / f"{part}.txt").is_file():
            names = read_list(self.owner, root, f"{part}.txt", self.remedy)
        else:
            names = frames_in(root, f"{part}/{images}", endings)
            if not names:
                raise DatasetNotFoundError.of(self.owner, root, [f"{part}/{images}/*{endings[0]}"], self.remedy)
        places = {"image": images, **{key: folders[key] for key in self.keys}}
        return find_files(
            self.owner,
            root,
            names,
            {key: [(f"{part}/{folder}", end) for end in endings] for key, folder in places.items()},
            self.remedy,
        )

    def readers(self, root: Path) -> dict[str, Reader]:
        """Return how the files of the layout are read."""
        if self._layout(root) == "mtan":
            return {
                "image": partial(read_npy_rgb, owner=self.owner),
                "segmentation": partial(read_npy_labels, owner=self.owner, num_classes=13),
                "depth": partial(read_npy_depth, owner=self.owner),
                "normals": partial(read_npy_normals, owner=self.owner),
            }
        table = LabelTable({0: VOID, **{i + 1: i for i in range(self.num_classes)}})
        return {
            "image": partial(read_rgb, owner=self.owner),
            "segmentation": partial(read_labels, owner=self.owner, table=table),
            "depth": partial(read_depth, owner=self.owner, unit=1e-3, expected="16-bit grey (millimetres)"),
            "normals": partial(read_normals, owner=self.owner),
        }

    def _layout(self, root: Path) -> Literal["png", "mtan"]:
        if self.layout != "auto":
            return self.layout
        if (root / "train" / "image").is_dir():
            return "mtan"
        if (root / "train" / "rgb").is_dir() or (root / "train.txt").is_file():
            return "png"
        raise DatasetNotFoundError.of(
            self.owner, root, ["train/rgb (png layout) or train/image (mtan layout)"], self.remedy
        )
