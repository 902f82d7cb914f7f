"""DARK FACE: faces in the dark."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.base import Split, resolve_root
from lightning_mtl.data.detection.base import DetectionDataModule, DetectionOptions
from lightning_mtl.data.detection.records import Records
from lightning_mtl.data.detection.text_files import TextBox, numbers, read_lines, text_records
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError

_REMEDY = (
    "The 6000 images with labels are at https://flyywh.github.io/CVPRW2019LowLight/; the page docs/data/low_light.md "
    "shows the tree."
)
_BOX = "four numbers (x1 y1 x2 y2)"


class DarkFaceDataModule(DetectionDataModule):
    """DARK FACE: 6000 street photographs at night, boxes of faces.

    Reads the authors' download: ``image/ID.png`` and ``label/ID.txt``, whose first line is the number of faces and
    every other line ``x1 y1 x2 y2``. The download has no split: ``train.txt`` and ``val.txt`` with one id a line are
    honoured where they are there; otherwise ``val_fraction`` of the images, chosen by the seed, is for validation (0.1,
    the default, makes 5400 and 600). The test images of the challenge have no public labels: the test split is the
    validation split.

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/dark_face``.
        tasks: Names of the detection tasks.
        options: See :class:`DetectionOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`.

    Shape:
        See :class:`DetectionDataModule`. ``image_id`` is the number in the file's name.

    Raises:
        DatasetNotFoundError: If ``root``, an image or a label file is missing.
        DataFileError: If a file is damaged, the count of a label file is wrong, or a box is invalid.
        ValueError: If an argument is out of range.

    References:
        Yang et al. *Advancing Image Understanding in Poor Visibility Environments: A Collective Benchmark Study*. IEEE
        Transactions on Image Processing 29, 2020. https://arxiv.org/abs/1904.04474.
        Data: https://flyywh.github.io/CVPRW2019LowLight/.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[str] = ("boxes",),
        **options: Unpack[DetectionOptions],
    ) -> None:
        super().__init__(root, tasks, **options)
        self.refuse_segmentation("boxes")
        self._read: dict[str, Records] = {}

    def categories(self) -> tuple[str, ...]:
        """Return the only class."""
        return ("face",)

    def read(self, split: Split) -> tuple[Records, Tensor]:
        """Return images and boxes of a list, and which of its images belong to the split."""
        root = resolve_root(type(self).__name__, self.root, "dark_face", _REMEDY)
        part: Split = "train" if split == "train" else "val"
        divided = (root / "val.txt").is_file()
        key = part if divided else "all"
        if key not in self._read:
            self._read[key] = self._read_labels(root, part if divided else None)
        records = self._read[key]
        return records, torch.arange(len(records)) if divided else self.hold_out(len(records), part)

    def _read_labels(self, root: Path, part: str | None) -> Records:
        name = type(self).__name__
        images = {Path(file).stem: file for file in _listed(root / "image")}
        labels = {Path(file).stem for file in _listed(root / "label")}
        if part is None:
            ids = sorted(images, key=lambda stem: (len(stem), stem))
        else:
            listing = root / f"{part}.txt"
            if not listing.is_file():
                raise DatasetNotFoundError.of(name, root, [listing.name], _REMEDY)
            ids = [Path(word).stem for line in read_lines(name, listing) for word in line.split()]
        missing = [f"image/{stem}.png" for stem in ids if stem not in images] if images else ["image/*.png"]
        missing += [f"label/{stem}.txt" for stem in ids if stem not in labels]
        if missing:
            raise DatasetNotFoundError.of(name, root, missing, _REMEDY)
        if named := [stem for stem in ids if not stem.isdigit()]:
            raise DataFileError.of(
                name, root / "image", f"names must be numbers, got '{images[named[0]]}'", "take other files away"
            )
        return text_records(
            name,
            root / "label",
            root / "image",
            [images[stem] for stem in ids],
            [int(stem) for stem in ids],
            [root / "label" / f"{stem}.txt" for stem in ids],
            self._parse,
            self.categories(),
            self.invalid_boxes,
        )

    def _parse(self, path: Path) -> list[TextBox]:
        name, boxes = type(self).__name__, []
        lines = [(number, line.split()) for number, line in enumerate(read_lines(name, path), start=1) if line.strip()]
        if not lines or len(lines[0][1]) != 1 or not lines[0][1][0].isdigit():
            raise DataFileError.of(name, path, "the first line must be the number of faces", "copy it again")
        if int(lines[0][1][0]) != len(lines) - 1:
            raise DataFileError.of(
                name,
                path,
                f"must have as many boxes as its first line says, {lines[0][1][0]}, got {len(lines) - 1}",
                "copy it again",
            )
        for number, words in lines[1:]:
            values = numbers(name, path, number, words, _BOX)
            if len(values) != 4:
                raise DataFileError.of(
                    name, path, f"line {number} must be {_BOX}, got '{' '.join(words)}'", "copy it again"
                )
            x1, y1, x2, y2 = values
            boxes.append(TextBox(number, 0, (x1, y1, x2 - x1, y2 - y1)))
        return boxes


def _listed(folder: Path) -> list[str]:
    return os.listdir(folder) if folder.is_dir() else []
