"""Balancers that weight the losses by looking at their values alone."""

from lightning_mtl.balancers.loss_weighting.base import LossWeighting
from lightning_mtl.balancers.loss_weighting.fixed import EqualWeighting, FixedWeighting

__all__ = ["EqualWeighting", "FixedWeighting", "LossWeighting"]
