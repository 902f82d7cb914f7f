from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lightning_mtl.data import DataFileError, DatasetNotFoundError, EmptySplitError, NYUv2DataModule, RandomScaleCrop
from tests.data.trees import frame, write_mtan_tree, write_png_tree

ALL = ("segmentation", "depth", "normals", "edges")


def module(root: Path, **options: Any) -> NYUv2DataModule:
    defaults = {"batch_size": 2, "num_workers": 0, "augment": False, "val_split": "test"}
    return NYUv2DataModule(root, **{**defaults, **options})


def samples(data: NYUv2DataModule, split: str = "train") -> list[Any]:
    data.setup()
    dataset = data.datasets[split]  # type: ignore[index]
    return [dataset[i] for i in range(len(dataset))]  # type: ignore[arg-type]


@pytest.mark.parametrize("write", [write_png_tree, write_mtan_tree], ids=["png", "mtan"])
def test_both_layouts_give_the_scene_that_was_written(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    found = samples(module(write(tmp_path), tasks=ALL))
    assert len(found) == 12
    for index, (image, targets) in enumerate(found):
        maps = frame(index)
        mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
        assert np.allclose(image.permute(1, 2, 0).numpy(), (maps["image"] / 255 - mean) / std, atol=1e-4)
        assert (targets["segmentation"].numpy() == np.where(maps["label"] < 0, 255, maps["label"])).all()
        assert np.allclose(targets["depth"][0].numpy(), maps["depth"][..., 0], atol=6e-4)  # millimetres
        valid = maps["depth"][..., 0] > 0
        normals = targets["normals"].permute(1, 2, 0).numpy()
        assert (normals[valid] * maps["normal"][valid]).sum(-1).min() > 0.999  # 8 bits
        assert (normals[~valid] == 0).all()
        assert np.allclose(np.linalg.norm(normals[valid], axis=-1), 1, atol=1e-5)


def test_forty_classes_come_from_their_own_folder(tmp_path: Path) -> None:
    root = write_png_tree(tmp_path)
    thirteen, forty = (
        [t["segmentation"] for _, t in samples(module(root, tasks=("segmentation",), num_classes=n))] for n in (13, 40)
    )
    for coarse, fine in zip(thirteen, forty, strict=True):
        assert fine.equal(torch.where(coarse == 255, 255, 3 * coarse))


def test_images_may_be_jpeg(tmp_path: Path) -> None:
    root = write_png_tree(tmp_path, suffix=".jpg")
    (image, _), *_ = samples(module(root))
    assert image.shape[0] == 3


def test_the_split_file_decides_and_without_it_the_folder(tmp_path: Path) -> None:
    root = write_png_tree(tmp_path)
    (root / "train.txt").write_text("0003\n0001\n")
    data = module(root)
    data.setup()
    assert [files["depth"].stem for files in data.datasets["train"].frames] == ["0003", "0001"]
    (root / "train.txt").unlink()
    data = module(root)
    data.setup()
    assert [files["depth"].stem for files in data.datasets["train"].frames] == [f"{i:04d}" for i in range(12)]


def test_mtan_frames_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    data = module(write_mtan_tree(tmp_path))
    data.setup()
    assert [files["depth"].stem for files in data.datasets["train"].frames] == [str(i) for i in range(12)]


def test_the_hold_out_is_whole_runs_of_training_frames_and_follows_the_seed(tmp_path: Path) -> None:
    root = write_png_tree(tmp_path)

    def names(split: str, seed: int = 0) -> list[int]:
        data = module(root, val_split="holdout", val_fraction=0.25, seed=seed)
        data.setup()
        return [int(files["depth"].stem) for files in data.datasets[split].frames]

    train, val, test = names("train"), names("val"), names("test")
    assert sorted(train + val) == list(range(12))
    assert val == list(range(val[0], val[0] + 3))
    assert set(test) == set(range(100, 104))
    assert names("val") == val
    assert len({tuple(names("val", seed)) for seed in range(8)}) > 1


def test_validation_on_the_test_frames_uses_all_training_frames(tmp_path: Path) -> None:
    data = module(write_png_tree(tmp_path), val_split="test")
    data.setup()
    assert len(data.datasets["train"]) == 12
    assert data.datasets["val"].frames == data.datasets["test"].frames


def test_only_the_training_split_is_augmented(tmp_path: Path) -> None:
    root = write_png_tree(tmp_path)
    plain, augmented = module(root), module(root, augment=[RandomScaleCrop((2.0,))])
    plain.setup()
    augmented.setup()
    half = augmented.datasets["train"][0][1]["depth"]
    assert half.max() <= plain.datasets["train"][0][1]["depth"].max() / 2
    for split in ("val", "test"):
        assert augmented.datasets[split][0][0].equal(plain.datasets[split][0][0])


def test_only_the_files_of_the_tasks_are_needed(tmp_path: Path) -> None:
    root = write_png_tree(tmp_path)
    for part in ("train", "test"):
        for folder in ("normal", "semantic_13", "semantic_40"):
            for path in (root / part / folder).iterdir():
                path.unlink()
    assert set(samples(module(root, tasks=("depth",)))[0][1]) == {"depth"}
    with pytest.raises(DatasetNotFoundError, match=r"missing train/normal/0000\.png, .* and 7 more\. The 1449"):
        module(root, tasks=("depth", "normals")).setup("fit")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _png(values: np.ndarray) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(values).save(path)


def _npy(values: np.ndarray) -> Callable[[Path], None]:
    return lambda path: np.save(path, values)


DEPTH = np.ones((24, 32, 1), np.float32)
WITH_NAN = np.where(np.arange(24 * 32).reshape(24, 32, 1) < 5, np.nan, DEPTH).astype(np.float32)

BAD_FILES = {
    "truncated-image": ("png", "train/rgb/0000.png", _truncate, "must be a readable image.*copy it again"),
    "truncated-labels": ("png", "train/semantic_13/0000.png", _truncate, "must be a readable image.*copy it again"),
    "no-image": ("png", "train/depth/0000.png", lambda p: p.write_text("hello"), "must be a readable image.*copy it"),
    "other-size-labels": (
        "png",
        "train/semantic_13/0000.png",
        _png(np.ones((12, 16), np.uint8)),
        r"size must be that of '0000.png', \(24, 32\), got \(12, 16\); export both at the same resolution",
    ),
    "other-size-normals": (
        "png",
        "train/normal/0000.png",
        _png(np.full((12, 16, 3), 200, np.uint8)),
        r"size must be that of '0000.png', \(24, 32\), got \(12, 16\)",
    ),
    "class-out-of-range": (
        "png",
        "train/semantic_13/0000.png",
        _png(np.full((24, 32), 14, np.uint8)),
        r"class ids must be in 0\.\.13, got 14; check num_classes and the file",
    ),
    "colour-labels": (
        "png",
        "train/semantic_13/0000.png",
        _png(np.zeros((24, 32, 3), np.uint8)),
        "must be 8-bit grey or palette, got Pillow mode 'RGB'; export it again",
    ),
    "8-bit-depth": (
        "png",
        "train/depth/0000.png",
        _png(np.ones((24, 32), np.uint8)),
        r"must be 16-bit grey \(millimetres\), got Pillow mode 'L'; export it again",
    ),
    "nan-depth": ("mtan", "train/depth/0.npy", _npy(WITH_NAN), "values must be finite, got 5 NaN.*export it again"),
    "negative-depth": (
        "mtan",
        "train/depth/0.npy",
        _npy(-DEPTH),
        "depth must not be negative, got -1; export it again",
    ),
    "depth-of-three-channels": (
        "mtan",
        "train/depth/0.npy",
        _npy(np.ones((24, 32, 3))),
        r"shape must be \(H, W, 1\), got \(24, 32, 3\); export it again",
    ),
    "truncated-array": ("mtan", "train/image/0.npy", _truncate, "must be a readable npy array.*copy it again"),
    "class-13-of-13": (
        "mtan",
        "train/label/0.npy",
        _npy(np.full((24, 32), 13.0)),
        r"class ids must be in -1\.\.12, got 13\.\.13; check num_classes",
    ),
    "bright-float-image": (
        "mtan",
        "train/image/0.npy",
        _npy(np.full((24, 32, 3), 200.0)),
        r"a float image must be in 0\.\.1, got 200\.\.200; export it again",
    ),
}


@pytest.mark.parametrize(("layout", "name", "spoil", "message"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_bad_file_is_named_with_its_problem_and_the_remedy(
    tmp_path: Path, layout: str, name: str, spoil: Callable[[Path], None], message: str
) -> None:
    root = (write_png_tree if layout == "png" else write_mtan_tree)(tmp_path)
    spoil(root / name)
    with pytest.raises(DataFileError, match=f"NYUv2DataModule: '.*{name}': {message}"):
        samples(module(root, tasks=ALL))


def test_a_bad_file_is_named_when_a_worker_reads_it(tmp_path: Path) -> None:
    root = write_png_tree(tmp_path)
    _truncate(root / "train/rgb/0000.png")
    data = module(root, num_workers=1, drop_last=False)
    data.setup("fit")
    with pytest.raises(DataFileError, match=r"'.*train/rgb/0000\.png': must be a readable image"):
        list(data.train_dataloader())


def test_the_error_of_a_file_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(DataFileError.of("A", "x.png", "must be b", "do c")))
    assert str(error) == "A: 'x.png': must be b; do c."


def test_a_missing_file_is_found_in_setup(tmp_path: Path) -> None:
    root = write_png_tree(tmp_path)
    (root / "train/depth/0004.png").unlink()
    (root / "train/rgb/0005.png").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"missing train/depth/0004\.png, train/rgb/0005\.png\. .*http"):
        module(root).setup("fit")


def test_an_empty_split_file_is_refused(tmp_path: Path) -> None:
    root = write_png_tree(tmp_path)
    (root / "test.txt").write_text("\n")
    with pytest.raises(
        EmptySplitError, match="split 'test' must hold at least one sample, got 0; check the split's list"
    ):
        module(root, val_split="holdout").setup("test")


def test_the_mtan_layout_has_thirteen_classes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="num_classes must be 13 with the mtan layout, got 40"):
        module(write_mtan_tree(tmp_path), num_classes=40).setup("fit")


