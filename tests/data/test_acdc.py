"""ACDC is read from the tree of its authors, and what is wrong with a tree is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_mtl.data import ACDCDataModule, DataFileError, DatasetNotFoundError
from tests.data.trees import SIZE, write_acdc_tree


def make(root: Path, **options: object) -> ACDCDataModule:
    return ACDCDataModule(root, **{"batch_size": 2, "num_workers": 0, "augment": False, **options})  # type: ignore[arg-type]


def labels_of(root: Path, frame: str = "night/train/GOPR0351/GOPR0351_frame_000001") -> Path:
    return root / "gt" / f"{frame}_gt_labelTrainIds.png"


def test_classes_and_void_come_as_they_are_in_the_files(tmp_path: Path) -> None:
    root = write_acdc_tree(tmp_path / "acdc")
    data = make(root)
    data.setup("fit")
    assert (data.num_classes, data.class_names[13]) == (19, "car")
    files = data.datasets["train"].frames[1]
    assert files["image"].name == "GOPR0351_frame_000001_rgb_anon.png"
    _, targets = data.datasets["train"][1]
    expected = torch.from_numpy(np.array(Image.open(files["segmentation"]))).long()
    assert targets["segmentation"].equal(expected)
    assert set(expected.unique().tolist()) == {*range(19), 255}


def test_the_sequences_of_the_conditions_are_read_and_the_official_validation_frames_are_the_test_frames(
    tmp_path: Path,
) -> None:
    root = write_acdc_tree(tmp_path / "acdc", conditions=("night", "fog"))
    night, both = make(root), make(root, conditions=["night", "fog"])
    for data in (night, both):
        data.setup()
    assert [len(night.datasets[split]) for split in ("train", "val", "test")] == [12, 4, 4]
    assert [len(both.datasets[split]) for split in ("train", "val", "test")] == [24, 8, 8]
    names = night.datasets["test"].frames.names
    assert all(name.startswith("night/val/") for name in names)
    held_out = make(root, val_split="holdout", val_fraction=0.25)
    held_out.setup()
    train, val = (set(held_out.datasets[split].frames.names) for split in ("train", "val"))
    assert not train & val
    assert train | val == set(night.datasets["train"].frames.names)


def test_a_missing_file_of_labels_is_named(tmp_path: Path) -> None:
    root = write_acdc_tree(tmp_path / "acdc")
    labels_of(root).unlink()
    with pytest.raises(
        DatasetNotFoundError,
        match=r"missing gt/night/train/GOPR0351/GOPR0351_frame_000001_gt_labelTrainIds\.png\. Register at",
    ):
        make(root).setup("fit")


def test_a_condition_without_frames_is_named(tmp_path: Path) -> None:
    root = write_acdc_tree(tmp_path / "acdc")
    with pytest.raises(DatasetNotFoundError, match=r"missing rgb_anon/fog/train/SEQUENCE/\*_rgb_anon\.png"):
        make(root, conditions=["night", "fog"]).setup("fit")


def test_labels_of_another_size_are_named(tmp_path: Path) -> None:
    root = write_acdc_tree(tmp_path / "acdc")
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(labels_of(root))
    data = make(root)
    data.setup("fit")
    height, width = SIZE
    with pytest.raises(
        DataFileError,
        match=rf"frame_000001_gt_labelTrainIds\.png': size must be that of 'GOPR0351_frame_000001_rgb_anon\.png', "
        rf"\({height}, {width}\), got \(5, 7\)",
    ):
        data.datasets["train"][1]


def test_an_unknown_class_is_named_with_its_file(tmp_path: Path) -> None:
    root = write_acdc_tree(tmp_path / "acdc")
    Image.fromarray(np.full(SIZE, 33, np.uint8)).save(labels_of(root))  # the file of label ids, not of train ids
    data = make(root)
    data.setup("fit")
    with pytest.raises(DataFileError, match=r"labelTrainIds\.png': class ids must be in 0\.\.18, 255, got 33"):
        data.datasets["train"][1]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    root = write_acdc_tree(tmp_path / "acdc")
    labels_of(root).write_bytes(b"no image")
    data = make(root)
    data.setup("fit")
    with pytest.raises(DataFileError, match=r"labelTrainIds\.png': must be a readable image"):
        data.datasets["train"][1]


@pytest.mark.parametrize("conditions", [[], ["day"], ["night", "night"]], ids=["none", "unknown", "twice"])
def test_conditions_that_are_none_are_refused(conditions: list[str]) -> None:
    with pytest.raises(ValueError, match=r"ACDCDataModule: conditions must be some of .*'night'.*, got"):
        make(Path(), conditions=conditions)
