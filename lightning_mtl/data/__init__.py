"""Data modules: batches are ``(inputs, targets)``, ``targets`` maps task name to target."""

from lightning_mtl.data.base import MultiTaskDataModule, PartialLabels
from lightning_mtl.data.continual import (
    MNIST,
    ClassificationSource,
    DatasetSource,
    DomainShift,
    FashionMNIST,
    LabelledDataset,
    Omniglot,
    PermutedPixels,
    ReplayBuffer,
    ReservoirBuffer,
    RingBuffer,
    Rotation,
    StreamDataset,
    TaskStream,
    TextureCrops,
)
from lightning_mtl.data.dense import (
    Compose,
    JointTransform,
    Normalize,
    NYUv2,
    NYUv2DataModule,
    PhotometricJitter,
    RandomHorizontalFlip,
    RandomScaleCrop,
    Resize,
)
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError, EmptySplitError
from lightning_mtl.data.gaussian_ring import GaussianRingDataModule
from lightning_mtl.data.loader import ResumableDataLoader
from lightning_mtl.data.multi_mnist import MultiMNIST, MultiMNISTDataModule
from lightning_mtl.data.polynomial import PolynomialRegressionDataModule, QuadraticError, quadratic_error
from lightning_mtl.data.samplers import SampleIndex, SeededSampler, sample_generator
from lightning_mtl.data.sequence import MarkovCopy, MarkovCopyDataModule, ModularArithmeticDataModule
from lightning_mtl.data.synthetic import SyntheticScenes, SyntheticScenesDataModule
from lightning_mtl.data.two_glyph import TwoGlyphDataModule

__all__ = [
    "MNIST",
    "ClassificationSource",
    "Compose",
    "DataFileError",
    "DatasetNotFoundError",
    "DatasetSource",
    "DomainShift",
    "EmptySplitError",
    "FashionMNIST",
    "GaussianRingDataModule",
    "JointTransform",
    "LabelledDataset",
    "MarkovCopy",
    "MarkovCopyDataModule",
    "ModularArithmeticDataModule",
    "MultiMNIST",
    "MultiMNISTDataModule",
    "MultiTaskDataModule",
    "NYUv2",
    "NYUv2DataModule",
    "Normalize",
    "Omniglot",
    "PartialLabels",
    "PermutedPixels",
    "PhotometricJitter",
    "PolynomialRegressionDataModule",
    "QuadraticError",
    "RandomHorizontalFlip",
    "RandomScaleCrop",
    "ReplayBuffer",
    "ReservoirBuffer",
    "Resize",
    "ResumableDataLoader",
    "RingBuffer",
    "Rotation",
    "SampleIndex",
    "SeededSampler",
    "StreamDataset",
    "SyntheticScenes",
    "SyntheticScenesDataModule",
    "TaskStream",
    "TextureCrops",
    "TwoGlyphDataModule",
    "quadratic_error",
    "sample_generator",
]
