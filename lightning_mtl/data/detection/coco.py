"""COCO json and folders of images."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.data.base import Split, resolve_root
from lightning_mtl.data.detection.base import DetectionDataModule, DetectionOptions
from lightning_mtl.data.detection.dataset import TaskKind
from lightning_mtl.data.detection.masks import MAX_CATEGORIES
from lightning_mtl.data.detection.records import Annotations, InvalidBoxes, Records
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError

Part = Literal["train", "val", "test"]

_REMEDY = (
    "Export the data set in COCO format; COCO itself is at https://cocodataset.org/#download, and the page "
    "docs/data/coco_detection.md shows the trees."
)
_FOLDERS: dict[Part, tuple[str, ...]] = {
    "train": ("train", "train2017", "train2014"),
    "val": ("val", "valid", "val2017", "val2014"),
    "test": ("test", "test2017", "test2014"),
}
_PLACES = ("annotations/instances_{}.json", "{}/_annotations.coco.json", "annotations/{}.json", "{}.json")
_UNDIVIDED = ("annotations/instances_default.json", "_annotations.coco.json", "annotations.json")


class CocoDetectionDataModule(DetectionDataModule):
    """Images with boxes and masks in COCO format.

    Finds the usual trees: ``annotations/instances_{split}.json`` beside ``{split}/``, Roboflow's
    ``{split}/_annotations.coco.json`` with the images beside it, and one json for all images. Category ids may start
    anywhere and have gaps: labels are 1..C in the order of the ids, categories without boxes included.

    Several tasks read the same annotations. ``tasks: [colour, kind]`` with ``label_maps`` makes *two detection tasks*:
    each finds the boxes and tells its own classes. ``segmentation`` is a class map painted from the masks.

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/coco``.
        tasks: Names of the tasks, or name -> kind of target. In a list, ``segmentation`` is a class map painted from
            the masks, every other name a detection task.
        train_annotations: The json of the training images, below ``root``; None looks in the usual places.
        val_annotations: The json of the validation images; None looks in the usual places, and sets ``val_fraction`` of
            the training images aside where it finds none.
        test_annotations: The json of the test images; None looks in the usual places, and takes the validation images
            where it finds none, as is the custom with COCO.
        images: Split -> folder of its images below ``root``, where it is none of: the json's own, ``{split}``,
            ``images/{split}``, ``images``, ``root``.
        options: See :class:`DetectionOptions` and :class:`~lightning_mtl.data.base.LoaderOptions`.

    Shape:
        See :class:`DetectionDataModule`.

    Raises:
        DatasetNotFoundError: If ``root``, an annotation file or an image is missing.
        DataFileError: If a json is no COCO, an id occurs twice, or a box is invalid (unknown image or category, not
            finite, negative or zero size, outside of its image, more than 1 pixel beyond its border); when a sample is
            read: damaged image, size other than the json's, mask that cannot be decoded.
        ValueError: If an argument is out of range, or a class of ``label_maps`` matches no category.

    Note:
        A few boxes of COCO 2017 have no width: pass ``invalid_boxes="skip"`` for it. Annotation ids that occur twice
        always raise.

    References:
        Lin et al. *Microsoft COCO: Common Objects in Context*. ECCV 2014. https://arxiv.org/abs/1405.0312.
        Format: https://cocodataset.org/#format-data.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[str] | dict[str, TaskKind] = ("boxes",),
        train_annotations: str | None = None,
        val_annotations: str | None = None,
        test_annotations: str | None = None,
        images: dict[Part, str] | None = None,
        **options: Unpack[DetectionOptions],
    ) -> None:
        super().__init__(root, tasks, **options)
        self.annotations: dict[Part, str | None] = {
            "train": train_annotations,
            "val": val_annotations,
            "test": test_annotations,
        }
        self.images: dict[Part, str] = images or {}
        self._read: dict[Path, Records] = {}

    def read(self, split: Split) -> tuple[Records, Tensor]:
        """Return images and boxes of a file, and which of its images belong to the split."""
        root = resolve_root(type(self).__name__, self.root, "coco", _REMEDY)
        parts: tuple[Part, ...] = ("test", "val") if split in ("test", "predict") else (split,)  # type: ignore[assignment]
        for part in parts:
            if (path := self._file(root, part)) is not None and part != "train":
                records = self._records(root, path, part)
                return records, torch.arange(len(records))
        train = self._train_file(root)
        records = self._records(root, train, "train")
        if self._file(root, "val") is not None:
            return records, torch.arange(len(records))
        return records, self.hold_out(len(records), "train" if split == "train" else "val")

    def categories(self) -> tuple[str, ...]:
        """Return the names of the categories of the training images, in the order of their ids."""
        root = resolve_root(type(self).__name__, self.root, "coco", _REMEDY)
        return self._records(root, self._train_file(root), "train").categories

    def _train_file(self, root: Path) -> Path:
        path = self._file(root, "train")
        if path is None:
            looked = [place.format("train") for place in _PLACES] + list(_UNDIVIDED)
            raise DatasetNotFoundError.of(
                type(self).__name__, root, [f"{looked[0]} (or {', '.join(looked[1:])})"], _REMEDY
            )
        return path

    def _file(self, root: Path, part: Part) -> Path | None:
        """Return the annotation file of a split, None where there is none."""
        name = self.annotations[part]
        if name is not None:
            if not (root / name).is_file():
                raise DatasetNotFoundError.of(type(self).__name__, root, [f"{name} ({part}_annotations)"], _REMEDY)
            return root / name
        places = [place.format(folder) for folder in _FOLDERS[part] for place in _PLACES]
        if part == "train":
            places += _UNDIVIDED
        return next((root / place for place in places if (root / place).is_file()), None)

    def _records(self, root: Path, path: Path, part: Part) -> Records:
        if path not in self._read:
            folders = [path.parent, *(root / name for name in _FOLDERS[part])]
            folders += [*(root / "images" / name for name in _FOLDERS[part]), root / "images", root]
            if part in self.images:
                folders = [root / self.images[part]]
            self._read[path] = read_coco(
                type(self).__name__, path, root, folders, self.wants_masks, self.invalid_boxes, _REMEDY
            )
        return self._read[path]


