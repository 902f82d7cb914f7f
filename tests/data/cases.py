"""Every data module with small arguments, and what its batches hold."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from lightning_mtl.data import (
    ACDCDataModule,
    CamVidDataModule,
    CityscapesDataModule,
    CityscapesMTANDataModule,
    CocoDetectionDataModule,
    Compose,
    DenseFolderDataModule,
    ExDarkDataModule,
    FactorImagesDataModule,
    FitInside,
    FolderTarget,
    GaussianRingDataModule,
    JointTransform,
    Letterbox,
    LowLight,
    MultiMNISTDataModule,
    MultiTaskDataModule,
    Normalize,
    NYUv2DataModule,
    PascalContextDataModule,
    PhotometricJitter,
    RandomBoxCrop,
    RandomCrop,
    RandomHorizontalFlip,
    RandomRescale,
    RandomScaleCrop,
    Resize,
    SyntheticScenesDataModule,
    TaskonomyDataModule,
    TaskStream,
    TextureCrops,
    TwoGlyphDataModule,
)
from tests.data.dense_trees import (
    write_camvid,
    write_cityscapes,
    write_cityscapes_mtan,
    write_folder,
    write_pascal_context,
    write_taskonomy,
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


def _factor_images(**options: Any) -> FactorImagesDataModule:
    return FactorImagesDataModule("blurred-vertical-shape", num_train_each=2, num_eval_each=8, **options)


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


def _cityscapes(**options: Any) -> CityscapesDataModule:
    tasks = ("segmentation", "disparity", "depth")
    return CityscapesDataModule(**{"tasks": tasks, "val_split": "holdout", **options})


def _cityscapes_mtan(**options: Any) -> CityscapesMTANDataModule:
    return CityscapesMTANDataModule(**{"val_split": "holdout", **options})


def _pascal_context(**options: Any) -> PascalContextDataModule:
    return PascalContextDataModule(**{"size": (20, 28), "val_split": "holdout", **options})


def _taskonomy(**options: Any) -> TaskonomyDataModule:
    return TaskonomyDataModule(tasks=("segment_semantic", "depth_zbuffer", "normal", "keypoints2d"), **options)


def _folder(**options: Any) -> DenseFolderDataModule:
    targets = {
        "classes": FolderTarget("segmentation", "labels", classes=(10, 20, 30, 40, 50), ignore=(0,)),
        "normals": FolderTarget("normals", signs=(1, -1, -1)),
        "mask": FolderTarget("saliency"),
        "heat": FolderTarget("regression"),
    }
    return DenseFolderDataModule(targets=targets, **options)


def maps(*size: int) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Shape and type of every kind of dense target."""
    one = ((1, *size), torch.float32)
    return {
        "classes": (size, torch.int64),
        "normals": ((3, *size), torch.float32),
        **dict.fromkeys(("depth", "edges", "saliency", "regression"), one),
    }


DIGITS = {"left": ((), torch.int64), "right": ((), torch.int64)}

COCO = {"boxes": BOXES, "warm": BOXES, "segmentation": ((30, 36), torch.int64)}
STILL = {"augment": False}
M, P = maps(*SIZE), maps(20, 28)
CAMVID = {"segmentation": M["classes"], "edges": M["edges"], "distance": M["regression"]}
CITYSCAPES = {"segmentation": M["classes"], "disparity": M["depth"], "depth": M["depth"]}
CITYSCAPES_MTAN = {"segmentation": M["classes"], "inverse_depth": M["depth"]}
PASCAL = {
    "segmentation": P["classes"],
    "human_parts": P["classes"],
    "saliency": P["saliency"],
    "edges": P["edges"],
    "normals": P["normals"],
}
TASKONOMY = {
    "segment_semantic": M["classes"],
    "depth_zbuffer": M["depth"],
    "normal": M["normals"],
    "keypoints2d": M["regression"],
}
FOLDER = {"classes": M["classes"], "normals": M["normals"], "mask": M["saliency"], "heat": M["regression"]}

