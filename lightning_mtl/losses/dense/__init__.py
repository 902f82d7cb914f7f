"""Losses for maps: a value per pixel or per image."""

from lightning_mtl.losses.dense.balanced_bce import BalancedBCE
from lightning_mtl.losses.dense.berhu import BerHu
from lightning_mtl.losses.dense.cosine import CosineDistance
from lightning_mtl.losses.dense.silog import SILog

__all__ = ["BalancedBCE", "BerHu", "CosineDistance", "SILog"]
