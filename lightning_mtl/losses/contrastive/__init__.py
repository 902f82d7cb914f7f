"""Losses of vectors that are told apart from each other."""

from lightning_mtl.losses.contrastive.info_nce import info_nce

__all__ = ["info_nce"]
