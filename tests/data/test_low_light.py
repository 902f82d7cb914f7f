"""ExDark and DARK FACE in the layouts of their authors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mtl.data import (
    EXDARK_CLASSES,
    DarkFaceDataModule,
    DataFileError,
    DatasetNotFoundError,
    ExDarkDataModule,
)
from tests.data.detection_trees import write_dark_face, write_exdark, write_exdark_coco

OPTIONS: dict[str, Any] = {"size": None, "augment": False, "num_workers": 0, "batch_size": 2}


def exdark(root: Path, **options: Any) -> ExDarkDataModule:
    return ExDarkDataModule(root, **{**OPTIONS, **options})


def dark_face(root: Path, **options: Any) -> DarkFaceDataModule:
    return DarkFaceDataModule(root, **{**OPTIONS, **options})


def edit(path: Path, change: Callable[[str], str]) -> None:
    path.write_text(change(path.read_text()))


def annotation(root: Path, index: int) -> Path:
    return next((root / "ExDark_Annno").glob(f"*/2015_{index:05d}.*"))


def test_exdark_boxes_lie_on_the_objects(tmp_path: Path) -> None:
    data = exdark(write_exdark(tmp_path))
    data.setup()
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [12, 4, 4]
    for split in ("train", "val", "test"):
        for image, targets in data.datasets[split]:
            red = image[0] > image[1] + 2
            x1, y1, x2, y2 = targets["boxes"]["boxes"][0].int().tolist()
            assert (x2 - x1, y2 - y1) == (8, 9)
            assert red[y1:y2, x1:x2].float().mean() > 0.9  # JPEG smears the edge
            assert red.sum() < 1.3 * 8 * 9


def test_exdark_labels_follow_the_authors_numbers(tmp_path: Path) -> None:
    data = exdark(write_exdark(tmp_path))
    data.setup("fit")
    assert data.class_names == {"boxes": EXDARK_CLASSES}
    assert data.num_classes == {"boxes": 12}
    labels = [targets["boxes"]["labels"].tolist() for _, targets in data.datasets["train"]]
    assert labels == [[i + 1, 11] if i % 3 == 0 else [i + 1] for i in range(12)]
    ids = [int(targets["boxes"]["image_id"]) for _, targets in data.datasets["train"]]
    assert ids == list(range(2, 14))  # lines of the list, after its heading


def test_exdark_may_train_on_validation_images_as_the_papers_do(tmp_path: Path) -> None:
    data = exdark(write_exdark(tmp_path), val_split="test")
    data.setup()
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [16, 4, 4]
    ids = [{int(t["boxes"]["image_id"]) for _, t in data.datasets[split]} for split in ("train", "val", "test")]
    assert not ids[0] & ids[1]
    assert ids[1] == ids[2]


@pytest.mark.parametrize(("val_split", "lengths"), [("val", [11, 3, 5]), ("test", [14, 5, 5])])
def test_exdark_in_coco_form(val_split: str, lengths: list[int], tmp_path: Path) -> None:
    data = exdark(write_exdark_coco(tmp_path), val_split=val_split, val_fraction=0.2)
    data.setup()
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == lengths
    seen = [{fingerprint.numpy().tobytes() for fingerprint, _ in data.datasets[s]} for s in ("train", "val")]
    assert not seen[0] & seen[1]


def remove(path: Path) -> str:
    path.unlink()
    return path.name


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (
            lambda root: remove(root / "imageclasslist.txt"),
            DatasetNotFoundError,
            r"missing imageclasslist\.txt.*https://",
        ),
        (
            lambda root: remove(annotation(root, 2)),
            DatasetNotFoundError,
            r"missing ExDark_Annno/Bottle/2015_00002\.png\.txt",
        ),
        (
            lambda root: remove(root / "ExDark/Bottle/2015_00002.png"),
            DatasetNotFoundError,
            r"missing ExDark/Bottle/2015_00002",
        ),
        (
            lambda root: edit(root / "imageclasslist.txt", lambda text: text + "2015_00099.png 13 1 1 1\n"),
            DataFileError,
            r"imageclasslist\.txt': line 22 must be a name, class 1\.\.12.*got '2015_00099\.png 13",
        ),
        (
            lambda root: edit(annotation(root, 2), lambda text: text + "Cup 1 2 x 4 0\n"),
            DataFileError,
            r"2015_00002\.png\.txt': line 3 must be a class and at least four numbers.*got '1 2 x 4'",
        ),
        (
            lambda root: edit(annotation(root, 2), lambda text: text + "Cup 1 2\n"),
            DataFileError,
            r"2015_00002\.png\.txt': line 3 must be a class and at least four numbers",
        ),
        (
            lambda root: edit(annotation(root, 2), lambda text: text + "Tree 1 2 3 4 0\n"),
            DataFileError,
            r"ExDark_Annno': 'Bottle/2015_00002\.png\.txt' line 3 of image 'Bottle/.*' must have a category",
        ),
        (
            lambda root: edit(annotation(root, 2), lambda text: text + "Cup 30 2 30 4 0\n"),
            DataFileError,
            r"'Bottle/2015_00002\.png\.txt' line 3 .* must not stick out",
        ),
        (
            lambda root: (root / "ExDark/Bottle/2015_00002.png").write_bytes(b"no image"),
            DataFileError,
            r"2015_00002\.png': must be a readable image",
        ),
    ],
    ids=["list", "text", "image", "class", "word", "short", "category", "outside", "damaged"],
)
def test_what_is_wrong_with_exdark_is_named(
    break_it: Callable[[Path], object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    break_it(write_exdark(tmp_path))
    with pytest.raises(error, match=f"ExDarkDataModule: .*{message}"):
        exdark(tmp_path).setup("fit")


def test_exdark_without_either_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"ExDark_Annno.*exdark_train\.json.*github\.com/cs-chan"):
        exdark(tmp_path).setup("fit")
    with pytest.raises(DatasetNotFoundError, match=r"missing exdark_train\.json"):
        exdark(tmp_path, layout="coco").setup("fit")


def test_invalid_boxes_of_exdark_can_be_skipped(tmp_path: Path) -> None:
    edit(annotation(write_exdark(tmp_path), 2), lambda text: text + "Tree 1 2 3 4 0\nCup 30 2 30 4 0\n")
    data = exdark(tmp_path, invalid_boxes="skip")
    with pytest.warns(UserWarning, match="of 18 annotations 1 skipped and 1 clipped"):
        data.setup("fit")
    assert data.datasets["train"][2][1]["boxes"]["boxes"][1].tolist() == [30, 2, 32, 6]


def test_dark_face_boxes_lie_on_the_faces(tmp_path: Path) -> None:
    data = dark_face(write_dark_face(tmp_path))
    data.setup("fit")
    assert data.class_names == {"boxes": ("face",)}
    assert [len(data.datasets[split]) for split in ("train", "val")] == [18, 2]
    for image, targets in data.datasets["train"]:
        seen = torch.zeros(image.shape[1:], dtype=torch.bool)
        for x1, y1, x2, y2 in targets["boxes"]["boxes"].int().tolist():
            seen[y1:y2, x1:x2] = True
        assert seen.equal(image[0] > image[1] + 2)
        assert len(targets["boxes"]["boxes"]) == int(targets["boxes"]["image_id"]) % 3


def test_dark_face_is_divided_by_the_seed_or_by_lists(tmp_path: Path) -> None:
    write_dark_face(tmp_path)

    def ids(**options: Any) -> dict[str, list[int]]:
        data = dark_face(tmp_path, **options)
        data.setup()
        return {s: [int(t["boxes"]["image_id"]) for _, t in data.datasets[s]] for s in ("train", "val", "test")}

    drawn = ids(val_fraction=0.25)
    assert len(drawn["val"]) == 5
    assert sorted(drawn["train"] + drawn["val"]) == list(range(1, 21))
    assert drawn["test"] == drawn["val"]
    assert ids(val_fraction=0.25, seed=1) != drawn
    (tmp_path / "train.txt").write_text("3\n1\n2.png\n")
    (tmp_path / "val.txt").write_text("7\n8\n")
    assert ids() == {"train": [3, 1, 2], "val": [7, 8], "test": [7, 8]}


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda root: remove(root / "label" / "3.txt"), DatasetNotFoundError, r"missing label/3\.txt.*https://"),
        (
            lambda root: [remove(path) for path in (root / "image").iterdir()],
            DatasetNotFoundError,
            r"missing image/\*\.png",
        ),
        (lambda root: (root / "val.txt").write_text("77\n"), DatasetNotFoundError, r"missing train\.txt"),
        (
            lambda root: (root / "label/3.txt").write_text(""),
            DataFileError,
            r"3\.txt': the first line must be the number",
        ),
        (
            lambda root: (root / "label/3.txt").write_text("2\n1 1 5 5\n"),
            DataFileError,
            r"3\.txt': must have as many boxes as its first line says, 2, got 1",
        ),
        (
            lambda root: (root / "label/3.txt").write_text("1\n1 1 5\n"),
            DataFileError,
            r"3\.txt': line 2 must be four numbers \(x1 y1 x2 y2\), got '1 1 5'",
        ),
        (
            lambda root: (root / "label/3.txt").write_text("1\n9 1 5 5\n"),
            DataFileError,
            r"label': '3\.txt' line 2 of image '3\.png' must not have a negative width or height",
        ),
        (lambda root: (root / "image/3.png").rename(root / "image/a.png"), DataFileError, r"names must be numbers"),
    ],
    ids=["label", "images", "list", "empty", "count", "short", "negative", "name"],
)
def test_what_is_wrong_with_dark_face_is_named(
    break_it: Callable[[Path], object], error: type[Exception], message: str, tmp_path: Path
) -> None:
    break_it(write_dark_face(tmp_path))
    if (tmp_path / "image" / "a.png").is_file():
        (tmp_path / "label" / "3.txt").rename(tmp_path / "label" / "a.txt")
    with pytest.raises(error, match=f"DarkFaceDataModule: .*{message}"):
        dark_face(tmp_path).setup("fit")


@pytest.mark.parametrize("build", [exdark, dark_face])
def test_low_light_sets_have_no_masks(build: Callable[..., object], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tasks must be detection tasks"):
        build(tmp_path, tasks=["boxes", "segmentation"])
