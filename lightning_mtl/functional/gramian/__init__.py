"""Gradient weightings as pure functions from the Gramian of the task gradients to task weights.

Every function takes inner products ``(K, K)`` and returns weights ``(K,)`` of the same dtype on the same device; the
update is the weighted sum of the task gradients. All are computed in float64 (float32 on devices without it) on the
matrix of cosines and carry no gradient. Nothing is read back from an accelerator, and every function compiles to one
graph; on the CPU, NumPy does the arithmetic and loops stop early. A Gramian with a NaN or an infinity gives NaN
weights.
"""

from lightning_mtl.functional.gramian.aligned_mtl import aligned_mtl
from lightning_mtl.functional.gramian.cagrad import cagrad
from lightning_mtl.functional.gramian.config import config
from lightning_mtl.functional.gramian.cr_mogm import cr_mogm
from lightning_mtl.functional.gramian.db_mtl import db_mtl
from lightning_mtl.functional.gramian.dualproj import dualproj
from lightning_mtl.functional.gramian.epo import epo
from lightning_mtl.functional.gramian.fairgrad import fairgrad
from lightning_mtl.functional.gramian.gradvac import gradvac
from lightning_mtl.functional.gramian.imtl_g import imtl_g
from lightning_mtl.functional.gramian.krum import krum
from lightning_mtl.functional.gramian.linear_scalarization import linear_scalarization
from lightning_mtl.functional.gramian.mgda import mgda
from lightning_mtl.functional.gramian.min_norm import min_norm_point
from lightning_mtl.functional.gramian.modo import modo
from lightning_mtl.functional.gramian.nash_mtl import nash_mtl
from lightning_mtl.functional.gramian.nnqp import nonnegative_quadratic_program
from lightning_mtl.functional.gramian.pcd import pcd
from lightning_mtl.functional.gramian.pcgrad import pcgrad
from lightning_mtl.functional.gramian.pmtl import pmtl
from lightning_mtl.functional.gramian.sdmgrad import sdmgrad
from lightning_mtl.functional.gramian.simplex import project_to_simplex
from lightning_mtl.functional.gramian.upgrad import upgrad

__all__ = [
    "aligned_mtl",
    "cagrad",
    "config",
    "cr_mogm",
    "db_mtl",
    "dualproj",
    "epo",
    "fairgrad",
    "gradvac",
    "imtl_g",
    "krum",
    "linear_scalarization",
    "mgda",
    "min_norm_point",
    "modo",
    "nash_mtl",
    "nonnegative_quadratic_program",
    "pcd",
    "pcgrad",
    "pmtl",
    "project_to_simplex",
    "sdmgrad",
    "upgrad",
]
