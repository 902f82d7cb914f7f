"""Small data sets on disk, written as their users have them."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from lightning_mtl.data import SyntheticScenes

SIZE = (24, 32)


def frame(index: int) -> dict[str, np.ndarray]:
    """A scene with 13-class labels, -1 where it has no depth."""
    scene = SyntheticScenes(index + 1, size=SIZE, tasks=("segmentation", "depth", "normals"))
    _, targets = scene[index]
    image = scene._render(index)["image"].permute(1, 2, 0).numpy()
    labels = targets["segmentation"].numpy().astype(np.int64) - 1  # background -> void
    return {
        "image": image,
        "label": labels,
        "depth": targets["depth"].permute(1, 2, 0).numpy(),
        "normal": targets["normals"].permute(1, 2, 0).numpy(),
    }


def write_png_tree(root: Path, train: int = 12, test: int = 4, suffix: str = ".png") -> Path:
    for part, names in (("train", range(train)), ("test", range(100, 100 + test))):
        for folder in ("rgb", "depth", "semantic_13", "semantic_40", "normal"):
            (root / part / folder).mkdir(parents=True)
        for name in names:
            maps = frame(name % 100 + (50 if part == "test" else 0))
            Image.fromarray(maps["image"]).save(root / part / "rgb" / f"{name:04d}{suffix}")
            depth = (maps["depth"][..., 0] * 1000).round().astype(np.uint16)
            Image.fromarray(depth).save(root / part / "depth" / f"{name:04d}.png")
            Image.fromarray((maps["label"] + 1).astype(np.uint8)).save(root / part / "semantic_13" / f"{name:04d}.png")
            fine = np.where(maps["label"] < 0, 0, 3 * maps["label"] + 1).astype(np.uint8)
            Image.fromarray(fine).save(root / part / "semantic_40" / f"{name:04d}.png")
            normal = np.where(maps["depth"] > 0, (maps["normal"] + 1) * 127.5, 127).round().astype(np.uint8)
            Image.fromarray(normal).save(root / part / "normal" / f"{name:04d}.png")
        (root / f"{part}.txt").write_text("".join(f"{name:04d}\n" for name in names))
    return root


def write_mtan_tree(root: Path, train: int = 12, val: int = 4) -> Path:
    for part, names in (("train", range(train)), ("val", range(val))):
        for folder in ("image", "label", "depth", "normal"):
            (root / part / folder).mkdir(parents=True)
        for name in names:
            maps = frame(name + (50 if part == "val" else 0))
            np.save(root / part / "image" / f"{name}.npy", (maps["image"] / 255).astype(np.float32))
            np.save(root / part / "label" / f"{name}.npy", maps["label"].astype(np.float32))
            np.save(root / part / "depth" / f"{name}.npy", maps["depth"])
            np.save(root / part / "normal" / f"{name}.npy", maps["normal"].astype(np.float64))
    return root


def write_acdc_tree(
    root: Path, train: int = 12, val: int = 4, conditions: Sequence[str] = ("night",), size: tuple[int, int] = SIZE
) -> Path:
    generator = np.random.default_rng(0)
    classes = np.array([*range(19), 255], dtype=np.uint8)
    for condition in conditions:
        for part, count in (("train", train), ("val", val)):
            for index in range(count):
                sequence = f"GOPR{351 + index // 8:04d}"
                image = generator.integers(0, 60, (*size, 3), dtype=np.uint8)
                labels = classes[generator.integers(0, 20, size)]
                for kind, ending, pixels in (("rgb_anon", "rgb_anon", image), ("gt", "gt_labelTrainIds", labels)):
                    folder = root / kind / condition / part / sequence
                    folder.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(pixels).save(folder / f"{sequence}_frame_{index:06d}_{ending}.png")
    return root


def write_mnist(root: Path, train: int = 60, test: int = 20) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for part, length in (("train", train), ("t10k", test)):
        digits = generator.integers(0, 256, (length, 28, 28), dtype=np.uint8)
        labels = generator.integers(0, 10, length, dtype=np.uint8)
        for name, values in (("images-idx3", digits), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes()
            with gzip.open(root / f"{part}-{name}-ubyte.gz", "wb") as file:
                file.write(header + values.tobytes())
    return root


def fingerprint(batch: object) -> list[str]:
    """Bytes of every tensor in a batch, for exact comparison."""
    leaves = torch.utils._pytree.tree_leaves(batch)
    return [f"{tuple(x.shape)} {x.dtype} {hash(x.numpy().tobytes())}" for x in leaves]
