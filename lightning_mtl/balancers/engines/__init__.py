"""Engines: ways to the gradients of several losses at the shared parameters."""

from lightning_mtl.balancers.engines.base import Engine, HeadPass, TaskGradients
from lightning_mtl.balancers.engines.features import FeatureGradients
from lightning_mtl.balancers.engines.graph import TaskGraph
from lightning_mtl.balancers.engines.sequential import SequentialEngine

__all__ = ["Engine", "FeatureGradients", "HeadPass", "SequentialEngine", "TaskGradients", "TaskGraph"]
