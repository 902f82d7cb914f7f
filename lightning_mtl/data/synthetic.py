"""Endless dense multi-task data with exact labels, made on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from lightning_mtl.data.base import MultiTaskDataModule, Sample, Split
from lightning_mtl.data.dense.edges import label_boundaries
from lightning_mtl.data.dense.transforms import IGNORE_VALUES, Normalize
from lightning_mtl.data.low_light import LowLight
from lightning_mtl.data.samplers import sample_generator
from lightning_mtl.data.scenes import CLASS_NAMES, random_scene, render, visible_boxes

SceneTask = Literal["segmentation", "depth", "normals", "edges", "boxes"]

_STREAMS: dict[Split, int] = {"train": 0, "val": 1, "test": 2, "predict": 2}


class SyntheticScenes(Dataset[Sample]):
    """Ray-traced rooms with spheres, boxes and cylinders; sample i is a function of (seed, split, i).

    Args:
        length: Number of scenes.
        split: Splits are disjoint random streams; ``predict`` is ``test``.
        tasks: Which targets to return.
        size: Height and width.
        seed: Seed of the scenes.
        cache: Render everything now and keep it in memory; otherwise each access renders.
        low_light: Darkens the images with the random stream of the sample; None leaves them as they are.

    Shape:
        - image ``(3, H, W)`` float32, normalised with the ImageNet statistics
        - ``segmentation`` ``(H, W)`` int64 in 0..5; ``depth`` ``(1, H, W)`` metres; ``normals`` ``(3, H, W)`` unit;
          ``edges`` ``(1, H, W)`` in {0, 1}; ``boxes``: see :func:`lightning_mtl.data.scenes.visible_boxes`
    """

    def __init__(
        self,
        length: int,
        split: Split = "train",
        tasks: Sequence[SceneTask] = ("segmentation", "depth", "normals"),
        size: tuple[int, int] = (64, 64),
        seed: int = 0,
        cache: bool = False,
        low_light: LowLight | None = None,
    ) -> None:
        self.length = length
        self.split = split
        self.tasks = tuple(tasks)
        self.size = size
        self.seed = seed
        self.low_light = low_light
        self._normalize = Normalize()
        self._cached = [self._render(index) for index in range(length)] if cache else None

    def __len__(self) -> int:
        """Return the number of scenes."""
        return self.length

    def _render(self, index: int) -> dict[str, Any]:
        scene = random_scene(np.random.default_rng((self.seed, _STREAMS[self.split], index)))
        maps: dict[str, Any] = render(scene, self.size)
        surface = maps.pop("surface")
        if "edges" in self.tasks:
            maps["edges"] = label_boundaries(surface)[None].to(torch.uint8)
        if "boxes" in self.tasks:
            maps["boxes"] = visible_boxes(surface, scene.kind)
        return {key: value for key, value in maps.items() if key == "image" or key in self.tasks}

    def __getitem__(self, index: int) -> Sample:
        """Return image and targets of a scene."""
        if not 0 <= index < self.length:
            raise IndexError(f"SyntheticScenes: index must be in [0, {self.length}), got {int(index)}.")
        maps = self._render(int(index)) if self._cached is None else self._cached[index]
        targets: dict[str, Any] = {}
        for task in self.tasks:
            value = maps[task]
            if task == "segmentation":
                value = value.to(torch.int64)
            elif task == "edges":
                value = value.to(torch.float32)
            targets[task] = value
        pixels: Tensor = maps["image"]
        if self.low_light is not None:
            pixels = self.low_light.darkened(pixels, sample_generator(index))
        return self._normalize.normalized(pixels), targets


class SyntheticScenesDataModule(MultiTaskDataModule):
    """Ray-traced rooms with exact segmentation, depth, normals, edges and boxes; needs no files.

    The default data of the package: small enough to train on in a minute, and with real geometry, so that the dense
    tasks depend on each other as they do in photographs. The six classes are ``class_names``: background, floor, wall,
    sphere, box, cylinder. A quarter of the scenes is open to a background, where depth and normals are unlabelled (0).

    Args:
        tasks: Which targets to return. With ``boxes`` the batch holds a list of ``{"boxes", "labels"}`` for that task.
        size: Height and width.
        num_train: Number of training scenes.
        num_val: Number of validation scenes.
        num_test: Number of test scenes, which are the prediction scenes too.
        cache: Render a split once, in ``setup``, and keep it in memory.
        low_light: Darkens the images of all splits as a camera would have taken them with less light; None leaves them
            as they are.
        batch_size: Samples per batch and process.
        num_workers: Processes that load data; None takes one per available core, at most 8. Cached scenes need none.
        pin_memory: Whether batches are copied to pinned memory; None does so when CUDA is available.
        persistent_workers: Whether workers outlive an epoch; None does so when there are any.
        seed: Seed of scenes and order.
        drop_last: Leave out the last training batch when it is smaller than the others.
        label_fraction: Task -> fraction of the training samples that keep this task's label.

    Raises:
        ValueError: If ``tasks`` is empty or unknown, or ``size`` is not positive.

    Example:
        >>> data = SyntheticScenesDataModule(num_train=8, num_val=2, num_test=2, size=(16, 16), batch_size=4)
        >>> data.setup("fit")
        >>> image, targets = next(iter(data.train_dataloader()))
        >>> image.shape, sorted(targets)
        (torch.Size([4, 3, 16, 16]), ['depth', 'normals', 'segmentation'])
    """

    num_classes = len(CLASS_NAMES)
    class_names = CLASS_NAMES

    def __init__(
        self,
        tasks: Sequence[SceneTask] = ("segmentation", "depth", "normals"),
        size: tuple[int, int] = (64, 64),
        num_train: int = 1000,
        num_val: int = 200,
        num_test: int = 200,
        cache: bool = True,
        low_light: LowLight | None = None,
        *,
        batch_size: int = 16,
        num_workers: int | None = 0,
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
        known = ("segmentation", "depth", "normals", "edges", "boxes")
        if not tasks or not set(tasks) <= set(known):
            raise ValueError(f"SyntheticScenesDataModule: tasks must be some of {known}, got {tuple(tasks)}.")
        if min(size) < 1:
            raise ValueError(f"SyntheticScenesDataModule: size must be positive, got {tuple(size)}.")
        self.tasks = tuple(tasks)
        self.size = (size[0], size[1])
        self.lengths: dict[Split, int] = {"train": num_train, "val": num_val, "test": num_test, "predict": num_test}
        self.cache = cache
        self.low_light = low_light

    @property
    def ignore_values(self) -> dict[str, float]:
        """Task -> value of a target without label."""
        return {task: IGNORE_VALUES[task] for task in self.tasks if task in IGNORE_VALUES}

    def make_dataset(self, split: Split) -> SyntheticScenes:
        """Return the scenes of a split."""
        return SyntheticScenes(self.lengths[split], split, self.tasks, self.size, self.seed, self.cache, self.low_light)

    def collate(self, samples: list[Sample]) -> Any:
        """Join samples into a batch; boxes stay a list, as their numbers differ."""
        if "boxes" not in self.tasks:
            return default_collate(samples)
        boxes = [targets["boxes"] for _, targets in samples]
        inputs, targets = default_collate(
            [(image, {k: v for k, v in targets.items() if k != "boxes"}) for image, targets in samples]
        )
        return inputs, {**targets, "boxes": boxes}
