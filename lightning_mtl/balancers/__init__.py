"""Balancers: task losses or gradients in, one update out."""

from lightning_mtl.balancers.base import Balancer
from lightning_mtl.balancers.loss_weighting import EqualWeighting, FixedWeighting

__all__ = ["Balancer", "EqualWeighting", "FixedWeighting"]
