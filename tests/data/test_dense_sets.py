"""The dense data sets give back what was written in their encodings."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lightning_mtl.data import (
    CamVidDataModule,
    CityscapesDataModule,
    CityscapesMTANDataModule,
    DataFileError,
    DatasetNotFoundError,
    DenseFolderDataModule,
    FolderTarget,
    MultiTaskDataModule,
    NYUv2DataModule,
    PascalContextDataModule,
    TaskonomyDataModule,
)
from lightning_mtl.data.dense import label_boundaries, signed_distance
from lightning_mtl.data.dense.files import LabelTable
from tests.data.dense_trees import (
    BASELINE,
    CAMVID_IDS,
    CATEGORIES,
    FOCAL,
    SEMANTIC_IDS,
    TRAIN_IDS,
    VOC_IDS,
    as_ids,
    maps_of,
    save,
    write_camvid,
    write_cityscapes,
    write_cityscapes_mtan,
    write_folder,
    write_pascal_context,
    write_taskonomy,
)
from tests.data.trees import write_mtan_tree, write_png_tree

DOMAINS = (
    "segment_semantic",
    "depth_zbuffer",
    "depth_euclidean",
    "normal",
    "edge_texture",
    "edge_occlusion",
    "keypoints2d",
    "keypoints3d",
    "reshading",
    "principal_curvature",
)
FOLDERS = {
    "classes": FolderTarget("segmentation", "labels", classes=(10, 20, 30, 40, 50), ignore=(0,)),
    "depth": FolderTarget("depth", scale=0.001),
    "normals": FolderTarget("normals", signs=(1, -1, -1)),
    "mask": FolderTarget("saliency"),
    "heat": FolderTarget("regression", scale=10.0),
}


def built(cls: type[MultiTaskDataModule], root: Path | None, **options: Any) -> Any:
    return cls(root=root, **{"batch_size": 2, "num_workers": 0, "augment": False, **options})  # type: ignore[call-arg]


def sample(data: Any, split: str = "train", index: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    data.setup({"train": "fit", "val": "fit", "test": "test", "predict": "predict"}[split])
    found: tuple[Tensor, dict[str, Tensor]] = data.datasets[split][index]
    return found


def stems(data: Any, split: str) -> list[str]:
    data.setup({"train": "fit", "val": "fit"}.get(split, split))
    return [files["image"].stem for files in data.datasets[split].frames]


# CamVid


def test_camvid_gives_classes_their_boundaries_and_distances(tmp_path: Path) -> None:
    data = built(CamVidDataModule, write_camvid(tmp_path), distance_classes=("car", "pedestrian"), reach=5)
    image, targets = sample(data, "train", 3)
    maps = maps_of(3)
    expected = torch.from_numpy(as_ids(maps["segmentation"], (255, *CAMVID_IDS[1:]))).long()
    assert image.shape == (3, 24, 32)
    assert targets["segmentation"].equal(expected)
    assert targets["edges"].equal(label_boundaries(expected)[None])
    inside = (expected == 8) | (expected == 9)
    torch.testing.assert_close(
        targets["distance"], signed_distance(inside, expected != 255, 5), rtol=0, atol=0, equal_nan=True
    )


def test_camvid_follows_its_lists_and_not_the_paths_in_them(tmp_path: Path) -> None:
    root = write_camvid(tmp_path)
    lines = (root / "train.txt").read_text().splitlines()
    (root / "train.txt").write_text(f"{lines[5]}\n\n{lines[2]}\n")
    assert stems(built(CamVidDataModule, root), "train") == ["0001TP_000005", "0001TP_000002"]


def test_a_line_of_camvid_without_its_annotation_is_refused(tmp_path: Path) -> None:
    root = write_camvid(tmp_path)
    (root / "val.txt").write_text("/SegNet/CamVid/val/a.png /SegNet/CamVid/valannot/b.png\n")
    with pytest.raises(
        DataFileError, match=r"'.*val\.txt': every line must hold .*got '/SegNet.*b\.png'; copy the list"
    ):
        built(CamVidDataModule, root).setup("fit")


def test_real_camvid_frames_are_read(real_data: Callable[[str], Path]) -> None:
    data = built(CamVidDataModule, real_data("camvid"))
    data.setup()
    assert [len(data.datasets[split]) for split in ("train", "val", "test")] == [40, 12, 12]
    seen = set()
    for index in (0, 20):
        image, targets = data.datasets["train"][index]
        assert image.shape == (3, 360, 480)
        seen |= set(targets["segmentation"].unique().tolist())
        assert (targets["segmentation"] != 255).float().mean() > 0.9
        assert 0.01 < (targets["edges"] == 1).float().mean() < 0.2
        distance = targets["distance"]
        assert distance.isnan().equal(targets["segmentation"][None] == 255)
        assert (distance.nan_to_num().abs() <= 1).all()
        objects = torch.isin(targets["segmentation"], torch.tensor([2, 6, 7, 8, 9, 10]))
        assert (distance[0] > 0).equal(objects)
    assert {0, 1, 3, 4, 5} <= seen  # sky, building, road, pavement, tree


def test_real_camvid_roads_are_low_and_sky_is_high(real_data: Callable[[str], Path]) -> None:
    _, targets = sample(built(CamVidDataModule, real_data("camvid")), index=10)
    rows = torch.arange(360.0)[:, None].expand(360, 480)
    road, sky = (rows[targets["segmentation"] == k].mean() for k in (3, 0))
    assert road > 200
    assert sky < 150


# Cityscapes


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ({}, TRAIN_IDS),
        ({"num_classes": 7}, CATEGORIES),
        ({"labels": "labelTrainIds"}, TRAIN_IDS),
    ],
    ids=["label-ids", "categories", "train-ids"],
)
def test_cityscapes_label_ids_become_classes(tmp_path: Path, options: dict[str, Any], ids: tuple[int, ...]) -> None:
    data = built(CityscapesDataModule, write_cityscapes(tmp_path), tasks=("segmentation",), **options)
    _, targets = sample(data)
    assert targets["segmentation"].numpy().tolist() == as_ids(maps_of(0)["segmentation"], ids).tolist()


def test_every_label_id_of_cityscapes_has_its_official_class() -> None:
    from lightning_mtl.data.dense.cityscapes import CATEGORY_CLASSES, CATEGORY_NAMES, CLASS_NAMES, TRAIN_CLASSES

    rows = """unlabeled void, ego vehicle void, rectification border void, out of roi void, static void, dynamic void,
    ground void, road flat, sidewalk flat, parking flat, rail track flat, building construction, wall construction,
    fence construction, guard rail construction, bridge construction, tunnel construction, pole object,
    polegroup object, traffic light object, traffic sign object, vegetation nature, terrain nature, sky sky,
    person human, rider human, car vehicle, truck vehicle, bus vehicle, caravan vehicle, trailer vehicle,
    train vehicle, motorcycle vehicle, bicycle vehicle"""
    for number, row in enumerate(rows.replace("\n", " ").split(",")):
        name, _, category = row.strip().rpartition(" ")
        assert TRAIN_CLASSES[number] == (CLASS_NAMES.index(name) if name in CLASS_NAMES else 255)
        assert CATEGORY_CLASSES[number] == (CATEGORY_NAMES.index(category) if category != "void" else 255)
    assert len(TRAIN_CLASSES) == len(CATEGORY_CLASSES) == 34


def test_cityscapes_disparity_and_depth_are_those_of_the_scene(tmp_path: Path) -> None:
    data = built(CityscapesDataModule, write_cityscapes(tmp_path), tasks=("disparity", "depth"))
    _, targets = sample(data)
    true = torch.from_numpy(maps_of(0)["depth"])[None]
    valid = true > 0
    assert (targets["disparity"][~valid] == 0).all()
    assert (targets["depth"][~valid] == 0).all()
    assert (targets["disparity"][valid] - BASELINE * FOCAL / true[valid]).abs().max() <= 0.5 / 256 + 1e-5
    assert torch.allclose(targets["depth"][valid], true[valid], rtol=1e-3)
    _, alone = sample(built(CityscapesDataModule, tmp_path, tasks=("depth",), max_depth=4.0))
    assert set(alone) == {"depth"}
    assert alone["depth"].equal(targets["depth"].masked_fill(targets["depth"] > 4, 0))


def test_stored_disparities_of_zero_and_one_are_unlabelled(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path)
    path = root / "disparity/train/aachen/aachen_000000_000019_disparity.png"
    stored = np.full((24, 32), 2049, np.uint16)
    stored[0, :2] = 0, 1
    save(path, stored)
    _, targets = sample(built(CityscapesDataModule, root, tasks=("disparity", "depth")))
    assert targets["disparity"][0, 0, :3].tolist() == [0, 0, 8]
    assert targets["depth"][0, 0, :3].tolist() == pytest.approx([0, 0, BASELINE * FOCAL / 8])


def test_cityscapes_needs_only_the_archives_of_its_tasks(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path)
    for path in [*root.glob("disparity/**/*.png"), *root.glob("camera/**/*.json")]:
        path.unlink()
    assert set(sample(built(CityscapesDataModule, root, tasks=("segmentation",)))[1]) == {"segmentation"}
    missing = r"missing disparity/train/aachen/aachen_000000_000019_disparity\.png, camera/.* and 19 more\. Register"
    with pytest.raises(DatasetNotFoundError, match=missing):
        built(CityscapesDataModule, root, tasks=("depth",)).setup("fit")


def test_the_official_validation_frames_are_validated_on_or_left_for_the_test(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path)
    data = built(CityscapesDataModule, root)
    assert len(stems(data, "train")) == 12
    assert stems(data, "val") == stems(data, "test") == stems(data, "predict")
    held = built(CityscapesDataModule, root, val_split="holdout")
    assert sorted(stems(held, "train") + stems(held, "val")) == sorted(stems(data, "train"))
    assert stems(held, "test") == stems(data, "test")


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{", "JSONDecodeError"), ('{"intrinsic": {"fx": 1}}', "KeyError"), ('{"extrinsic": 3}', "TypeError")],
    ids=["no-json", "no-baseline", "no-object"],
)
def test_a_camera_file_that_cannot_be_used_is_named(tmp_path: Path, text: str, problem: str) -> None:
    root = write_cityscapes(tmp_path)
    (root / "camera/train/aachen/aachen_000000_000019_camera.json").write_text(text)
    with pytest.raises(
        DataFileError, match=rf"'.*000000_000019_camera\.json': must hold extrinsic.baseline .*{problem}"
    ):
        sample(built(CityscapesDataModule, root, tasks=("depth",)))


def test_a_camera_without_extent_is_named(tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path)
    camera = {"extrinsic": {"baseline": 0}, "intrinsic": {"fx": 9}}
    (root / "camera/train/aachen/aachen_000000_000019_camera.json").write_text(json.dumps(camera))
    with pytest.raises(DataFileError, match=r"baseline times fx must be positive, got 0\.0; copy it again"):
        sample(built(CityscapesDataModule, root, tasks=("depth",)))


@pytest.mark.parametrize(("num_classes", "ids"), [(7, CATEGORIES), (19, TRAIN_IDS)])
def test_the_npy_cityscapes_gives_classes_and_inverse_depth(
    tmp_path: Path, num_classes: int, ids: tuple[int, ...]
) -> None:
    data = built(CityscapesMTANDataModule, write_cityscapes_mtan(tmp_path), num_classes=num_classes)
    _, targets = sample(data, "train", 11)
    maps = maps_of(11)
    assert targets["segmentation"].numpy().tolist() == as_ids(maps["segmentation"], ids).tolist()
    depth = torch.from_numpy(maps["depth"])[None]
    assert torch.allclose(targets["inverse_depth"] * depth, 0.4 * (depth > 0).float())
    assert stems(data, "train") == [str(i) for i in range(12)]


def test_the_npy_cityscapes_takes_the_folder_of_labels_of_older_copies_and_no_negative_depth(tmp_path: Path) -> None:
    root = write_cityscapes_mtan(tmp_path)
    for part in ("train", "val"):
        (root / part / "label_7").rename(root / part / "label")
    depth = np.load(root / "train/depth/0.npy")
    depth[0, 0] = -1 / 256
    save(root / "train/depth/0.npy", depth)
    _, targets = sample(built(CityscapesMTANDataModule, root))
    assert targets["segmentation"].max() <= 255
    assert targets["inverse_depth"][0, 0, 0] == 0


def test_zooming_brings_the_scene_nearer_in_depth_and_in_disparity(tmp_path: Path) -> None:
    from lightning_mtl.data import RandomScaleCrop

    root = write_cityscapes(tmp_path)
    data = built(CityscapesDataModule, root, tasks=("disparity", "depth"), augment=[RandomScaleCrop((2.0,))])
    _, targets = sample(data)
    valid = targets["depth"] > 0
    product = (targets["depth"] * targets["disparity"])[valid]
    assert torch.allclose(product, torch.tensor(BASELINE * FOCAL), rtol=1e-5)


# PASCAL-Context


def test_pascal_context_gives_its_five_tasks(tmp_path: Path) -> None:
    data = built(PascalContextDataModule, write_pascal_context(tmp_path), size=(32, 40))
    data.setup("fit")
    with_people = 0
    for index in range(12):
        image, targets = data.datasets["train"][index]
        maps = maps_of(index, (24 - 2 * (index % 3), 32 - index % 2))
        height, width = maps["depth"].shape
        inside = (slice(None, height), slice(None, width))
        classes = maps["segmentation"]
        assert image.shape == (3, 32, 40)
        assert image[:, height:].abs().max() < 0.02  # the padding is the mean colour
        assert targets["segmentation"][inside].numpy().tolist() == as_ids(classes, VOC_IDS).tolist()
        assert targets["saliency"][0][inside].numpy().tolist() == (classes >= 3).astype(float).tolist()
        assert targets["edges"][0][inside].equal(label_boundaries(torch.from_numpy(classes).int()))
        normals = targets["normals"].permute(1, 2, 0)[inside].numpy()
        known = np.isin(classes, (1, 2, 3, 5))  # floor, wall, person, bed: NYU Depth v2 has them
        assert (normals[~known] == 0).all()
        assert (normals[known] * maps["normals"][known]).sum(-1).min() > 0.999
        person = classes == 3
        upper = np.arange(height)[:, None] < height // 2
        parts = np.where(person, np.where(upper, 1, 4), 0) if person.any() else np.full_like(classes, 255)
        with_people += int(person.any())
        assert targets["human_parts"][inside].numpy().tolist() == parts.tolist()
        for task in ("segmentation", "human_parts", "saliency", "edges"):
            assert (targets[task][..., height:, :] == 255).all(), task
            assert (targets[task][..., width:] == 255).all(), task
        assert (targets["normals"][:, height:] == 0).all()
    assert 0 < with_people < 12


def test_pascal_context_crops_and_scales_when_it_trains_and_keeps_its_size_without_one(tmp_path: Path) -> None:
    root = write_pascal_context(tmp_path)
    data = built(PascalContextDataModule, root, size=(16, 16), augment=True)
    image, targets = sample(data)
    assert image.shape == (3, 16, 16)
    assert {tuple(target.shape[-2:]) for target in targets.values()} == {(16, 16)}
    plain = built(PascalContextDataModule, root, size=None)
    plain.setup("fit")
    assert {plain.datasets["train"][i][0].shape[-2:] for i in range(3)} == {(24, 32), (22, 31), (20, 32)}


def test_the_lists_of_pascal_context_are_honoured(tmp_path: Path) -> None:
    root = write_pascal_context(tmp_path)
    (root / "ImageSets/Context/train.txt").write_text("2008_000003\n2008_000001\n")
    assert stems(built(PascalContextDataModule, root), "train") == ["2008_000003", "2008_000001"]


def test_matlab_files_without_their_variable_or_with_an_unknown_part_are_named(tmp_path: Path) -> None:
    from scipy.io import savemat

    root = write_pascal_context(tmp_path)
    context, parts = root / "pascal-context/trainval/2008_000000.mat", root / "human_parts/2008_000000.mat"
    savemat(context, {"other": np.zeros(3)})
    with pytest.raises(DataFileError, match=r"'.*000000\.mat': must be a MATLAB file with the variable 'LabelMap'"):
        sample(built(PascalContextDataModule, root, tasks=("edges",)))
    savemat(context, {"LabelMap": np.full((24, 32), 460, np.uint16)})
    with pytest.raises(DataFileError, match=r"LabelMap must hold integers in 0\.\.459, .* up to 460; copy it again"):
        sample(built(PascalContextDataModule, root, tasks=("normals",)))
    things = np.array(
        [
            [
                (
                    15,
                    np.ones((24, 32)),
                    np.array([[("wing", np.ones((24, 32)))]], dtype=[("part_name", object), ("mask", "O")]),
                )
            ]
        ],
        dtype=[("class_ind", object), ("mask", object), ("parts", object)],
    )
    savemat(parts, {"anno": {"objects": things}})
    with pytest.raises(DataFileError, match=r"'.*000000\.mat': parts must be some of \['hair'.*got 'wing'"):
        sample(built(PascalContextDataModule, root, tasks=("human_parts",)))
    savemat(parts, {"anno": {"imname": "x"}})
    with pytest.raises(DataFileError, match=r"must hold anno.objects with class_ind, mask and parts"):
        sample(built(PascalContextDataModule, root, tasks=("human_parts",)))


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    PascalContextDataModule(tasks=("segmentation", "saliency"))
    with pytest.raises(ModuleNotFoundError, match=r"PascalContextDataModule: .*pip install lightning-mtl\[pascal\]"):
        PascalContextDataModule(tasks=("edges",))


# Taskonomy


@pytest.mark.parametrize("above", ["", "taskonomy"], ids=["plain", "omnidata"])
def test_taskonomy_decodes_every_domain(tmp_path: Path, above: str) -> None:
    data = built(TaskonomyDataModule, write_taskonomy(tmp_path, above=above), tasks=DOMAINS)
    _, targets = sample(data, "train", 2)
    maps = maps_of(2)
    depth = torch.from_numpy(maps["depth"])[None]
    grey = torch.from_numpy(maps["image"].astype(np.uint16).mean(-1))[None]
    classes = np.where(maps["segmentation"] == 0, 255, as_ids(maps["segmentation"], SEMANTIC_IDS) - 1)
    assert targets["segment_semantic"].numpy().tolist() == classes.tolist()
    for domain in ("depth_zbuffer", "depth_euclidean"):
        assert (targets[domain] - depth).abs().max() <= 0.5 / 512 + 1e-6
        assert (targets[domain] == 0).equal(depth == 0)
    normals = targets["normal"].permute(1, 2, 0).numpy()
    known = maps["depth"] > 0
    assert (normals[known] * maps["normals"][known]).sum(-1).min() > 0.999
    assert (normals[~known] == 0).all()
    for domain in ("edge_texture", "edge_occlusion"):
        assert torch.allclose(targets[domain], (grey / 255).float(), atol=1e-4)
    assert torch.allclose(targets["keypoints2d"], (grey * 100 / 65535).float(), atol=1e-4)
    assert torch.allclose(targets["keypoints3d"], (grey * 50 / 65535).float(), atol=1e-4)
    assert torch.allclose(targets["reshading"], (grey.floor() / 255).float())
    assert targets["principal_curvature"][:, 0, 0].tolist() == [0.0, 0.5]


def test_a_floor_a_facing_wall_and_a_left_wall_have_the_colours_of_taskonomy(tmp_path: Path) -> None:
    root = write_taskonomy(tmp_path)
    colours = np.zeros((24, 32, 3), np.uint8)
    colours[:, :10], colours[:, 10:20], colours[:, 20:] = (128, 0, 128), (128, 128, 0), (255, 128, 128)
    save(root / "normal/hanson/point_0_view_0_domain_normal.png", colours)
    _, targets = sample(built(TaskonomyDataModule, root, tasks=("normal",)))
    up, to_viewer, right = (targets["normal"][:, 0, column] for column in (0, 12, 25))
    assert torch.allclose(up, torch.tensor([0.0, 1.0, 0.0]), atol=0.01)
    assert torch.allclose(to_viewer, torch.tensor([0.0, 0.0, 1.0]), atol=0.01)
    assert torch.allclose(right, torch.tensor([1.0, 0.0, 0.0]), atol=0.01)


def test_taskonomy_splits_by_the_published_buildings(tmp_path: Path) -> None:
    root = write_taskonomy(tmp_path)
    data = built(TaskonomyDataModule, root)
    data.setup()
    found = {s: {f["image"].parent.name for f in data.datasets[s].frames} for s in ("train", "val", "test", "predict")}
    assert found == {"train": {"hanson", "merom"}, "val": {"wiconisco"}, "test": {"ihlen"}, "predict": {"ihlen"}}
    fewer = built(TaskonomyDataModule, root, without=("merom",))
    fewer.setup("fit")
    assert {f["image"].parent.name for f in fewer.datasets["train"].frames} == {"hanson"}
    (root / "splits_taskonomy").mkdir()
    (root / "train_val_test_tiny.csv").rename(root / "splits_taskonomy/train_val_test_tiny.csv")
    built(TaskonomyDataModule, root).setup("test")


def test_a_view_of_taskonomy_without_a_domain_is_named_or_left_out(tmp_path: Path) -> None:
    root = write_taskonomy(tmp_path)
    (root / "normal/merom/point_3_view_0_domain_normal.png").unlink()
    with pytest.raises(
        DatasetNotFoundError, match=r"missing normal/merom/point_3_view_0_domain_normal\.png\. Pass incom"
    ):
        built(TaskonomyDataModule, root).setup("fit")
    data = built(TaskonomyDataModule, root, incomplete="skip")
    data.setup("fit")
    assert len(data.datasets["train"]) == 11
    for path in root.glob("edge_texture/*/*.png"):
        path.unlink()
    with pytest.raises(DatasetNotFoundError, match="missing edge_texture/hanson"):
        built(TaskonomyDataModule, root, tasks=("edge_texture",), incomplete="skip").setup("fit")


def test_a_building_that_is_not_there_and_a_list_without_columns_are_named(tmp_path: Path) -> None:
    root = write_taskonomy(tmp_path)
    for path in root.glob("rgb/merom/*"):
        path.unlink()
    with pytest.raises(DatasetNotFoundError, match=r"missing rgb/merom\. The data set"):
        built(TaskonomyDataModule, root).setup("fit")
    (root / "train_val_test_tiny.csv").write_text("building,part\nhanson,train\n")
    with pytest.raises(DataFileError, match=r"'.*tiny\.csv': must have the columns id and train"):
        built(TaskonomyDataModule, root).setup("fit")


# A folder of one's own


def test_a_folder_of_ones_own_is_read_as_its_kinds_say(tmp_path: Path) -> None:
    data = built(DenseFolderDataModule, write_folder(tmp_path), targets=FOLDERS)
    _, targets = sample(data, "val", 1)
    maps = maps_of(13)
    classes = np.where(maps["segmentation"] == 0, 255, maps["segmentation"].astype(int) - 1)
    depth = torch.from_numpy(maps["depth"])[None]
    assert targets["classes"].numpy().tolist() == classes.tolist()
    assert (targets["depth"] - depth).abs().max() <= 5.1e-4
    assert torch.allclose(targets["normals"], torch.from_numpy(maps["normals"]).permute(2, 0, 1), atol=1e-6)
    assert targets["mask"][0].numpy().tolist() == (maps["segmentation"] >= 3).astype(float).tolist()
    assert targets["heat"].isnan().equal(depth == 0)
    assert torch.allclose(targets["heat"].nan_to_num(), depth)


def test_parts_may_be_folders_and_validation_frames_are_set_aside_where_there_are_none(tmp_path: Path) -> None:
    listed = write_folder(tmp_path / "lists")
    root = tmp_path / "folders"
    for part in ("train", "test"):
        for name in (listed / f"{part}.txt").read_text().split():
            for folder in ("images", "labels"):
                target = root / part / folder / f"{name}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                (listed / folder / f"{name}.png").rename(target)
    options = {"targets": {"labels": dataclasses.replace(FOLDERS["classes"], folder=None)}, "val_fraction": 0.25}
    data = built(DenseFolderDataModule, root, **options)
    train, val = stems(data, "train"), stems(data, "val")
    assert (len(train), len(val), len(stems(data, "test"))) == (9, 3, 4)
    assert sorted(train + val) == sorted(f"img{i}" for i in range(12))


def test_labels_of_a_folder_may_be_arrays_and_masks_may_hold_void(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    maps = maps_of(0)
    (root / "labels/img0.png").unlink()
    save(root / "labels/img0.npy", 10 * maps["segmentation"].astype(np.int64))
    save(root / "mask/img0.png", np.array([0, 1, 255], np.uint8)[maps["segmentation"].clip(0, 2)])
    targets = {"classes": FOLDERS["classes"], "mask": FolderTarget("edges", positive=1)}
    _, found = sample(built(DenseFolderDataModule, root, targets=targets))
    classes = np.where(maps["segmentation"] == 0, 255, maps["segmentation"].astype(int) - 1)
    assert found["classes"].numpy().tolist() == classes.tolist()
    assert found["mask"][0].numpy().tolist() == np.array([0.0, 1, 255])[maps["segmentation"].clip(0, 2)].tolist()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", ">i4", "int64", "float32", "float64"])
def test_labels_in_arrays_may_be_of_any_type_of_number(tmp_path: Path, dtype: str) -> None:
    from lightning_mtl.data.dense.files import read_npy_labels
    from lightning_mtl.data.dense.folder import _segmentation

    save(tmp_path / "ids.npy", np.array([[0, 10, 20]], dtype))
    assert _segmentation(tmp_path / "ids.npy", "X", FOLDERS["classes"]).tolist() == [[255, 0, 1]]
    save(tmp_path / "classes.npy", np.array([[0, 1, 6]], dtype))
    assert read_npy_labels(tmp_path / "classes.npy", "X", 7).tolist() == [[0, 1, 6]]


def test_an_array_of_something_else_than_numbers_is_refused(tmp_path: Path) -> None:
    from lightning_mtl.data.dense.files import read_array

    save(tmp_path / "text.npy", np.array([["a", "b"]]))
    with pytest.raises(DataFileError, match=r"text\.npy': values must be numbers, got <U1; export it again"):
        read_array(tmp_path / "text.npy", "X", None)


def test_two_targets_of_one_kind_are_both_mirrored(tmp_path: Path) -> None:
    from lightning_mtl.data import RandomHorizontalFlip

    root = write_folder(tmp_path)
    targets = {
        "a": FOLDERS["classes"],
        "b": FOLDERS["classes"],
        "n": dataclasses.replace(FOLDERS["normals"], folder="normals"),
    }
    _, plain = sample(built(DenseFolderDataModule, root, targets=targets))
    _, flipped = sample(built(DenseFolderDataModule, root, targets=targets, augment=[RandomHorizontalFlip(1.0)]))
    assert flipped["a"].equal(plain["a"].flip(-1))
    assert flipped["b"].equal(flipped["a"])
    assert flipped["n"][0].equal(0 - plain["n"][0].flip(-1))
    assert flipped["n"][1:].equal(plain["n"][1:].flip(-1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "segmentation"}, "segmentation must have num_classes or classes"),
        ({"kind": "segmentation", "classes": ()}, "classes must name at least one class, got an empty list"),
        ({"kind": "segmentation", "num_classes": 0}, "classes must name at least one class, got an empty list"),
        ({"kind": "segmentation", "classes": (1, 1)}, r"classes must be different ids, got \(1, 1\)"),
        ({"kind": "segmentation", "num_classes": 3, "ignore": (2,)}, "ignore must name no class"),
        ({"kind": "edges", "positive": 2}, "positive must be 1 or 255, got 2"),
        ({"kind": "depth", "scale": 0}, "scale must not be 0"),
        ({"kind": "normals", "signs": (1, 0, 1)}, "signs must be three of 1 and -1"),
        ({"kind": "regression", "channels": 0}, "channels must be at least 1"),
    ],
)
def test_bad_descriptions_of_a_folder_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"FolderTarget: {message}"):
        FolderTarget(**options)


def test_more_numbers_a_pixel_are_read_from_arrays_and_not_from_images(tmp_path: Path) -> None:
    root = write_folder(tmp_path)
    for index in range(16):
        save(root / "flow" / f"img{index}.npy", np.full((24, 32, 2), index, np.float32))
    flow = {"flow": FolderTarget("regression", channels=2, invalid=3)}
    data = built(DenseFolderDataModule, root, targets=flow)
    assert sample(data)[1]["flow"].shape == (2, 24, 32)
    assert sample(data, index=3)[1]["flow"].isnan().all()
    with pytest.raises(DataFileError, match=r"img0\.png': must be an npy array for channels=2, got an image"):
        sample(built(DenseFolderDataModule, root, targets={"depth": flow["flow"]}))


# What holds for all of them


def camvid(root: Path, **options: Any) -> Any:
    return built(CamVidDataModule, root, tasks=("segmentation",), **options)


def folder(root: Path, **options: Any) -> Any:
    return built(DenseFolderDataModule, root, targets=FOLDERS, **options)


SETS: dict[str, tuple[Callable[..., Any], Callable[[Path], Path], str, str, str]] = {
    # build, write, a file of classes, a list of the training frames (or what stands for it), the image beside it
    "nyuv2-png": (
        lambda root, **o: built(NYUv2DataModule, root, val_split="test", **o),
        write_png_tree,
        "train/semantic_13/0000.png",
        "",
        "0000.png",
    ),
    "nyuv2-mtan": (
        lambda root, **o: built(NYUv2DataModule, root, val_split="test", **o),
        write_mtan_tree,
        "train/label/0.npy",
        "",
        "0.npy",
    ),
    "camvid": (camvid, write_camvid, "trainannot/0001TP_000000.png", "train.txt", "0001TP_000000.png"),
    "cityscapes": (
        lambda root, **o: built(CityscapesDataModule, root, **o),
        write_cityscapes,
        "gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png",
        "leftImg8bit/train",
        "aachen_000000_000019_leftImg8bit.png",
    ),
    "cityscapes-mtan": (
        lambda root, **o: built(CityscapesMTANDataModule, root, **o),
        write_cityscapes_mtan,
        "train/label_7/0.npy",
        "train/image",
        "0.npy",
    ),
    "pascal-context": (
        lambda root, **o: built(PascalContextDataModule, root, **{"size": (32, 32), **o}),
        write_pascal_context,
        "semseg/VOC12/2008_000000.png",
        "ImageSets/Context/train.txt",
        "2008_000000.jpg",
    ),
    "taskonomy": (
        lambda root, **o: built(TaskonomyDataModule, root, **o),
        write_taskonomy,
        "segment_semantic/hanson/point_0_view_0_domain_segmentsemantic.png",
        "train_val_test_tiny.csv",
        "point_0_view_0_domain_rgb.png",
    ),
    "folder": (folder, write_folder, "labels/img0.png", "train.txt", "img0.png"),
}
every = pytest.mark.parametrize("case", SETS.values(), ids=SETS.keys())


@every
def test_a_label_of_another_size_is_named(case: Any, tmp_path: Path) -> None:
    build, write, label, _, image = case
    root = write(tmp_path)
    path = root / label
    small = np.load(path)[:12, :16] if path.suffix == ".npy" else np.array(Image.open(path))[:12, :16]
    save(path, small)
    with pytest.raises(
        DataFileError, match=rf"'.*{path.name}': size must be that of '{image}', \(24, 32\), got \(12, 16\)"
    ):
        sample(build(root))


@every
def test_an_unknown_class_id_is_named(case: Any, tmp_path: Path) -> None:
    build, write, label, *_ = case
    path = write(tmp_path) / label
    dtype = np.float32 if path.suffix == ".npy" else np.uint8
    save(path, np.full((24, 32), 77, dtype))
    name = type(build(tmp_path)).__name__
    with pytest.raises(
        DataFileError, match=rf"{name}: '.*{path.name}': class ids must be in .*, got (77\.\.)?77; check"
    ):
        sample(build(tmp_path))


@every
def test_a_missing_list_of_frames_is_named(case: Any, tmp_path: Path) -> None:
    build, write, _, listing, _ = case
    if not listing:
        pytest.skip("the folder's frames count where there is no list")
    root = write(tmp_path)
    (root / listing).rename(root / "away")
    missing = listing.split("/")[-1].removesuffix("image")
    with pytest.raises(DatasetNotFoundError, match=rf"data not found in '.*': missing .*{missing}.*(http|docs/data)"):
        build(root).setup("fit")


@every
def test_a_missing_file_of_a_frame_is_found_in_setup(case: Any, tmp_path: Path) -> None:
    build, write, label, *_ = case
    (write(tmp_path) / label).unlink()
    with pytest.raises(
        DatasetNotFoundError, match=rf"missing {label}.* (http|The page docs/data)".replace(".png", "..*")
    ):
        build(tmp_path).setup("fit")


@every
def test_a_damaged_file_is_named(case: Any, tmp_path: Path) -> None:
    build, write, label, *_ = case
    path = write(tmp_path) / label
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(
        DataFileError, match=rf"'.*{path.name}': must be a readable (image|npy array), got: .*; copy it again"
    ):
        sample(build(tmp_path))


@every
def test_no_task_at_all_is_refused(case: Any, tmp_path: Path) -> None:
    build = case[0]
    name = type(build(tmp_path)).__name__
    argument = {"targets": {}} if name == "DenseFolderDataModule" else {"tasks": ()}
    with pytest.raises(ValueError, match=rf"{name}: t(asks|argets) must (be some of|name at least one)"):
        globals()[name](tmp_path, **argument)


@every
@pytest.mark.parametrize("kind", ["mean", "size"])
def test_size_and_statistics_are_checked(case: Any, kind: str, tmp_path: Path) -> None:
    wrong, message = {
        "mean": ({"std": (1.0, 0.0, 1.0)}, "mean and std must be three numbers, std positive"),
        "size": ({"size": (0, 4)}, "size must be positive, got"),
    }[kind]
    with pytest.raises(ValueError, match=message):
        case[0](tmp_path, **wrong)


@pytest.mark.parametrize(
    ("build", "write", "path", "array"),
    [
        (SETS["nyuv2-mtan"][0], write_mtan_tree, "train/depth/0.npy", np.full((24, 32, 1), np.nan, np.float32)),
        (SETS["cityscapes-mtan"][0], write_cityscapes_mtan, "train/depth/0.npy", np.full((24, 32, 1), np.nan)),
        (SETS["folder"][0], write_folder, "depth/img0.npy", np.full((24, 32), np.inf)),
    ],
    ids=["nyuv2", "cityscapes", "folder"],
)
def test_depth_that_is_no_number_is_named(build: Any, write: Any, path: str, array: np.ndarray, tmp_path: Path) -> None:
    root = write(tmp_path)
    (root / path).with_suffix(".png").unlink(missing_ok=True)
    save(root / path, array)
    with pytest.raises(
        DataFileError, match=rf"'.*{path}': values must be finite, got 768 NaN or infinite ones; export"
    ):
        sample(build(root))


@every
def test_the_statistics_of_a_data_set_can_replace_those_of_imagenet(case: Any, tmp_path: Path) -> None:
    build, write, *_ = case
    root = write(tmp_path)
    usual, _ = sample(build(root))
    own, _ = sample(build(root, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(own, usual * std.view(3, 1, 1) + mean.view(3, 1, 1), atol=1e-5, rtol=0)


def test_every_file_of_a_frame_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = Image.open
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(str(path)) or original(path, *rest))
    data = built(CamVidDataModule, write_camvid(tmp_path))
    opened.clear()
    data.setup("fit")
    assert opened == []
    assert set(data.datasets["train"][0][1]) == {"segmentation", "edges", "distance"}
    assert sorted(Path(path).parent.name for path in opened) == ["train", "trainannot"]


def test_a_table_of_labels_must_hold_a_class_and_fit_into_a_byte() -> None:
    with pytest.raises(ValueError, match=r"LabelTable: classes must name at least one class, got \{0: 255\}"):
        LabelTable({0: 255})
    with pytest.raises(ValueError, match=r"LabelTable: ids must be in 0\.\.255"):
        LabelTable({256: 1})
    assert LabelTable({0: 255, 1: 0, 2: 1, 9: 2}).expected == "0..2, 9"