def read_coco(
    owner: str,
    path: Path,
    root: Path,
    folders: Sequence[Path],
    masks: bool,
    invalid: InvalidBoxes,
    remedy: str,
) -> Records:
    """Read a COCO json and check it.

    Args:
        owner: Name of the data module, for errors.
        path: The json.
        root: Folder of the data, for errors.
        folders: Where the images may be; the first that holds the first image is taken.
        masks: Whether to keep the masks.
        invalid: Whether an invalid box raises, or is left out and counted.
        remedy: How to get the data.

    Raises:
        DatasetNotFoundError: If images are missing.
        DataFileError: If the file is no COCO json, or a box is invalid.
    """
    content = _parse(owner, path)
    images, annotations = content["images"], content["annotations"]
    entries = _entries(owner, path, "categories", content["categories"], {"id": int, "name": str})
    categories = sorted(entries, key=lambda category: int(category["id"]))
    _refuse_twice(owner, path, "category id", (category["id"] for category in categories))
    _refuse_twice(owner, path, "category name", (category["name"] for category in categories))
    if masks and len(categories) > MAX_CATEGORIES:
        raise DataFileError.of(
            owner,
            path,
            f"a segmentation must have at most {MAX_CATEGORIES} categories, got {len(categories)}",
            "merge some",
        )
    _entries(owner, path, "images", images, {"id": int, "file_name": str, "width": int, "height": int})
    _refuse_twice(owner, path, "image id", (image["id"] for image in images))
    files = [image["file_name"] for image in images]
    _refuse_twice(owner, path, "file_name", files)
    folder = _find_images(owner, root, path, folders, files, remedy)
    _entries(owner, path, "annotations", annotations, {"id": int, "image_id": int, "category_id": int, "bbox": list})
    _refuse_twice(owner, path, "annotation id", (annotation["id"] for annotation in annotations))
    row_of = {image["id"]: row for row, image in enumerate(images)}
    position_of = {category["id"]: position for position, category in enumerate(categories)}
    ids = np.array([annotation["id"] for annotation in annotations], dtype=np.int64)
    boxes = np.array([_numbers(owner, path, a["id"], a["bbox"]) for a in annotations], dtype=np.float64).reshape(-1, 4)
    areas = (a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations)
    area = np.array([value if type(value) in (int, float) else np.nan for value in areas], dtype=np.float64)
    return Records.checked(
        owner,
        path,
        folder,
        files,
        [image["id"] for image in images],
        np.array([(image["height"], image["width"]) for image in images], dtype=np.int64).reshape(-1, 2),
        Annotations(
            image=np.array([row_of.get(a["image_id"], -1) for a in annotations], dtype=np.int64),
            category=np.array([position_of.get(a["category_id"], -1) for a in annotations], dtype=np.int64),
            boxes=boxes,
            crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
            area=area,
            ids=ids,
            name=lambda row: f"annotation {ids[row]}",
            masks=_masks(owner, path, annotations) if masks else (),
        ),
        [category["name"] for category in categories],
        invalid,
    )


