"""Dense data sets on disk in the encodings of their publishers, of ray-traced scenes.

The maps of a scene and the numbers that stand for its classes in each data set are here, so that a test can compare
what it reads with what was written.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lightning_mtl.data import SyntheticScenes
from tests.data.trees import SIZE

Maps = dict[str, np.ndarray]

CAMVID_IDS = (11, 3, 1, 8, 2, 9)  # of background, floor, wall, sphere, box, cylinder
LABEL_IDS = (0, 7, 11, 26, 33, 24)
TRAIN_IDS = (255, 0, 2, 13, 18, 11)
CATEGORIES = (255, 0, 1, 6, 6, 5)
CONTEXT_IDS = (0, 158, 440, 284, 450, 18)  # floor, wall, person and bed have normals, whale and 0 have none
VOC_IDS = (255, 0, 0, 15, 7, 9)
SEMANTIC_IDS = (0, 1, 1, 3, 2, 17)
BASELINE, FOCAL = 0.22, 200.0


@functools.cache
def maps_of(index: int, size: tuple[int, int] = SIZE) -> Maps:
    """A scene as arrays: image and normals (H, W, 3), segmentation 0..5 and depth (H, W)."""
    scenes = SyntheticScenes(index + 1, size=size, seed=7, tasks=("segmentation", "depth", "normals"))
    maps = scenes._render(index)
    return {
        "image": maps["image"].permute(1, 2, 0).numpy(),
        "segmentation": maps["segmentation"].numpy(),
        "depth": maps["depth"][0].numpy(),
        "normals": maps["normals"].permute(1, 2, 0).numpy(),
    }


def as_ids(segmentation: np.ndarray, ids: tuple[int, ...]) -> np.ndarray:
    return np.array(ids)[segmentation].astype(np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def coloured(normals: np.ndarray, signs: tuple[int, int, int] = (1, 1, 1)) -> np.ndarray:
    """Normals as 8-bit colours, (127, 127, 127) where there is none."""
    colours = ((normals * np.array(signs) + 1) * 127.5).round()
    return np.where((normals == 0).all(-1, keepdims=True), 127, colours).astype(np.uint8)


def write_camvid(root: Path, size: tuple[int, int] = SIZE, train: int = 12, test: int = 4) -> Path:
    start = 0
    for part, count in (("train", train), ("val", test), ("test", test)):
        lines = []
        for index in range(start, start + count):
            maps, name = maps_of(index, size), f"0001TP_{index:06d}"
            save(root / part / f"{name}.png", maps["image"])
            save(root / f"{part}annot" / f"{name}.png", as_ids(maps["segmentation"], CAMVID_IDS))
            lines.append(f"/SegNet/CamVid/{part}/{name}.png /SegNet/CamVid/{part}annot/{name}.png\n")
        (root / f"{part}.txt").write_text("".join(lines))
        start += count
    return root


def write_cityscapes(root: Path, size: tuple[int, int] = SIZE, train: int = 12, val: int = 4) -> Path:
    for index in range(train + val):
        part, city = ("train", ("aachen", "bremen")[index % 2]) if index < train else ("val", "frankfurt")
        maps, name = maps_of(index, size), f"{city}_{index:06d}_000019"
        save(root / "leftImg8bit" / part / city / f"{name}_leftImg8bit.png", maps["image"])
        for kind, ids in (("labelIds", LABEL_IDS), ("labelTrainIds", TRAIN_IDS)):
            save(root / "gtFine" / part / city / f"{name}_gtFine_{kind}.png", as_ids(maps["segmentation"], ids))
        disparity = BASELINE * FOCAL / np.maximum(maps["depth"], 0.5)
        stored = np.where(maps["depth"] > 0, (disparity * 256).round() + 1, 0).astype(np.uint16)
        save(root / "disparity" / part / city / f"{name}_disparity.png", stored)
        camera = root / "camera" / part / city / f"{name}_camera.json"
        camera.parent.mkdir(parents=True, exist_ok=True)
        intrinsic = {"fx": FOCAL, "fy": FOCAL, "u0": size[1] / 2, "v0": size[0] / 2}
        camera.write_text(json.dumps({"extrinsic": {"baseline": BASELINE, "x": 1.7}, "intrinsic": intrinsic}))
    return root


def write_cityscapes_mtan(root: Path, size: tuple[int, int] = SIZE, train: int = 12, val: int = 4) -> Path:
    for part, start, count in (("train", 0, train), ("val", train, val)):
        for index in range(count):
            maps = maps_of(start + index, size)
            inverse = np.where(maps["depth"] > 0, 0.4 / np.maximum(maps["depth"], 0.5), 0)
            arrays = {
                "image": (maps["image"] / 255).astype(np.float32),
                "depth": inverse[..., None].astype(np.float32),
                "label_7": np.array((-1, *CATEGORIES[1:]))[maps["segmentation"]],
                "label_19": np.array((-1, *TRAIN_IDS[1:]))[maps["segmentation"]],
            }
            for folder, array in arrays.items():
                save(root / part / folder / f"{index}.npy", array)
    return root


def people(maps: Maps) -> np.ndarray:
    """Two objects of a scene as PASCAL parts: the spheres are a person with a head and an arm, the boxes a cat."""
    sphere = maps["segmentation"] == 3
    upper = np.arange(len(sphere))[:, None] < len(sphere) // 2
    parts = np.array(
        [[("head", (sphere & upper).astype(np.uint8)), ("llarm", (sphere & ~upper).astype(np.uint8))]],
        dtype=[("part_name", object), ("mask", object)],
    )
    cat = (maps["segmentation"] == 4).astype(np.uint8)
    things: list[tuple[Any, ...]] = [("cat", 8, cat, np.zeros((0, 0)))]
    if sphere.any():
        things.insert(0, ("person", 15, sphere.astype(np.uint8), parts))
    return np.array([things], dtype=[("class", object), ("class_ind", object), ("mask", object), ("parts", object)])


def write_pascal_context(root: Path, size: tuple[int, int] = SIZE, train: int = 12, val: int = 4) -> Path:
    from scipy.io import savemat

    for folder in ("ImageSets/Context", "human_parts", "pascal-context/trainval"):
        (root / folder).mkdir(parents=True)
    names = [f"2008_{index:06d}" for index in range(train + val)]
    (root / "ImageSets/Context/train.txt").write_text("".join(f"{name}\n" for name in names[:train]))
    (root / "ImageSets/Context/val.txt").write_text("".join(f"{name}\n" for name in names[train:]))
    for index, name in enumerate(names):
        maps = maps_of(index, (size[0] - 2 * (index % 3), size[1] - index % 2))  # photographs differ in size
        save(root / "JPEGImages" / f"{name}.jpg", maps["image"])
        labels = Image.fromarray(as_ids(maps["segmentation"], VOC_IDS))
        labels.putpalette([value for grey in range(256) for value in (grey, 0, 255 - grey)])
        folder = root / "semseg" / ("pascal-context" if index % 4 == 3 else "VOC12")
        folder.mkdir(parents=True, exist_ok=True)
        labels.save(folder / f"{name}.png")
        save(root / "sal_distill" / f"{name}.png", np.where(maps["segmentation"] >= 3, 200, 90).astype(np.uint8))
        save(root / "normals_distill" / f"{name}.png", coloured(maps["normals"]))
        context = np.array(CONTEXT_IDS)[maps["segmentation"]].astype(np.uint16)
        savemat(root / "pascal-context/trainval" / f"{name}.mat", {"LabelMap": context})
        savemat(root / "human_parts" / f"{name}.mat", {"anno": {"imname": name, "objects": people(maps)}})
    return root


def write_taskonomy(root: Path, size: tuple[int, int] = SIZE, train: int = 12, test: int = 4, above: str = "") -> Path:
    buildings = {"hanson": train // 2, "merom": train - train // 2, "wiconisco": test, "ihlen": test}
    rows = ["id,train,val,test", "hanson,1,0,0", "merom,1,0,0", "wiconisco,0,1,0", "ihlen,0,0,1"]
    root.mkdir(parents=True, exist_ok=True)
    (root / "train_val_test_tiny.csv").write_bytes("\r".join(rows).encode())
    start = 0
    for building, count in buildings.items():
        for index in range(count):
            maps = maps_of(start + index, size)
            depth = np.where(maps["depth"] > 0, (maps["depth"] * 512).round(), 65535).astype(np.uint16)
            grey = maps["image"].astype(np.uint16).mean(-1)
            domains = {
                "rgb": maps["image"],
                "segment_semantic": as_ids(maps["segmentation"], SEMANTIC_IDS),
                "depth_zbuffer": depth,
                "depth_euclidean": depth,
                "normal": coloured(maps["normals"], (1, -1, -1)),
                "edge_texture": (grey * 257).astype(np.uint16),
                "edge_occlusion": (grey * 257).astype(np.uint16),
                "keypoints2d": (grey * 100).astype(np.uint16),
                "keypoints3d": (grey * 50).astype(np.uint16),
                "reshading": np.repeat(grey[..., None], 3, -1).astype(np.uint8),
                "principal_curvature": np.full((*size, 3), (127, 191, 0), np.uint8),
            }
            for domain, array in domains.items():
                ending = domain.replace("_", "") if domain == "segment_semantic" else domain
                name = f"point_{index}_view_0_domain_{ending}.png"
                save(root / domain / above / building / name, array)
        start += count
    return root


def write_folder(root: Path, size: tuple[int, int] = SIZE, train: int = 12, test: int = 4) -> Path:
    """A tree of one's own with lists: labels in odd ids, depth in millimetres, heat in npy with NaN."""
    names = [f"img{index}" for index in range(train + 2 * test)]
    root.mkdir(parents=True, exist_ok=True)
    for part, chosen in (("train", names[:train]), ("val", names[train : train + test]), ("test", names[-test:])):
        (root / f"{part}.txt").write_text("\n".join(chosen))
    for index, name in enumerate(names):
        maps = maps_of(index, size)
        save(root / "images" / f"{name}.png", maps["image"])
        save(root / "labels" / f"{name}.png", as_ids(maps["segmentation"], (0, 10, 20, 30, 40, 50)))
        save(root / "depth" / f"{name}.png", (maps["depth"] * 1000).round().astype(np.uint16))
        save(root / "normals" / f"{name}.npy", (maps["normals"] * np.array([1, -1, -1])).astype(np.float32))
        save(root / "mask" / f"{name}.png", np.where(maps["segmentation"] >= 3, 255, 0).astype(np.uint8))
        heat = np.where(maps["depth"] > 0, maps["depth"] / 10, np.nan)
        save(root / "heat" / f"{name}.npy", heat.astype(np.float32))
    return root
