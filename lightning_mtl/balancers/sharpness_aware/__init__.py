"""Balancers that take gradients at perturbed parameters, to end in flat regions of the losses."""

from lightning_mtl.balancers.sharpness_aware.base import SharpnessAware
from lightning_mtl.balancers.sharpness_aware.flat_regions import FlatRegions
from lightning_mtl.balancers.sharpness_aware.sam import SAM

__all__ = ["SAM", "FlatRegions", "SharpnessAware"]
