"""NYU Depth v2 for joint dense prediction."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset

from lightning_mtl.data.base import MultiTaskDataModule, Sample, Split, resolve_root
from lightning_mtl.data.dense.edges import close_gaps, label_boundaries
from lightning_mtl.data.dense.transforms import (
    IGNORE_VALUES,
    Compose,
    JointTransform,
    Normalize,
    RandomHorizontalFlip,
    RandomScaleCrop,
    Resize,
)
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError
from lightning_mtl.data.samplers import mix_seed, sample_generator

NYUv2Task = Literal["segmentation", "depth", "normals", "edges"]

_NAME = "NYUv2DataModule"
_REMEDY = (
    "The 1449 labelled frames are at https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html, a copy in the mtan layout "
    "is linked from https://github.com/lorenmt/mtan; the page docs/data/nyuv2.md shows both trees."
)
_GAP = 8  # pixels that labels grow before edges are taken: the strips between objects are up to 16 wide at 480 x 640
_RUN = 16  # frames per run of the hold-out: long enough to keep most scenes whole


class NYUv2(Dataset[Sample]):
    """Frames of NYU Depth v2, read from disk.

    Args:
        frames: The files of each frame: ``image`` and some of ``labels``, ``depth``, ``normals``.
        layout: How the files are to be read.
        tasks: Which targets to return.
        num_classes: Number of classes of the labels.
        transform: Joint transform of 8-bit image and targets.
    """

    def __init__(
        self,
        frames: Sequence[dict[str, Path]],
        layout: Literal["png", "mtan"],
        tasks: Sequence[NYUv2Task],
        num_classes: int,
        transform: JointTransform,
    ) -> None:
        self.frames = list(frames)
        self.layout = layout
        self.tasks = tuple(tasks)
        self.num_classes = num_classes
        self.transform = transform
        self._normalize = Normalize()

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.frames)

    def __getitem__(self, index: int) -> Sample:
        """Return image and targets of a frame, augmented with the random stream of the index."""
        files = self.frames[index]
        read = _READERS[self.layout]
        sample = {"image": read["image"](files["image"], self.num_classes)}
        size = tuple(sample["image"].shape[-2:])
        for kind, key in (("labels", "segmentation"), ("depth", "depth"), ("normals", "normals")):
            if kind in files:
                sample[key] = read[kind](files[kind], self.num_classes)
                if tuple(sample[key].shape[-2:]) != size:
                    raise DataFileError.of(
                        _NAME,
                        files[kind],
                        f"size must be that of '{files['image'].name}', {size}, got {tuple(sample[key].shape[-2:])}",
                        "export both at the same resolution",
                    )
        sample = self.transform(sample, sample_generator(index))
        targets: dict[str, Any] = {}
        for task in self.tasks:
            if task == "segmentation":
                targets[task] = sample[task].to(torch.int64)
            elif task == "edges":
                targets[task] = label_boundaries(close_gaps(sample["segmentation"], _GAP))[None]
            else:
                targets[task] = sample[task]
        return self._normalize.normalized(sample["image"]), targets


class NYUv2DataModule(MultiTaskDataModule):
    """NYU Depth v2: semantic segmentation, depth, surface normals and edges of indoor scenes.

    Reads the two layouts in use: the *png* tree of RGB-D segmentation toolkits (480 x 640, 13 or 40 classes, split
    lists ``train.txt`` and ``test.txt`` honoured) and the *mtan* npy tree of multi-task benchmarks (288 x 384,
    13 classes, folders ``train`` and ``val``, the latter being the official test frames).

    Args:
        root: Folder of the data; None takes ``$LIGHTNING_MTL_DATA/nyuv2``.
        tasks: Which targets to return; ``edges`` are the boundaries between the classes of the segmentation.
        num_classes: 13 or 40.
        size: Height and width of images and targets; None keeps those of the files.
        layout: ``auto`` finds out.
        augment: Augmentation of the training frames: True for random zoom and flip as in the multi-task benchmarks,
            False for none, or transforms of one's own (before resizing).
        val_split: ``holdout`` sets a part of the training frames aside and leaves the test frames alone; ``test``
            validates on the test frames, the habit of the benchmarks, which must then not choose a model.
        val_fraction: Part of the training frames that ``holdout`` sets aside.
        batch_size: Samples per batch and process.
        num_workers: Processes that load data; None takes one per available core, at most 8, and none on one core.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of hold-out, order and augmentation.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training samples that keep this task's label.

    Shape:
        - image: ``(B, 3, H, W)`` float32, normalised with the ImageNet statistics
        - ``segmentation``: ``(B, H, W)`` int64, 0..C-1, 255 void
        - ``depth``: ``(B, 1, H, W)`` float32 metres, 0 invalid
        - ``normals``: ``(B, 3, H, W)`` float32 unit vectors (x right, y up, z towards the viewer), zero vector invalid
        - ``edges``: ``(B, 1, H, W)`` float32 in {0, 1}, 255 void

    Raises:
        DatasetNotFoundError: If ``root`` or a file of a split is missing.
        DataFileError: When a sample is read: damaged file, size other than the image's, class out of range, depth that
            is not a finite number of metres.
        ValueError: If an argument is out of range.

    Note:
        The frames are in order of recording, neighbours show the same scene. ``holdout`` hence sets aside whole runs of
        16 neighbouring frames, chosen by the seed, not single frames.

        The class maps leave strips of void between objects; labels grow up to 8 pixels into void before edges are
        taken. Other works take edges from other maps, so numbers for this task are not comparable with theirs.

    References:
        Silberman, Hoiem, Kohli, Fergus. *Indoor Segmentation and Support Inference from RGBD Images*. ECCV 2012.
        https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html. Layout mtan: Liu, Johns, Davison. *End-to-End Multi-Task
        Learning with Attention*. CVPR 2019. https://arxiv.org/abs/1803.10704.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        tasks: Sequence[NYUv2Task] = ("segmentation", "depth", "normals"),
        num_classes: Literal[13, 40] = 13,
        size: tuple[int, int] | None = None,
        layout: Literal["auto", "png", "mtan"] = "auto",
        augment: bool | list[JointTransform] = True,
        val_split: Literal["holdout", "test"] = "holdout",
        val_fraction: float = 0.1,
        *,
        batch_size: int = 8,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        persistent_workers: bool | None = None,
        seed: int = 0,
        drop_last: bool = True,
        label_fraction: dict[str, float] | None = None,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            num_workers=num_workers,
            pin_memory=pin_memory,
            persistent_workers=persistent_workers,
            seed=seed,
            drop_last=drop_last,
            label_fraction=label_fraction,
        )
        if not tasks or not set(tasks) <= set(IGNORE_VALUES):
            raise ValueError(f"{_NAME}: tasks must be some of {tuple(IGNORE_VALUES)}, got {tuple(tasks)}.")
        if num_classes not in (13, 40):
            raise ValueError(f"{_NAME}: num_classes must be 13 or 40, got {num_classes}.")
        if not 0 < val_fraction < 1:
            raise ValueError(f"{_NAME}: val_fraction must be between 0 and 1, got {val_fraction}.")
        if size is not None and min(size) < 1:
            raise ValueError(f"{_NAME}: size must be positive, got {tuple(size)}.")
        self.root = root
        self.tasks = tuple(tasks)
        self.num_classes = num_classes
        self.size = None if size is None else (size[0], size[1])
        self.layout = layout
        self.augment = augment
        self.val_split = val_split
        self.val_fraction = val_fraction

    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return {task: IGNORE_VALUES[task] for task in self.tasks}

    def make_dataset(self, split: Split) -> NYUv2:
        """Return the frames of a split."""
        root = resolve_root(_NAME, self.root, "nyuv2", _REMEDY)
        layout = self._layout(root)
        if layout == "mtan" and self.num_classes != 13 and {"segmentation", "edges"} & set(self.tasks):
            raise ValueError(f"{_NAME}: num_classes must be 13 with the mtan layout, got {self.num_classes}.")
        from_train = split == "train" or (split == "val" and self.val_split == "holdout")
        part = "train" if from_train else ("test" if layout == "png" else "val")
        frames = self._frames(root, layout, part)
        if from_train and self.val_split == "holdout":
            held_out = self._held_out(len(frames))
            frames = [frame for frame, held in zip(frames, held_out, strict=True) if held == (split == "val")]
        transforms: list[JointTransform] = []
        if split == "train" and self.augment is True:
            transforms = [RandomScaleCrop(size=self.size), RandomHorizontalFlip()]
        elif split == "train" and isinstance(self.augment, list):
            transforms = list(self.augment)
        if self.size is not None:
            transforms.append(Resize(self.size))
        return NYUv2(frames, layout, self.tasks, self.num_classes, Compose(transforms))

    def _layout(self, root: Path) -> Literal["png", "mtan"]:
        if self.layout != "auto":
            return self.layout
        if (root / "train" / "image").is_dir():
            return "mtan"
        if (root / "train" / "rgb").is_dir() or (root / "train.txt").is_file():
            return "png"
        raise DatasetNotFoundError.of(_NAME, root, ["train/rgb (png layout) or train/image (mtan layout)"], _REMEDY)

    def _frames(self, root: Path, layout: Literal["png", "mtan"], part: str) -> list[dict[str, Path]]:
        labels = {"segmentation", "edges"} & set(self.tasks)
        folders = {"image": "rgb" if layout == "png" else "image"}
        if labels:
            folders["labels"] = f"semantic_{self.num_classes}" if layout == "png" else "label"
        if "depth" in self.tasks:
            folders["depth"] = "depth"
        if "normals" in self.tasks:
            folders["normals"] = "normal"
        suffixes = (".png", ".jpg", ".jpeg") if layout == "png" else (".npy",)
        there: dict[str, dict[str, Path]] = {}
        for kind, folder in folders.items():
            place = root / part / folder
            files = sorted(place.iterdir()) if place.is_dir() else []
            there[kind] = {path.stem: path for path in files if path.suffix in suffixes}
        split_file = root / f"{part}.txt"
        if layout == "png" and split_file.is_file():
            names = split_file.read_text().split()
        elif not there["image"]:
            raise DatasetNotFoundError.of(_NAME, root, [f"{part}/{folders['image']}/*{suffixes[0]}"], _REMEDY)
        else:
            names = sorted(there["image"], key=lambda name: (len(name), name))
        missing = [
            f"{part}/{folders[kind]}/{name}{suffixes[0]}"
            for name in names
            for kind in folders
            if name not in there[kind]
        ]
        if missing:
            raise DatasetNotFoundError.of(_NAME, root, missing, _REMEDY)
        return [{kind: there[kind][name] for kind in folders} for name in names]

    def _held_out(self, length: int) -> list[bool]:
        run = max(1, min(_RUN, length // 4))
        runs = -(-length // run)
        count = max(1, round(self.val_fraction * runs))
        order = torch.randperm(runs, generator=Generator().manual_seed(mix_seed(self.seed)))
        chosen = set(order[:count].tolist())
        return [i // run in chosen for i in range(length)]


def _decode(path: Path, modes: Sequence[str], expected: str) -> Tensor:
    """Return the pixels of an image whose Pillow mode is one of ``modes``; for mode RGB any image is converted."""
    try:
        with Image.open(path) as image:
            decoded = image.convert("RGB") if "RGB" in modes else image
            pixels, mode = torch.from_numpy(np.array(decoded)), decoded.mode
    except (OSError, SyntaxError, ValueError) as error:
        raise DataFileError.of(_NAME, path, f"must be a readable image, got: {error}", "copy it again") from error
    if mode not in modes:
        raise DataFileError.of(_NAME, path, f"must be {expected}, got Pillow mode '{mode}'", "export it again")
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels


def _load(path: Path, channels: int | None) -> Tensor:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataFileError.of(_NAME, path, f"must be a readable npy array, got: {error}", "copy it again") from error
    if array.ndim == 2 and channels == 1:
        array = array[..., None]
    if array.ndim != (2 if channels is None else 3) or (channels is not None and array.shape[-1] != channels):
        expected = "(H, W)" if channels is None else f"(H, W, {channels})"
        raise DataFileError.of(_NAME, path, f"shape must be {expected}, got {array.shape}", "export it again")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        bad = int(array.size - np.isfinite(array).sum())
        raise DataFileError.of(_NAME, path, f"values must be finite, got {bad} NaN or infinite ones", "export it again")
    return torch.from_numpy(array)


def _png_image(path: Path, num_classes: int) -> Tensor:
    return _decode(path, ("RGB",), "in colour")


def _png_labels(path: Path, num_classes: int) -> Tensor:
    labels = _decode(path, ("L", "P"), "8-bit grey or palette")
    if (largest := int(labels.max())) > num_classes:
        raise DataFileError.of(
            _NAME, path, f"class ids must be in 0..{num_classes}, got {largest}", "check num_classes and the file"
        )
    return labels - 1  # void 0 wraps to 255


def _png_depth(path: Path, num_classes: int) -> Tensor:
    depth = _decode(path, ("I;16", "I;16B", "I"), "16-bit grey (millimetres)")
    return depth.to(torch.float32).mul_(1e-3)[None]


def _unit_or_zero(normals: Tensor, longest: float) -> Tensor:
    normals = normals.contiguous()
    x, y, z = normals.unbind()
    square = (x * x).addcmul_(y, y).addcmul_(z, z)
    valid = (square > 0.25) & (square < longest**2)
    return normals * square.clamp_min_(1e-12).rsqrt_().mul_(valid)


def _png_normals(path: Path, num_classes: int) -> Tensor:
    # 127 or 128 in all channels is a zero vector, and 0 or 255 in all of them a vector of length 1.7: both are invalid.
    return _unit_or_zero(_decode(path, ("RGB",), "in colour").to(torch.float32).mul_(1 / 127.5).sub_(1), longest=1.5)


def _npy_image(path: Path, num_classes: int) -> Tensor:
    image = _load(path, 3).permute(2, 0, 1)
    if image.is_floating_point():
        if image.min() < 0 or image.max() > 1 + 1e-3:
            raise DataFileError.of(
                _NAME,
                path,
                f"a float image must be in 0..1, got {float(image.min()):.3g}..{float(image.max()):.3g}",
                "export it again",
            )
        image = (image * 255).round()
    return image.to(torch.uint8)


def _npy_labels(path: Path, num_classes: int) -> Tensor:
    labels = _load(path, None)
    low, high = float(labels.min()), float(labels.max())
    if low < -1 or high >= num_classes:
        raise DataFileError.of(
            _NAME,
            path,
            f"class ids must be in -1..{num_classes - 1}, got {low:g}..{high:g}",
            "check num_classes and the file",
        )
    return labels.to(torch.int16).to(torch.uint8)  # void -1 wraps to 255


def _npy_depth(path: Path, num_classes: int) -> Tensor:
    depth = _load(path, 1).permute(2, 0, 1).to(torch.float32)
    if depth.min() < 0:
        raise DataFileError.of(
            _NAME, path, f"depth must not be negative, got {float(depth.min()):.3g}", "export it again"
        )
    return depth


def _npy_normals(path: Path, num_classes: int) -> Tensor:
    return _unit_or_zero(_load(path, 3).permute(2, 0, 1).to(torch.float32), longest=float("inf"))


_READERS: dict[str, dict[str, Callable[[Path, int], Tensor]]] = {
    "png": {"image": _png_image, "labels": _png_labels, "depth": _png_depth, "normals": _png_normals},
    "mtan": {"image": _npy_image, "labels": _npy_labels, "depth": _npy_depth, "normals": _npy_normals},
}
