"""Every data module with small arguments, and what its batches hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightning_mtl.data import (
    ACDCDataModule,
    CocoDetectionDataModule,
    Compose,
    ExDarkDataModule,
    FitInside,
    GaussianRingDataModule,
    JointTransform,
    LowLight,
    MultiMNISTDataModule,
    MultiTaskDataModule,
    Normalize,
    NYUv2DataModule,
    PhotometricJitter,
    RandomBoxCrop,
    RandomHorizontalFlip,
    RandomScaleCrop,
    Resize,
    SyntheticScenesDataModule,
    TaskStream,
    TextureCrops,
    TwoGlyphDataModule,
)
from tests.data.detection_trees import write_coco, write_exdark
from tests.data.trees import SIZE, write_acdc_tree, write_mnist, write_mtan_tree, write_png_tree

DENSE = ("segmentation", "depth", "normals", "edges")
BOXES: tuple[tuple[int, ...], torch.dtype] = ((-1, 4), torch.float32)
"""Marks a task whose target is a list of boxes."""


@dataclass(frozen=True)
class Case:
    """A data module: how to build it on fresh files, and shape and type of a batch of four.

    ``folder`` is the name of its folder below the environment variable, ``still`` what switches its augmentation off.
    """

    id: str
    build: Callable[..., MultiTaskDataModule]
    files: Callable[[Path], Path] | None
    image: tuple[int, ...]
    targets: dict[str, tuple[tuple[int, ...], torch.dtype]]
    folder: str = ""
    still: dict[str, Any] = field(default_factory=dict)

    def make(self, folder: Path, **options: Any) -> MultiTaskDataModule:
        if self.files is not None:
            root = folder / self.id
            options["root"] = root if root.is_dir() else self.files(root)
        return self.build(**{"batch_size": 4, "num_workers": 0, **options})


def dense(height: int, width: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    return {
        "segmentation": ((height, width), torch.int64),
        "depth": ((1, height, width), torch.float32),
        "normals": ((3, height, width), torch.float32),
        "edges": ((1, height, width), torch.float32),
    }


def _scenes(**options: Any) -> SyntheticScenesDataModule:
    return SyntheticScenesDataModule(tasks=DENSE, size=(16, 20), num_train=13, num_val=5, num_test=3, **options)


def _nyuv2(**options: Any) -> NYUv2DataModule:
    return NYUv2DataModule(tasks=DENSE, **options)


def _nyuv2_resized(**options: Any) -> NYUv2DataModule:
    options = {"augment": [RandomHorizontalFlip(), PhotometricJitter()], **options}
    return NYUv2DataModule(tasks=DENSE, num_classes=40, size=(18, 20), **options)


def _acdc(**options: Any) -> ACDCDataModule:
    return ACDCDataModule(**{"val_split": "holdout", **options})


def _multi_mnist(**options: Any) -> MultiMNISTDataModule:
    return MultiMNISTDataModule(num_train=70, num_val=12, num_test=9, **options)


def _two_glyph(**options: Any) -> TwoGlyphDataModule:
    return TwoGlyphDataModule(num_train=25, num_val=8, num_test=6, **options)


def _gaussian_ring(**options: Any) -> GaussianRingDataModule:
    return GaussianRingDataModule(num_train=25, num_val=8, num_test=6, **options)


def _task_stream(**options: Any) -> TaskStream:
    return TaskStream(TextureCrops(6, num_train=20, num_test=4, seed=3), num_tasks=3, **options)


def _coco(**options: Any) -> CocoDetectionDataModule:
    maps = {"warm": {"red": "red", "cold": "blue|green|unused"}}
    return CocoDetectionDataModule(tasks=["boxes", "warm", "segmentation"], label_maps=maps, size=(30, 36), **options)


def _exdark(**options: Any) -> ExDarkDataModule:
    options = {"augment": [RandomBoxCrop(), RandomHorizontalFlip(), FitInside((40, 40))], **options}
    return ExDarkDataModule(size=(40, 40), **options)


DIGITS = {"left": ((), torch.int64), "right": ((), torch.int64)}

COCO = {"boxes": BOXES, "warm": BOXES, "segmentation": ((30, 36), torch.int64)}
STILL = {"augment": False}

CASES = [
    Case("synthetic-scenes", _scenes, None, (3, 16, 20), dense(16, 20)),
    Case("nyuv2-png", _nyuv2, write_png_tree, (3, *SIZE), dense(*SIZE), "nyuv2", STILL),
    Case("nyuv2-png-resized", _nyuv2_resized, write_png_tree, (3, 18, 20), dense(18, 20), "nyuv2", STILL),
    Case("nyuv2-mtan", _nyuv2, write_mtan_tree, (3, *SIZE), dense(*SIZE), "nyuv2", STILL),
    Case("coco", _coco, write_coco, (3, 30, 36), COCO, "coco", STILL),
    Case("exdark", _exdark, write_exdark, (3, 40, 40), {"boxes": BOXES}, "exdark", STILL),
    Case("acdc", _acdc, write_acdc_tree, (3, *SIZE), {"segmentation": (SIZE, torch.int64)}, "acdc", STILL),
    Case("multi-mnist", _multi_mnist, write_mnist, (1, 36, 36), DIGITS, "mnist"),
    Case("two-glyph", _two_glyph, None, (1, 16, 16), DIGITS),
    Case("gaussian-ring", _gaussian_ring, None, (2,), {"mode": ((), torch.int64)}),
    Case("task-stream", _task_stream, None, (1, 8, 8), {"class": ((), torch.int64)}),
]

TRANSFORMS: dict[str, JointTransform] = {
    "RandomHorizontalFlip": RandomHorizontalFlip(0.5),
    "RandomScaleCrop": RandomScaleCrop(),
    "RandomScaleCrop-resized": RandomScaleCrop((1.0, 1.3), size=(20, 24)),
    "Resize": Resize((20, 24)),
    "FitInside": FitInside((20, 24)),
    "RandomBoxCrop": RandomBoxCrop(p=1.0),
    "PhotometricJitter": PhotometricJitter(),
    "Normalize": Normalize(),
    "LowLight": LowLight(ramp=0.5),
    "Compose": Compose([RandomScaleCrop(), RandomHorizontalFlip(), PhotometricJitter()]),
}

# MarkovCopy and MarkovCopyDataModule read tokens and are tested in test_markov.py.
# ModularArithmeticDataModule, PolynomialRegressionDataModule and QuadraticError are tested in test_generated_tables.py.
# NYUv2, SyntheticScenes and MultiMNIST are tested through the modules above; SeededSampler and SampleIndex in
# test_samplers.py; ResumableDataLoader in test_loader.py; PartialLabels, DatasetNotFoundError, DataFileError and
# EmptySplitError in test_base.py, test_nyuv2.py and test_multi_mnist.py.
# MNIST, FashionMNIST, Omniglot, DatasetSource, LabelledDataset, StreamDataset, PermutedPixels, Rotation,
# ReservoirBuffer and RingBuffer are tested in test_continual.py.
# TorchvisionTransform and the boxes that go through the transforms are tested in test_detection_transforms.py,
# DarkFaceDataModule in test_low_light.py; DetectionDataset and DetectionOptions through the modules above.
