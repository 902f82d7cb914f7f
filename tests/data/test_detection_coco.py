"""COCO json: layouts, labels, splits, and one clear error for each thing that can be wrong."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_mtl.data import CocoDetectionDataModule, DataFileError, DatasetNotFoundError
from lightning_mtl.data.detection.masks import run_lengths
from tests.data.detection_trees import (
    HEIGHT,
    NAMES,
    WIDTH,
    content,
    save,
    write_coco,
    write_roboflow,
    write_undivided,
)
from tests.data.test_yaml import parse
from tests.data.trees import fingerprint

LAYOUTS = {"coco": write_coco, "roboflow": write_roboflow}


def module(root: Path, **options: Any) -> CocoDetectionDataModule:
    return CocoDetectionDataModule(
        root, **{"size": None, "augment": False, "num_workers": 0, "batch_size": 2, **options}
    )


def write(root: Path, change: Callable[[dict[str, Any]], object] | None = None, **options: Any) -> Path:
    """One image of 32 x 24 with three boxes, its json changed; and an image without boxes."""
    data, pictures = content(2, name="{}.png")
    data["annotations"] = [
        {"id": 11, "image_id": 0, "category_id": 7, "bbox": [2, 3, 8, 6], "area": 48, "iscrowd": 0},
        {"id": 12, "image_id": 0, "category_id": 3, "bbox": [12, 4, 6, 10], "area": 30, "iscrowd": 0},
        {"id": 13, "image_id": 0, "category_id": 0, "bbox": [20, 10, 12, 14], "area": 168, "iscrowd": 1},
    ]
    if change is not None:
        change(data)
    save(root, "annotations/instances_train.json", "train", data, pictures)
    save(root, "annotations/instances_val.json", "val", *content(1, seed=1, first=9))
    return root


def first(root: Path, **options: Any) -> tuple[torch.Tensor, dict[str, Any]]:
    data = module(root, **options)
    data.setup("fit")
    image, targets = data.datasets["train"][0]
    return image, targets


def test_boxes_and_labels_are_those_of_the_file(tmp_path: Path) -> None:
    image, targets = first(write(tmp_path))
    assert image.shape == (3, HEIGHT, WIDTH)
    boxes = targets["boxes"]
    assert boxes["boxes"].tolist() == [[2, 3, 10, 9], [12, 4, 18, 14], [20, 10, 32, 24]]
    assert boxes["boxes"].dtype == torch.float32
    assert type(boxes["boxes"]) is torch.Tensor
    assert boxes["labels"].tolist() == [3, 2, 1]  # ids 7, 3, 0: the labels follow the order of the ids
    assert boxes["iscrowd"].tolist() == [False, False, True]
    assert boxes["area"].tolist() == pytest.approx([48, 30, 168])
    assert boxes["size"].tolist() == [HEIGHT, WIDTH]
    assert boxes["image_id"] == 0


def test_labels_are_contiguous_over_all_categories_of_the_file(tmp_path: Path) -> None:
    data = module(write(tmp_path))
    assert data.class_names == {"boxes": NAMES}
    assert data.num_classes == {"boxes": 4}


def test_the_area_is_that_of_the_box_where_the_file_has_none(tmp_path: Path) -> None:
    _, targets = first(write(tmp_path, lambda data: data["annotations"][1].pop("area")))
    assert targets["boxes"]["area"].tolist() == pytest.approx([48, 60, 168])


def test_an_image_without_objects_is_kept(tmp_path: Path) -> None:
    data = module(write(tmp_path))
    data.setup("fit")
    assert len(data.datasets["train"]) == 2
    _, targets = data.datasets["train"][1]
    assert targets["boxes"]["boxes"].shape == (0, 4)
    assert targets["boxes"]["labels"].shape == (0,)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_usual_layouts_are_found(layout: str, tmp_path: Path) -> None:
    data = module(LAYOUTS[layout](tmp_path))
    data.setup()
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [12, 5, 4]


def test_official_folder_names_of_coco_are_found(tmp_path: Path) -> None:
    save(tmp_path, "annotations/instances_train2017.json", "train2017", *content(3))
    save(tmp_path, "annotations/instances_val2017.json", "images/val2017", *content(2, seed=1, first=9))
    data = module(tmp_path)
    data.setup()
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [3, 2, 2]


def test_annotation_files_and_image_folders_can_be_named(tmp_path: Path) -> None:
    save(tmp_path, "a.json", "photos/1", *content(3))
    save(tmp_path, "b.json", "photos/2", *content(2, seed=1, first=9))
    options = {"train_annotations": "a.json", "val_annotations": "b.json"}
    data = module(tmp_path, **options, images={"train": "photos/1", "val": "photos/2"})
    data.setup("fit")
    assert [len(data.datasets[split]) for split in ("train", "val")] == [3, 2]
    with pytest.raises(DatasetNotFoundError, match=r"missing c\.json \(train_annotations\)"):
        module(tmp_path, train_annotations="c.json").setup("fit")


def test_one_json_is_split_by_the_seed_without_overlap(tmp_path: Path) -> None:
    root = write_undivided(tmp_path)

    def ids(seed: int) -> dict[str, set[int]]:
        data = module(root, val_fraction=0.2, seed=seed)
        data.setup("fit")
        return {s: {int(t["boxes"]["image_id"]) for _, t in data.datasets[s]} for s in ("train", "val")}

    split = ids(0)
    assert (len(split["train"]), len(split["val"])) == (16, 4)
    assert not split["train"] & split["val"]
    assert ids(0) == split
    assert ids(1) != split


def test_the_json_is_read_once_however_many_splits_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: read.append(self.name) or original(self))
    data = module(write_undivided(tmp_path))
    data.setup()
    data.setup("fit")
    assert data.num_classes == {"boxes": 4}
    assert read == ["annotations.json"]


@pytest.mark.parametrize("file_name", ["sub/folder/a.png", "ünder score.png"])
def test_file_names_may_hold_folders_and_other_letters(file_name: str, tmp_path: Path) -> None:
    data, pictures = content(1, name=file_name)
    save(tmp_path, "train.json", "images", data, pictures)
    assert first(tmp_path, val_annotations="train.json")[0].shape == (3, HEIGHT, WIDTH)


# What the labels of a task are


def test_two_detection_tasks_label_the_same_boxes(tmp_path: Path) -> None:
    maps = {"exact": {"red": "red", "rest": ["blue", "gr.*n", "unused"]}, "order": ["green", "blue", "red", "unused"]}
    data = module(write(tmp_path), tasks=["exact", "order"], label_maps=maps)
    data.setup("fit")
    _, targets = data.datasets["train"][0]
    assert targets["exact"]["labels"].tolist() == [1, 2, 2]
    assert targets["order"]["labels"].tolist() == [3, 1, 2]
    assert targets["exact"]["boxes"].equal(targets["order"]["boxes"])
    assert data.num_classes == {"exact": 2, "order": 4}
    assert data.class_names["exact"] == ("red", "rest")


def test_objects_of_no_class_are_refused_unless_told_otherwise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"label_maps\['warm'\] must have a class for every .* none for blue, green"):
        first(write(tmp_path), tasks=["warm"], label_maps={"warm": {"red": "red"}})


def test_categories_that_never_occur_need_no_class(tmp_path: Path) -> None:
    _, targets = first(write(tmp_path), label_maps={"boxes": ["blue", "green", "red"]})
    assert targets["boxes"]["labels"].tolist() == [3, 2, 1]


def test_dropped_objects_are_gone(tmp_path: Path) -> None:
    _, targets = first(write(tmp_path), label_maps={"boxes": ["red"]}, unmatched="drop")
    assert targets["boxes"]["labels"].tolist() == [1]
    assert targets["boxes"]["boxes"].tolist() == [[2, 3, 10, 9]]


def test_ignored_objects_are_crowd_boxes_of_every_class(tmp_path: Path) -> None:
    _, targets = first(write(tmp_path), label_maps={"boxes": ["red", "unused"]}, unmatched="ignore")
    boxes = targets["boxes"]
    assert boxes["iscrowd"].tolist() == [False, True, True, True, True]
    assert boxes["labels"].tolist() == [1, 1, 2, 1, 2]
    assert boxes["boxes"][1:].tolist() == [[12, 4, 18, 14]] * 2 + [[20, 10, 32, 24]] * 2
    assert boxes["area"].tolist() == pytest.approx([48, 30, 30, 168, 168])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_maps": {"boxes": {"red": "rod"}}}, r"\['boxes'\]\['red'\] must match a category, got 'rod'.*blue"),
        ({"label_maps": {"boxes": {"a": "red", "b": ".*"}}}, r"one class, got 'red' in 'a' and 'b'"),
        ({"label_maps": {"boxes": {"a": "("}}}, r"must hold regular expressions, got '\('"),
        ({"label_maps": {"other": {"a": "red"}}}, r"must name some of the tasks \['boxes'\], got \['other'\]"),
        ({"tasks": {"boxes": "masks"}}, r"tasks\['boxes'\] must be 'boxes' or 'segmentation', got 'masks'"),
        ({"tasks": "boxes"}, r"tasks must be a list"),
        ({"tasks": []}, r"tasks must be a list"),
        ({"unmatched": "keep"}, r"unmatched must be one of .* got 'keep'"),
        ({"resize": "crop"}, r"resize must be one of .* got 'crop'"),
        ({"invalid_boxes": "drop"}, r"invalid_boxes must be one of .* got 'drop'"),
        ({"size": (0, 4)}, r"size must be positive"),
        ({"val_fraction": 1.0}, r"val_fraction must be between 0 and 1"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"CocoDetectionDataModule: .*{message}"):
        module(write(tmp_path), **options).setup("fit")


# What can be wrong with a file


def replace(index: int, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda data: data["annotations"][index].update(values)


INVALID = {
    "unknown image": (replace(1, image_id=99), "must belong to an image"),
    "unknown category": (replace(1, category_id=99), "must have a category"),
    "not a number": (replace(1, bbox=[float("nan"), 4, 6, 10]), "finite coordinates"),
    "infinite": (replace(1, bbox=[12, 4, float("inf"), 10]), "finite coordinates"),
    "negative size": (replace(1, bbox=[12, 4, -6, 10]), "negative width or height"),
    "zero area": (replace(1, bbox=[12, 4, 6, 0]), "zero width or height"),
    "outside": (replace(1, bbox=[40, 4, 6, 10]), "must lie in its image"),
    "area": (replace(1, area=-1), "finite area of at least 0"),
    "no area": (replace(1, area=None), "finite area of at least 0"),
}


@pytest.mark.parametrize("change", [c for c, _ in INVALID.values()], ids=INVALID)
def test_an_invalid_box_is_one_error_with_file_and_annotation(
    change: Callable[[dict[str, Any]], object], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    message = INVALID[request.node.callspec.id][1]
    with pytest.raises(
        DataFileError, match=rf"instances_train\.json': annotation 12 .*{message}.*invalid_boxes='skip'"
    ):
        first(write(tmp_path, change))


@pytest.mark.parametrize("change", [c for c, _ in INVALID.values()], ids=INVALID)
def test_an_invalid_box_can_be_skipped_and_is_counted_once(
    change: Callable[[dict[str, Any]], object], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    data = module(write(tmp_path, change), invalid_boxes="skip")
    data.setup("fit")
    data.setup()
    assert data.datasets["train"][0][1]["boxes"]["labels"].tolist() == [3, 1]
    messages = [str(warning.message) for warning in recwarn]
    assert len(messages) == 1
    assert "instances_train.json': of 3 annotations 1 skipped and 0 clipped: 1 x must" in messages[0]


def test_a_box_beyond_the_border_is_refused_or_clipped_and_counted(tmp_path: Path) -> None:
    root = write(tmp_path, replace(1, bbox=[-3, 4, 8, 30]))
    with pytest.raises(DataFileError, match=r"annotation 12 of image '0.png' must not stick out .* 10 here"):
        first(root)
    with pytest.warns(UserWarning, match="of 3 annotations 0 skipped and 1 clipped: 1 x must not stick out"):
        _, targets = first(root, invalid_boxes="skip")
    assert targets["boxes"]["boxes"][1].tolist() == [0, 4, 5, 24]


def test_a_box_beyond_the_border_by_a_pixel_is_clipped_without_a_word(tmp_path: Path) -> None:
    _, targets = first(write(tmp_path, replace(1, bbox=[-1, 4.5, 6, 20.25])))
    assert targets["boxes"]["boxes"][1].tolist() == [0, 4.5, 5, 24]


def test_the_error_counts_what_it_does_not_list(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        data["annotations"] = [{**data["annotations"][0], "id": i, "bbox": [1, 1, 0, 1]} for i in range(9)]

    with pytest.raises(DataFileError, match=r"annotation 0 .*annotation 4 .*; and 4 more; correct them") as error:
        first(write(tmp_path, change))
    assert "annotation 5" not in str(error.value)


def drop(key: str, of: str) -> Callable[[dict[str, Any]], object]:
    return lambda data: data[of][0].pop(key)


NOT_COCO = {
    "no images": (lambda data: data.pop("images"), r"must have a list 'images', got keys"),
    "no categories": (lambda data: data.pop("categories"), r"must have a list 'categories', got keys"),
    "annotations no list": (lambda data: data.update(annotations={}), r"must have a list 'annotations', got dict"),
    "image without width": (drop("width", "images"), r"images\[0\] \(id 0\) must have 'width' of type int"),
    "image without name": (drop("file_name", "images"), r"images\[0\] \(id 0\) must have 'file_name' of type str"),
    "box without category": (drop("category_id", "annotations"), r"annotations\[0\] \(id 11\) must have 'category_id'"),
    "box without bbox": (drop("bbox", "annotations"), r"annotations\[0\] \(id 11\) must have 'bbox' of type list"),
    "bbox of three": (replace(0, bbox=[1, 2, 3]), r"annotation 11: bbox must be four numbers, got \[1, 2, 3\]"),
    "bbox of text": (replace(0, bbox=["1", 2, 3, 4]), r"annotation 11: bbox must be four numbers"),
    "image no object": (lambda data: data["images"].append(3), r"images\[2\] must have 'id' of type int, got 3"),
    "image id twice": (lambda data: data["images"][1].update(id=0), r"each image id must occur once, got several of 0"),
    "file twice": (lambda data: data["images"][1].update(file_name="0.png"), r"each file_name must occur once"),
    "annotation id twice": (replace(1, id=11), r"each annotation id must occur once, got several of 11"),
    "category id twice": (lambda data: data["categories"][0].update(id=3), r"each category id must occur once"),
    "category name twice": (lambda data: data["categories"][0].update(name="blue"), r"each category name must occur"),
    "string ids": (lambda data: data["images"][0].update(id="a"), r"images\[0\] \(id a\) must have 'id' of type int"),
}


@pytest.mark.parametrize("key", NOT_COCO)
def test_a_json_that_is_no_coco_is_one_error_that_says_where(key: str, tmp_path: Path) -> None:
    change, message = NOT_COCO[key]
    with pytest.raises(DataFileError, match=rf"instances_train\.json': {message}"):
        first(write(tmp_path, change), invalid_boxes="skip")


@pytest.mark.parametrize(("text", "message"), [("[]", "hold an object, got list"), ("{", "be a JSON file, got")])
def test_a_file_that_is_no_json_object_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (write(tmp_path) / "annotations" / "instances_train.json").write_text(text)
    with pytest.raises(DataFileError, match=f"must {message}"):
        first(tmp_path)


def test_missing_images_are_listed_with_their_number(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for index in range(2, 10):
        (tmp_path / "train" / f"{index:03d}.png").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"missing train/002\.png, .*train/006\.png and 3 more"):
        module(tmp_path).setup("fit")
    (tmp_path / "train" / "000.png").unlink()
    with pytest.raises(
        DatasetNotFoundError, match=r"000\.png of 'annotations/instances_train\.json' \(looked in annot"
    ):
        module(tmp_path).setup("fit")


def test_an_image_of_another_size_is_refused_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path)
    Image.new("RGB", (10, 12)).save(tmp_path / "train" / "0.png")
    data = module(tmp_path)
    data.setup("fit")
    with pytest.raises(
        DataFileError, match=r"train/0\.png': height and width must be \(24, 32\) as in .*, got \(12, 10\)"
    ):
        data.datasets["train"][0]


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "train" / "0.png").write_bytes(b"no image")
    with pytest.raises(DataFileError, match=r"train/0\.png': must be a readable image"):
        first(tmp_path)


def test_splits_with_other_categories_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "annotations" / "instances_val.json"
    data = json.loads(path.read_text())
    data["categories"][0]["name"] = "crimson"
    path.write_text(json.dumps(data))
    with pytest.raises(DataFileError, match=r"instances_val\.json': categories must be those of the training images"):
        module(tmp_path).setup("fit")


# Masks


def masks(data: dict[str, Any]) -> None:
    from pycocotools import mask as coco

    first, second, third = data["annotations"]
    first["segmentation"] = [[2, 3, 10, 3, 10, 9, 2, 9]]
    run = torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    run[4:14, 12:18] = 1
    encoded = coco.encode(run.numpy().copy(order="F"))
    second["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": encoded["counts"].decode()}
    runs, value, column_major = [], 0, torch.zeros(HEIGHT, WIDTH, dtype=torch.uint8)
    column_major[10:24, 20:32] = 1
    for pixel in column_major.T.flatten().tolist():
        if not runs or pixel != value:
            runs.append(0) if runs or pixel == 0 else runs.extend([0, 0])
            value = pixel
        runs[-1] += 1
    third["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": runs}


def expected_map() -> torch.Tensor:
    expected = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
    expected[3:9, 2:10] = 3
    expected[4:14, 12:18] = 2
    expected[10:24, 20:32] = 255
    return expected


def test_polygons_and_both_run_lengths_make_a_class_map_with_crowds_ignored(tmp_path: Path) -> None:
    _, targets = first(write(tmp_path, masks), tasks=["boxes", "segmentation"])
    assert targets["segmentation"].dtype == torch.int64
    assert targets["segmentation"].equal(expected_map())


def test_a_segmentation_has_a_background_class(tmp_path: Path) -> None:
    data = module(write(tmp_path, masks), tasks={"parts": "segmentation", "boxes": "boxes"})
    assert data.num_classes == {"parts": 5, "boxes": 4}
    assert data.class_names["parts"] == ("background", *NAMES)


def test_label_maps_hold_for_class_maps_too(tmp_path: Path) -> None:
    options = {"tasks": ["segmentation"], "label_maps": {"segmentation": ["red"]}}
    _, targets = first(write(tmp_path, masks), unmatched="drop", **options)
    expected = expected_map()
    assert targets["segmentation"].equal(torch.where(expected == 3, 1, torch.where(expected == 255, 255, 0)))
    _, targets = first(tmp_path, unmatched="ignore", **options)
    assert targets["segmentation"].equal(torch.where(expected == 3, 1, torch.where(expected == 0, 0, 255)))


def test_the_smaller_object_lies_on_the_larger(tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        masks(data)
        data["annotations"][0]["segmentation"] = [[0, 0, 32, 0, 32, 24, 0, 24]]

    _, targets = first(write(tmp_path, change), tasks=["segmentation"])
    assert targets["segmentation"][5, 13] == 2
    assert targets["segmentation"][0, 0] == 3
    assert targets["segmentation"][12, 25] == 3  # an object in a crowd is known


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ([[1, 2, 3, 4]], "polygons must be lists of at least three x, y pairs"),
        ({"size": [2, 2], "counts": [4]}, r"size must be that of the image, \[24, 32\], got \[2, 2\]"),
        ({"size": [HEIGHT, WIDTH], "counts": [4]}, "run lengths must be positive and sum to 768, got 4"),
        ({"size": [HEIGHT, WIDTH], "counts": [-4, 772]}, "run lengths must be positive"),
        ({"size": [HEIGHT, WIDTH], "counts": "04"}, "run lengths must be positive and sum to 768, got 4"),
        ({"size": [HEIGHT, WIDTH], "counts": "zz~"}, "run lengths must be a list of whole numbers or COCO's"),
        ({"size": [HEIGHT, WIDTH], "counts": "h"}, "run lengths must be a list of whole numbers or COCO's"),
        ({"size": [HEIGHT, WIDTH], "counts": "hhhhhhhhhhh0"}, "run lengths must have at most 35 bits"),
        ({"size": [HEIGHT, WIDTH], "counts": 7}, "run lengths must be a list of whole numbers or COCO's"),
        ([[float("nan"), 2, 3, 4, 5, 6]], "polygons must be finite and lie around their image"),
        ([[1, 2, 3, 4, 5, 1e9]], "polygons must be finite and lie around their image"),
        ("mask", "must be polygons or run lengths, got str"),
    ],
)
def test_a_mask_that_cannot_be_decoded_is_named(mask: Any, message: str, tmp_path: Path) -> None:
    def change(data: dict[str, Any]) -> None:
        masks(data)
        data["annotations"][1]["segmentation"] = mask

    with pytest.raises(DataFileError, match=rf"instances_train\.json': mask of annotation 12: {message}"):
        first(write(tmp_path, change), tasks=["segmentation"])


@pytest.mark.parametrize("seed", range(5))
def test_compressed_run_lengths_are_those_of_pycocotools(seed: int) -> None:
    from pycocotools import mask as coco

    generator = np.random.default_rng(seed)
    pixels = np.asfortranarray(
        generator.random((60, 1 + 70 * seed)) < (0.02, 0.5, 0.9, 0.001, 0.0)[seed], dtype=np.uint8
    )
    runs = run_lengths(coco.encode(pixels)["counts"].decode())
    restored = np.repeat(np.arange(len(runs)) % 2, runs).reshape(pixels.shape[::-1]).T
    assert (restored == pixels).all()


def test_a_segmentation_needs_masks(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"none for 3 of 3, the first is annotation 11; leave the segmentation out"):
        first(write(tmp_path), tasks=["segmentation"])


# Batches


def test_a_letterbox_pads_on_the_right_and_below_with_the_mean(tmp_path: Path) -> None:
    data = module(write(tmp_path, masks), tasks=["boxes", "segmentation"], size=(48, 48))
    data.setup("fit")
    images, targets = data.collate([data.datasets["train"][i] for i in range(2)])
    assert images.shape == (2, 3, 48, 48)
    assert targets["boxes"][0]["size"].tolist() == [36, 48]
    assert (images[:, :, 36:] == 0).all()
    assert (targets["segmentation"][:, 36:] == 255).all()
    assert (targets["segmentation"][1, :36] == 0).all()
    assert targets["boxes"][0]["boxes"][0].tolist() == [3, 4.5, 15, 13.5]
    assert targets["boxes"][0]["area"].tolist() == pytest.approx([48 * 2.25, 30 * 2.25, 168 * 2.25])


def test_stretching_fills_the_batch(tmp_path: Path) -> None:
    data = module(write(tmp_path), size=(48, 32), resize="stretch")
    data.setup("fit")
    images, targets = data.collate([data.datasets["train"][0]])
    assert images.shape == (1, 3, 48, 32)
    assert targets["boxes"][0]["size"].tolist() == [48, 32]
    assert targets["boxes"][0]["boxes"][0].tolist() == [2, 6, 10, 18]


def test_without_a_size_images_are_padded_to_the_largest_of_the_batch(tmp_path: Path) -> None:
    data, pictures = content(2, name="{}.png")
    data["images"][1].update(width=20, height=40)
    data["annotations"] = [a for a in data["annotations"] if a["image_id"] == 0]
    save(tmp_path, "train.json", "images", data, {**pictures, "1.png": Image.new("RGB", (20, 40))})
    loader = module(tmp_path, val_annotations="train.json")
    loader.setup("fit")
    images, targets = loader.collate([loader.datasets["train"][i] for i in range(2)])
    assert images.shape == (2, 3, 40, 32)
    assert [t["size"].tolist() for t in targets["boxes"]] == [[24, 32], [40, 20]]
    assert (images[0, :, 24:] == 0).all()
    assert (images[1, :, :, 20:] == 0).all()


def test_images_without_label_are_none_in_the_list(tmp_path: Path) -> None:
    data = module(write_coco(tmp_path), label_fraction={"boxes": 0.5}, batch_size=12)
    data.setup("fit")
    _, targets = next(iter(data.train_dataloader()))
    assert sum(target is None for target in targets["boxes"]) == 6


# Real data


def real(name: str) -> Path:
    base = os.environ.get("LIGHTNING_MTL_DATA")
    if not base or not (Path(base) / name).is_dir():
        pytest.skip(f"LIGHTNING_MTL_DATA is not set to a folder with {name}")
    return Path(base) / name


@pytest.mark.parametrize(
    ("name", "images", "boxes", "classes"),
    [
        ("bccd", (205, 87), (2804, 1137), ("RBC", "WBC", "Platelets")),
        ("raccoon", (64, 24), (69, 24), ("raccoon",)),
        ("chess_pieces", (24, 8), (177, 51), None),
    ],
)
def test_real_data_have_the_numbers_of_their_authors(
    name: str, images: tuple[int, int], boxes: tuple[int, int], classes: tuple[str, ...] | None
) -> None:
    data = module(real(name), size=(96, 128), augment=True)
    data.setup("fit")
    for split, wanted_images, wanted_boxes in zip(("train", "val"), images, boxes, strict=True):
        dataset = data.datasets[split]
        assert len(dataset) == wanted_images
        assert len(dataset.records.boxes) == wanted_boxes
        sizes = dataset.records.sizes[:, [1, 0]].repeat_interleave(dataset.records.starts.diff(), dim=0)
        assert (dataset.records.boxes[:, 2:] <= sizes).all()
        for index in range(4):
            image, targets = dataset[index]
            found = targets["boxes"]
            assert (found["boxes"] >= 0).all()
            assert (found["boxes"] <= torch.tensor([image.shape[2], image.shape[1]] * 2)).all()
            assert (found["boxes"][:, 2:] > found["boxes"][:, :2]).all()
            assert ((found["labels"] >= 1) & (found["labels"] <= data.num_classes["boxes"])).all()
    if classes is not None:
        assert data.class_names["boxes"] == classes


def test_chess_pieces_have_a_colour_and_a_kind() -> None:
    kinds = ("king", "queen", "rook", "bishop", "knight", "pawn")
    data = module(
        real("chess_pieces"),
        tasks=["colour", "kind"],
        label_maps={
            "colour": {"white": "white-.*", "black": "black-.*"},
            "kind": {kind: f"(white-|black-)?{kind}" for kind in kinds},
        },
        size=(96, 128),
    )
    data.setup("fit")
    records = data.datasets["train"].records
    assert data.num_classes == {"colour": 2, "kind": 6}
    names = [records.categories[i] for i in records.category.tolist()]
    for task, position in (("colour", 0), ("kind", 1)):
        labels = data.datasets["train"].tables[task].labels[records.category].tolist()
        assert [data.class_names[task][label - 1] for label in labels] == [name.split("-")[position] for name in names]


# Loading


def test_a_stopped_epoch_goes_on_with_the_next_batch_and_its_augmentation(tmp_path: Path) -> None:
    root = write_coco(tmp_path)

    def loader() -> Any:
        data = module(root, size=(30, 30), augment=True)
        data.setup("fit")
        return data.train_dataloader()

    whole = loader()
    first_epoch = [fingerprint(batch) for batch in whole]
    whole.sampler.set_epoch(1)
    second_epoch = [fingerprint(batch) for batch in whole]
    assert sorted(map(str, first_epoch)) != sorted(map(str, second_epoch))
    stopped = loader()
    stopped.sampler.set_epoch(1)
    iterator = iter(stopped)
    before = [fingerprint(next(iterator)) for _ in range(2)]
    resumed = loader()
    resumed.load_state_dict(stopped.state_dict())
    assert before + [fingerprint(batch) for batch in resumed] == second_epoch


def test_a_data_set_can_be_sent_to_another_process(tmp_path: Path) -> None:
    data = module(write(tmp_path, masks), tasks=["boxes", "segmentation"], augment=True)
    data.setup("fit")
    dataset = data.datasets["train"]
    copy = pickle.loads(pickle.dumps(dataset))
    assert fingerprint(copy[0]) == fingerprint(dataset[0])


RECIPE = """
class_path: lightning_mtl.data.CocoDetectionDataModule
init_args:
  root: ROOT
  tasks: {exact: boxes, kind: boxes}
  label_maps:
    exact: [red, green, blue]
    kind: {warm: red, other: [blue, gr.*n, unused]}
  size: [30, 30]
  batch_size: 4
  num_workers: 0
  augment:
    - {class_path: lightning_mtl.data.RandomBoxCrop, init_args: {p: 0.3}}
    - class_path: lightning_mtl.data.TorchvisionTransform
      init_args: {transform: {class_path: torchvision.transforms.v2.RandomZoomOut}}
"""


def test_a_recipe_gives_tasks_label_maps_and_transforms(tmp_path: Path) -> None:
    data = parse(RECIPE.replace("ROOT", str(write_coco(tmp_path))))
    assert isinstance(data, CocoDetectionDataModule)
    data.setup("fit")
    _, targets = next(iter(data.train_dataloader()))
    assert {task: len(boxes) for task, boxes in targets.items()} == {"exact": 4, "kind": 4}
    assert data.num_classes == {"exact": 3, "kind": 2}
