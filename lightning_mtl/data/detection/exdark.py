"""Exclusively Dark: objects in low light."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.base import Split, resolve_root
from lightning_mtl.data.detection.base import DetectionDataModule, DetectionOptions
from lightning_mtl.data.detection.coco import read_coco
from lightning_mtl.data.detection.records import Records
from lightning_mtl.data.detection.text_files import TextBox, numbers, read_lines, text_records
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError

EXDARK_CLASSES = (
    "Bicycle",
    "Boat",
    "Bottle",
    "Bus",
    "Car",
    "Cat",
    "Chair",
    "Cup",
    "Dog",
    "Motorbike",
    "People",
    "Table",
)
"""Classes of the Exclusively Dark data set, labels 1..12."""

_REMEDY = (
    "Images, annotations and the list of the splits are at https://github.com/cs-chan/Exclusively-Dark-Image-Dataset; "
    "the page docs/data/low_light.md shows the trees."
)
_LIST = "imageclasslist.txt"
_SETS = {"1": "train", "2": "val", "3": "test"}
_LINE = "a class and at least four numbers (left, top, width, height, ...)"


class ExDarkDataModule(DetectionDataModule):
    """Exclusively Dark (ExDark): 7363 photographs in low light, boxes of 12 classes.

    Reads the authors' download, layout ``txt``: ``ExDark/CLASS/NAME``, ``ExDark_Annno/CLASS/NAME.txt`` and their list
    of the splits, ``imageclasslist.txt`` (3000 training, 1800 validation, 2563 test images); and the COCO form of
    low-light detection codes, layout ``coco``: ``images/NAME``, ``exdark_train.json`` (4800, training and validation
    together) and ``exdark_test.json``.

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/exdark``.
        tasks: Names of the detection tasks.
        layout: ``auto`` finds out.
        val_split: ``val`` validates on the published validation images (layout ``coco``: on ``val_fraction`` of the
            training images, chosen by the seed); ``test`` trains on training and validation images and validates on the
            test images, the habit of the papers, which must then not choose a model.
        options: See :class:`DetectionOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`.

    Shape:
        See :class:`DetectionDataModule`. ``image_id`` counts the lines of ``imageclasslist.txt``, from 1.

    Raises:
        DatasetNotFoundError: If ``root``, the list, an annotation file or an image is missing.
        DataFileError: If a file is damaged, or a box is invalid.
        ValueError: If an argument is out of range.

    Note:
        Left and top are taken as counted from 0, as the codes that publish numbers do. The columns for occlusion and
        orientation are not used, following the authors.

    References:
        Loh, Chan. *Getting to Know Low-light Images with The Exclusively Dark Dataset*. Computer Vision and Image
        Understanding 178, 2019. https://arxiv.org/abs/1805.11227.
        Data: https://github.com/cs-chan/Exclusively-Dark-Image-Dataset.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[str] = ("boxes",),
        layout: Literal["auto", "txt", "coco"] = "auto",
        val_split: Literal["val", "test"] = "val",
        **options: Unpack[DetectionOptions],
    ) -> None:
        super().__init__(root, tasks, **options)
        self.refuse_segmentation("boxes")
        self.layout = layout
        self.val_split = val_split
        self._read: dict[str, Records] = {}

    def categories(self) -> tuple[str, ...]:
        """Return the 12 classes; in layout ``coco`` in the order of the ids of the training json."""
        root = resolve_root(type(self).__name__, self.root, "exdark", _REMEDY)
        return EXDARK_CLASSES if self._layout(root) == "txt" else self._json(root, "train").categories

    def read(self, split: Split) -> tuple[Records, Tensor]:
        """Return images and boxes of a file, and which of its images belong to the split."""
        root = resolve_root(type(self).__name__, self.root, "exdark", _REMEDY)
        test = split in ("test", "predict") or (split == "val" and self.val_split == "test")
        if self._layout(root) == "coco":
            records = self._json(root, "test" if test else "train")
            if test or self.val_split == "test":
                return records, torch.arange(len(records))
            return records, self.hold_out(len(records), split)
        if test:
            parts: tuple[str, ...] = ("test",)
        else:
            parts = ("train", "val") if self.val_split == "test" else (split,)
        key = "+".join(parts)
        if key not in self._read:
            self._read[key] = self._read_texts(root, parts)
        return self._read[key], torch.arange(len(self._read[key]))

    def _layout(self, root: Path) -> Literal["txt", "coco"]:
        if self.layout != "auto":
            return self.layout
        if (root / "exdark_train.json").is_file() or (root / "exdark_test.json").is_file():
            return "coco"
        if (root / "ExDark_Annno").is_dir():
            return "txt"
        missing = ["ExDark_Annno/CLASS/*.txt (layout txt) or exdark_train.json (layout coco)"]
        raise DatasetNotFoundError.of(type(self).__name__, root, missing, _REMEDY)

    def _json(self, root: Path, part: Literal["train", "test"]) -> Records:
        if part not in self._read:
            name, path = type(self).__name__, root / f"exdark_{part}.json"
            if not path.is_file():
                raise DatasetNotFoundError.of(name, root, [path.name], _REMEDY)
            folders = [root / "images", root]
            self._read[part] = read_coco(name, path, root, folders, False, self.invalid_boxes, _REMEDY)
        return self._read[part]

    def _read_texts(self, root: Path, parts: Sequence[str]) -> Records:
        name = type(self).__name__
        listing = root / _LIST
        if not listing.is_file():
            raise DatasetNotFoundError.of(name, root, [_LIST], _REMEDY)
        files, texts, image_ids, missing = [], [], [], []
        images = {c: _by_stem(root / "ExDark" / c) for c in EXDARK_CLASSES}
        annotations = {c: _by_stem(root / "ExDark_Annno" / c) for c in EXDARK_CLASSES}
        for number, line in enumerate(read_lines(name, listing), start=1):
            words = line.split()
            if not words or not words[-1].isdigit():
                continue  # the heading
            if len(words) != 5 or words[4] not in _SETS or words[1] not in map(str, range(1, 13)):
                expected = "a name, class 1..12, light, in- or outdoors, and set 1..3"
                raise DataFileError.of(
                    name, listing, f"line {number} must be {expected}, got '{line}'", "copy it again"
                )
            if _SETS[words[4]] not in parts:
                continue
            folder, stem = EXDARK_CLASSES[int(words[1]) - 1], words[0].split(".")[0]
            image, text = images[folder].get(stem), annotations[folder].get(stem)
            if image is None:
                missing.append(f"ExDark/{folder}/{words[0]}")
            elif text is None:
                missing.append(f"ExDark_Annno/{folder}/{words[0]}.txt")
            else:
                files.append(f"{folder}/{image}")
                texts.append(root / "ExDark_Annno" / folder / text)
                image_ids.append(number)
        if missing:
            raise DatasetNotFoundError.of(name, root, missing, _REMEDY)
        return text_records(
            name,
            root / "ExDark_Annno",
            root / "ExDark",
            files,
            image_ids,
            texts,
            self._parse,
            EXDARK_CLASSES,
            self.invalid_boxes,
        )

    def _parse(self, path: Path) -> list[TextBox]:
        name, boxes = type(self).__name__, []
        for number, line in enumerate(read_lines(name, path), start=1):
            words = line.split()
            if not words or line.startswith("%"):  # the tool's heading
                continue
            values = numbers(name, path, number, words[1:5], _LINE)
            if len(values) < 4:
                raise DataFileError.of(name, path, f"line {number} must be {_LINE}, got '{line}'", "copy it again")
            category = EXDARK_CLASSES.index(words[0]) if words[0] in EXDARK_CLASSES else -1
            boxes.append(TextBox(number, category, (values[0], values[1], values[2], values[3])))
        return boxes


def _by_stem(folder: Path) -> dict[str, str]:
    """Return name up to the first dot -> file name: suffixes differ between list, image and annotation."""
    return {name.split(".")[0]: name for name in os.listdir(folder)} if folder.is_dir() else {}
