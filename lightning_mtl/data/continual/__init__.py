"""Streams of tasks, and memories of them."""

from lightning_mtl.data.continual.buffer import ReplayBuffer, ReservoirBuffer, RingBuffer
from lightning_mtl.data.continual.domains import DomainShift, PermutedPixels, Rotation
from lightning_mtl.data.continual.sources import (
    MNIST,
    ClassificationSource,
    DatasetSource,
    FashionMNIST,
    LabelledDataset,
    Omniglot,
    TextureCrops,
)
from lightning_mtl.data.continual.stream import StreamDataset, TaskStream

__all__ = [
    "MNIST",
    "ClassificationSource",
    "DatasetSource",
    "DomainShift",
    "FashionMNIST",
    "LabelledDataset",
    "Omniglot",
    "PermutedPixels",
    "ReplayBuffer",
    "ReservoirBuffer",
    "RingBuffer",
    "Rotation",
    "StreamDataset",
    "TaskStream",
    "TextureCrops",
]