CASES = [
    Case("synthetic-scenes", _scenes, None, (3, 16, 20), dense(16, 20)),
    Case("nyuv2-png", _nyuv2, write_png_tree, (3, *SIZE), dense(*SIZE), "nyuv2", STILL),
    Case("nyuv2-png-resized", _nyuv2_resized, write_png_tree, (3, 18, 20), dense(18, 20), "nyuv2", STILL),
    Case("nyuv2-mtan", _nyuv2, write_mtan_tree, (3, *SIZE), dense(*SIZE), "nyuv2", STILL),
    Case("camvid", CamVidDataModule, write_camvid, (3, *SIZE), CAMVID, "camvid", STILL),
    Case("cityscapes", _cityscapes, write_cityscapes, (3, *SIZE), CITYSCAPES, "cityscapes", STILL),
    Case(
        "cityscapes-mtan",
        _cityscapes_mtan,
        write_cityscapes_mtan,
        (3, *SIZE),
        CITYSCAPES_MTAN,
        "cityscapes_mtan",
        STILL,
    ),
    Case("pascal-context", _pascal_context, write_pascal_context, (3, 20, 28), PASCAL, "pascal_context", STILL),
    Case("taskonomy", _taskonomy, write_taskonomy, (3, *SIZE), TASKONOMY, "taskonomy", STILL),
    Case("folder", _folder, write_folder, (3, *SIZE), FOLDER, "dense_folder", STILL),
    Case("coco", _coco, write_coco, (3, 30, 36), COCO, "coco", STILL),
    Case("exdark", _exdark, write_exdark, (3, 40, 40), {"boxes": BOXES}, "exdark", STILL),
    Case("acdc", _acdc, write_acdc_tree, (3, *SIZE), {"segmentation": (SIZE, torch.int64)}, "acdc", STILL),
    Case("multi-mnist", _multi_mnist, write_mnist, (1, 36, 36), DIGITS, "mnist"),
    Case("two-glyph", _two_glyph, None, (1, 16, 16), DIGITS),
    Case("factor-images", _factor_images, None, (1, 16, 16), {"answer": ((), torch.int64)}),
    Case("gaussian-ring", _gaussian_ring, None, (2,), {"mode": ((), torch.int64)}),
    Case("task-stream", _task_stream, None, (1, 8, 8), {"class": ((), torch.int64)}),
]

TRANSFORMS: dict[str, JointTransform] = {
    "RandomHorizontalFlip": RandomHorizontalFlip(0.5),
    "RandomScaleCrop": RandomScaleCrop(),
    "RandomScaleCrop-resized": RandomScaleCrop((1.0, 1.3), size=(20, 24)),
    "Resize": Resize((20, 24)),
    "FitInside": FitInside((20, 24)),
    "Letterbox": Letterbox((20, 40)),
    "RandomRescale": RandomRescale(0.5, 1.5),
    "RandomCrop": RandomCrop((30, 20)),
    "RandomBoxCrop": RandomBoxCrop(p=1.0),
    "PhotometricJitter": PhotometricJitter(),
    "Normalize": Normalize(),
    "LowLight": LowLight(ramp=0.5),
    "Compose": Compose([RandomScaleCrop(), RandomHorizontalFlip(), PhotometricJitter()]),
}

# DigitTasks, DigitTasksDataModule: test_digit_tasks.py. InstructionDataModule with InstructionDataset and TokenCounts:
# test_instruction_tuning.py.
# MarkovCopy and MarkovCopyDataModule read tokens and are tested in test_markov.py.
# ModularArithmeticDataModule, PolynomialRegressionDataModule and QuadraticError are tested in test_generated_tables.py.
# DenseDataset, DenseTarget, DenseOptions, SyntheticScenes and MultiMNIST are tested through the modules above;
# SeededSampler and SampleIndex in test_samplers.py; ResumableDataLoader in test_loader.py; PartialLabels,
# DatasetNotFoundError, DataFileError and EmptySplitError in test_base.py, test_nyuv2.py and test_multi_mnist.py.
# MNIST, FashionMNIST, Omniglot, DatasetSource, LabelledDataset, StreamDataset, PermutedPixels, Rotation,
# ReservoirBuffer and RingBuffer are tested in test_continual.py.
# TaskSampler, SequentialTaskSampler: test_task_sampler.py; TaskSampling, ProportionalSampling, TemperatureSampling,
# UniformSampling, FixedRatios, RoundRobinSampling, AnnealedSampling and DynamicSampling: test_task_sampling.py;
# TaskConcat and TaskMixtureDataModule, whose batches differ in their tasks: test_task_mixture.py.
# TorchvisionTransform and the boxes that go through the transforms are tested in test_detection_transforms.py,
# DarkFaceDataModule in test_low_light.py; DetectionDataset and DetectionOptions through the modules above.
# CompositionRegistry, CompositionalSplit and Triplet are tested in test_compositional.py; MedMATDataModule, whose
# batches hold texts, with MedMATDataset, MedMATRecord and MultipleChoice in test_med_mat.py.
# BoXDataModule, InstructionMixtureDataModule, StringTasksDataModule with BoXTask, TaskFiles, InstructionTemplate,
# InstructionExample, InstructionMixture and InstructionOptions: test_instructions.py. SymbolTokenizer: test_symbols.py.
# SuperGLUEDataModule, SICKDataModule and EmoBankDataModule: test_text_superglue.py, test_text_sick.py and
# test_text_emobank.py, on the files of benchmark_trees.py.
# TextDataModule, TextDataset, TextRecords and TokenizerTraining are tested in test_text_data.py, GLUEDataModule in
# test_text_glue.py, TextFolderDataModule and TextFolderTask in test_text_folder.py.
