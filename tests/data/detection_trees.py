"""Small data sets with boxes on disk, written as their users have them; every object is a rectangle of one colour."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 32
CATEGORIES = [
    {"id": 7, "name": "red"},
    {"id": 3, "name": "green"},
    {"id": 20, "name": "unused"},
    {"id": 0, "name": "blue"},
]
COLOURS = {7: (255, 0, 0), 3: (0, 255, 0), 0: (0, 0, 255)}
NAMES = ("blue", "green", "red", "unused")
"""Categories in the order of their ids, which is that of the labels."""


def draw(
    boxes: list[tuple[int, tuple[int, int, int, int]]], shade: int, size: tuple[int, int] = (HEIGHT, WIDTH)
) -> Image.Image:
    pixels = np.full((*size, 3), 60 + shade, dtype=np.uint8)
    for category, (x, y, width, height) in boxes:
        pixels[y : y + height, x : x + width] = COLOURS[category]
    return Image.fromarray(pixels)


def content(
    images: int, seed: int = 0, name: str = "{:03d}.png", first: int = 0
) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """Return a COCO json and its images; every fourth image has no objects."""
    generator = np.random.default_rng(seed)
    entries, annotations, pictures = [], [], {}
    for index in range(images):
        boxes = []
        for _ in range(0 if index % 4 == 3 else int(generator.integers(1, 3))):
            width, height = (int(v) for v in generator.integers(5, 10, 2))
            x, y = int(generator.integers(0, WIDTH - width)), int(generator.integers(0, HEIGHT - height))
            boxes.append((int(generator.choice([0, 3, 7])), (x, y, width, height)))
        file = name.format(first + index)
        entries.append({"id": 5 * (first + index), "file_name": file, "width": WIDTH, "height": HEIGHT})
        pictures[file] = draw(boxes, first + index)
        for category, box in boxes:
            x, y, width, height = box
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": entries[-1]["id"],
                    "category_id": category,
                    "bbox": list(box),
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
                }
            )
    return {
        "images": entries,
        "annotations": annotations,
        "categories": [dict(category) for category in CATEGORIES],
    }, pictures


def save(root: Path, json_name: str, folder: str, data: dict[str, Any], pictures: dict[str, Image.Image]) -> None:
    (root / json_name).parent.mkdir(parents=True, exist_ok=True)
    (root / json_name).write_text(json.dumps(data))
    (root / folder).mkdir(parents=True, exist_ok=True)
    for file, picture in pictures.items():
        (root / folder / file).parent.mkdir(parents=True, exist_ok=True)
        picture.save(root / folder / file)


def write_coco(root: Path, train: int = 12, val: int = 5, test: int = 4) -> Path:
    """The layout of COCO: annotations/instances_{split}.json and {split}/."""
    for split, images, first in (("train", train, 0), ("val", val, 50), ("test", test, 80)):
        save(root, f"annotations/instances_{split}.json", split, *content(images, first, first=first))
    return root


def write_roboflow(root: Path) -> Path:
    """The layout of Roboflow's export: {split}/_annotations.coco.json beside the images."""
    for split, images, first in (("train", 12, 0), ("valid", 5, 50), ("test", 4, 80)):
        save(root, f"{split}/_annotations.coco.json", split, *content(images, first, first=first))
    return root


def write_undivided(root: Path, images: int = 20) -> Path:
    """One json for all images."""
    save(root, "annotations.json", "images", *content(images))
    return root


def write_exdark(root: Path) -> Path:
    """The authors' download: images and texts in a folder per class, and the list of the splits."""
    lines = ["Name | Class | Light | In/Out | Train/Val/Test"]
    generator = np.random.default_rng(0)
    for index in range(20):
        number, part = index % 12, 1 if index < 12 else 2 if index < 16 else 3
        name = [
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
        ][number]
        file = f"2015_{index:05d}"
        suffix = ".JPG" if index % 5 == 0 else ".png"  # the list and the files differ in the suffix
        x, y = (int(v) for v in generator.integers(0, 10, 2))
        for folder in ("ExDark", "ExDark_Annno"):
            (root / folder / name).mkdir(parents=True, exist_ok=True)
        draw([(7, (x, y, 8, 9))], index).save(root / "ExDark" / name / (file + suffix))
        text = f"% bbGt version=3\n{name} {x} {y} 8 9 0 0 0 0 0 0 0\n"
        if index % 3 == 0:
            text += "People 20 10 6 7 0 0 0 0 0 0 0\n"
        (root / "ExDark_Annno" / name / f"{file}{suffix}.txt").write_text(text)
        lines.append(f"{file}.png {number + 1} {index % 10 + 1} {index % 2 + 1} {part}")
    (root / "imageclasslist.txt").write_text("\n".join(lines) + "\n")
    return root


def write_exdark_coco(root: Path) -> Path:
    """The form of low-light detection codes: images/ and exdark_{train,test}.json."""
    for split, images, first in (("train", 14, 0), ("test", 5, 50)):
        save(root, f"exdark_{split}.json", "images", *content(images, first, first=first))
    return root


def write_dark_face(root: Path, images: int = 20) -> Path:
    """The authors' download: image/ID.png and label/ID.txt."""
    generator = np.random.default_rng(0)
    for folder in ("image", "label"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for index in range(1, images + 1):
        boxes = []
        for _ in range(index % 3):
            x, y = (int(v) for v in generator.integers(0, 12, 2))
            boxes.append((7, (x, y, 6, 7)))
        draw(boxes, index).save(root / "image" / f"{index}.png")
        lines = [str(len(boxes)), *(f"{x} {y} {x + w} {y + h}" for _, (x, y, w, h) in boxes)]
        (root / "label" / f"{index}.txt").write_text("\n".join(lines) + "\n")
    return root
