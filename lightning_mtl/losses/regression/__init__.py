"""Losses for numbers."""

from lightning_mtl.losses.regression.errors import AbsoluteError, Huber, SquaredError

__all__ = ["AbsoluteError", "Huber", "SquaredError"]
