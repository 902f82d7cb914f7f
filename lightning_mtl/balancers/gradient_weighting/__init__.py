"""Balancers that look at the gradients of the tasks."""

from lightning_mtl.balancers.gradient_weighting.base import (
    GradientAggregation,
    GradientBalancer,
    GradientOptions,
    GradientWeighting,
    NonFiniteGradientError,
)

__all__ = [
    "GradientAggregation",
    "GradientBalancer",
    "GradientOptions",
    "GradientWeighting",
    "NonFiniteGradientError",
]