def test_a_batch_larger_than_the_training_split_is_refused(tmp_path: Path) -> None:
    data = module(write_png_tree(tmp_path), batch_size=16)
    data.setup("fit")
    with pytest.raises(ValueError, match="batch_size must be at most the 12 training samples of a process, got 16"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, "tasks must be some of"),
        ({"tasks": ("boxes",)}, "tasks must be some of"),
        ({"num_classes": 20}, "num_classes must be 13 or 40, got 20"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1, got 1.0"),
        ({"size": (0, 1)}, "size must be positive"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"NYUv2DataModule: {message}"):
        NYUv2DataModule("nowhere", **options)


@pytest.mark.parametrize(("name", "size"), [("nyuv2", (480, 640)), ("nyuv2_mtan", (288, 384))])
def test_real_frames_are_read(name: str, size: tuple[int, int], real_data: Callable[[str], Path]) -> None:
    data = module(real_data(name), tasks=ALL)
    data.setup()
    assert len(data.datasets["train"]) >= 12
    for index in (0, 5):
        image, targets = data.datasets["train"][index]
        assert image.shape == (3, *size)
        assert 0.3 < targets["depth"].median() < 10
        assert (targets["segmentation"] != 255).float().mean() > 0.5
        length = targets["normals"].norm(dim=0)
        assert ((length - 1).abs() < 1e-4).logical_or(length == 0).all()
        assert (targets["normals"][2][length > 0] > -0.2).float().mean() > 0.95  # surfaces face the viewer
        assert 0 < (targets["edges"] == 1).float().mean() < 0.2


def test_both_layouts_of_a_real_frame_agree(real_data: Callable[[str], Path]) -> None:
    png, mtan = real_data("nyuv2"), real_data("nyuv2_mtan")
    number = (mtan / "train" / "source_ids.txt").read_text().split()[0]
    one = module(png, size=(288, 384))
    one.setup()
    names = [files["image"].stem for files in one.datasets["train"].frames]
    image, targets = one.datasets["train"][names.index(number)]
    other = module(mtan)
    other.setup()
    image_npy, targets_npy = other.datasets["train"][0]
    assert (image - image_npy).abs().median() < 0.05
    assert (targets["segmentation"] == targets_npy["segmentation"]).float().mean() > 0.95
    assert (targets["depth"] - targets_npy["depth"]).abs().median() < 0.05
    cosine = (targets["normals"] * targets_npy["normals"]).sum(0)
    both = (targets["normals"] != 0).any(0) & (targets_npy["normals"] != 0).any(0)
    assert both.float().mean() > 0.7
    assert (cosine[both] > 0.95).float().mean() > 0.95
