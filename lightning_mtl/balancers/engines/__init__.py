"""Engines: ways to the gradients of several losses at the shared parameters."""

from lightning_mtl.balancers.engines.accumulated import Accumulator
from lightning_mtl.balancers.engines.base import Engine, HeadPass, TaskGradients
from lightning_mtl.balancers.engines.batched import BatchedEngine
from lightning_mtl.balancers.engines.choice import EngineName, Engines
from lightning_mtl.balancers.engines.features import FeatureGradients
from lightning_mtl.balancers.engines.graph import TaskGraph
from lightning_mtl.balancers.engines.mixed import MixedEngine
from lightning_mtl.balancers.engines.sequential import SequentialEngine
from lightning_mtl.balancers.engines.store import FlatStore
from lightning_mtl.balancers.engines.subset import SubsetGradients

__all__ = [
    "Accumulator",
    "BatchedEngine",
    "Engine",
    "EngineName",
    "Engines",
    "FeatureGradients",
    "FlatStore",
    "HeadPass",
    "MixedEngine",
    "SequentialEngine",
    "SubsetGradients",
    "TaskGradients",
    "TaskGraph",
]
