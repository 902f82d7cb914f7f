"""ACDC: streets at night, in fog, rain and snow, in the tree of its authors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from typing_extensions import Unpack

from lightning_mtl.data.dense.base import DenseOptions, DenseTarget, Reader, TrainAndTestModule
from lightning_mtl.data.dense.cityscapes import CLASS_NAMES
from lightning_mtl.data.dense.files import VOID, LabelTable, read_labels, read_rgb
from lightning_mtl.data.dense.frames import FrameFiles, find_files
from lightning_mtl.data.errors import DatasetNotFoundError

ACDCCondition = Literal["fog", "night", "rain", "snow"]

_CONDITIONS: tuple[ACDCCondition, ...] = ("fog", "night", "rain", "snow")
_IMAGE, _LABELS = "_rgb_anon.png", "_gt_labelTrainIds.png"


class ACDCDataModule(TrainAndTestModule):
    """ACDC: semantic segmentation of street scenes at night (and in fog, rain and snow), 19 classes of Cityscapes.

    Reads the tree of the authors' archives (1080 x 1920): ``rgb_anon`` and ``gt``. At night there are 400 training and
    106 validation frames. The annotation of the official test frames is not published, hence the official validation
    frames are the test frames here.

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/acdc``.
        tasks: Which targets to return; there is ``segmentation``.
        conditions: Which of ``fog``, ``night``, ``rain`` and ``snow`` to read.
        val_split: ``test`` validates on the official validation frames, the habit of the field, which must then not
            choose a model; ``holdout`` sets a part of the training frames aside.
        val_fraction: Part of the training frames that ``holdout`` sets aside, in runs of 16.
        options: See :class:`~lightning_mtl.data.dense.DenseOptions`.

    Shape:
        - image: ``(B, 3, H, W)`` float32, normalised with the ImageNet statistics
        - ``segmentation``: ``(B, H, W)`` int64, 0..18, 255 void

    Raises:
        DatasetNotFoundError: If ``root``, a folder of a split or a file of labels is missing.
        DataFileError: When a sample is read: damaged file, size other than the image's, unknown class.
        ValueError: If an argument is out of range.

    References:
        Sakaridis, Dai, Van Gool. *ACDC: The Adverse Conditions Dataset with Correspondences for Semantic Driving Scene
        Understanding*. ICCV 2021. https://arxiv.org/abs/2104.13395, https://acdc.vision.ee.ethz.ch.
    """

    folder = "acdc"
    remedy = (
        "Register at https://acdc.vision.ee.ethz.ch, get rgb_anon_trainvaltest.zip and gt_trainval.zip, and unpack "
        "them into one folder; the page docs/data/acdc.md shows the tree."
    )
    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[Literal["segmentation"]] = ("segmentation",),
        conditions: Sequence[ACDCCondition] = ("night",),
        val_split: Literal["holdout", "test"] = "test",
        val_fraction: float = 0.1,
        **options: Unpack[DenseOptions],
    ) -> None:
        super().__init__(root, tasks, val_split, val_fraction, **options)
        if not conditions or not set(conditions) <= set(_CONDITIONS) or len(set(conditions)) != len(conditions):
            raise ValueError(f"{self.owner}: conditions must be some of {_CONDITIONS}, got {tuple(conditions)}.")
        self.conditions = tuple(conditions)

    def known_targets(self) -> dict[str, DenseTarget]:
        """Return the one task of the data set."""
        return {"segmentation": DenseTarget("segmentation", "segmentation")}

    def part(self, root: Path, train: bool) -> FrameFiles:
        """Return the files of the official training or validation frames."""
        part = "train" if train else "val"
        names: list[str] = []
        for condition in self.conditions:
            below = root / "rgb_anon" / condition / part
            found = sorted(below.glob(f"*/*{_IMAGE}"))
            if not found:
                raise DatasetNotFoundError.of(
                    self.owner, root, [f"rgb_anon/{condition}/{part}/SEQUENCE/*{_IMAGE}"], self.remedy
                )
            names += [f"{condition}/{part}/{path.parent.name}/{path.name[: -len(_IMAGE)]}" for path in found]
        places = {"image": [("rgb_anon", _IMAGE)], "segmentation": [("gt", _LABELS)]}
        return find_files(self.owner, root, names, places, self.remedy)

    def readers(self, root: Path) -> dict[str, Reader]:
        """Return how the files are read."""
        table = LabelTable({**{i: i for i in range(self.num_classes)}, VOID: VOID})
        return {
            "image": partial(read_rgb, owner=self.owner),
            "segmentation": partial(read_labels, owner=self.owner, table=table),
        }