def _parse(owner: str, path: Path) -> dict[str, list[Any]]:
    remedy = "export the data set in COCO format"
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:  # JSON and Unicode errors are ValueErrors
        raise DataFileError.of(owner, path, f"must be a JSON file, got: {error}", remedy) from error
    if not isinstance(content, dict):
        raise DataFileError.of(owner, path, f"must hold an object, got {type(content).__name__}", remedy)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content.get(key), list):
            found = f"got {type(content[key]).__name__}" if key in content else f"got keys {sorted(content)}"
            raise DataFileError.of(owner, path, f"must have a list '{key}', {found}", remedy)
    return content


def _entries(owner: str, path: Path, key: str, entries: list[Any], fields: Mapping[str, type]) -> list[dict[str, Any]]:
    """Check that every entry of a list has the fields, of their type."""
    for position, entry in enumerate(entries):
        for field, kind in fields.items():
            if not isinstance(entry, dict) or type(entry.get(field)) is not kind:
                got = entry.get(field, "nothing") if isinstance(entry, dict) else entry
                number = f"{key}[{position}]"
                if isinstance(entry, dict) and "id" in entry:
                    number += f" (id {entry['id']})"
                raise DataFileError.of(
                    owner, path, f"{number} must have '{field}' of type {kind.__name__}, got {got!r}", "export it again"
                )
    return entries


def _refuse_twice(owner: str, path: Path, what: str, values: Iterable[Any]) -> None:
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        shown = ", ".join(str(value) for value in twice[:5])
        more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
        raise DataFileError.of(
            owner, path, f"each {what} must occur once, got several of {shown}{more}", "renumber or merge them"
        )


def _numbers(owner: str, path: Path, identity: int, box: list[Any]) -> list[float]:
    if len(box) != 4 or not all(type(value) in (int, float) for value in box):
        raise DataFileError.of(
            owner, path, f"annotation {identity}: bbox must be four numbers, got {box!r}", "export it again"
        )
    return box


def _masks(owner: str, path: Path, annotations: Sequence[Mapping[str, Any]]) -> list[str]:
    without = [a["id"] for a in annotations if not a.get("segmentation")]
    if without:
        raise DataFileError.of(
            owner,
            path,
            f"every annotation must have a segmentation, got none for {len(without)} of {len(annotations)}, the first "
            f"is annotation {without[0]}",
            "leave the segmentation out of the tasks",
        )
    return [json.dumps(a["segmentation"]) for a in annotations]


def _find_images(
    owner: str, root: Path, path: Path, folders: Sequence[Path], files: Sequence[str], remedy: str
) -> Path:
    """Return the folder of the images; all of them must be there."""
    if not files:
        return folders[0]
    folder = next((folder for folder in folders if (folder / files[0]).is_file()), None)
    if folder is None:
        places = ", ".join(str(folder.relative_to(root)) for folder in folders if folder.is_dir()) or "no folder"
        raise DatasetNotFoundError.of(
            owner, root, [f"{files[0]} of '{path.relative_to(root)}' (looked in {places})"], remedy
        )
    listed: dict[Path, set[str]] = {}
    missing = []
    for name in files:  # one listing a folder: a look-up a file takes minutes on network disks
        file = folder / name
        if file.parent not in listed:
            listed[file.parent] = set(os.listdir(file.parent)) if file.parent.is_dir() else set()
        if file.name not in listed[file.parent]:
            missing.append(file.relative_to(root))
    if missing:
        raise DatasetNotFoundError.of(owner, root, missing, remedy)
    return folder
