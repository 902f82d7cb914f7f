"""Every function from the Gramian to weights, with small arguments and what it declares."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_mtl import functional as F

Weighting = Callable[[Tensor], Tensor]


class Case(NamedTuple):
    """One weighting.

    Attributes:
        weights: The function with all but its first argument bound.
        power: ``p`` where multiplying the gradients by ``s`` multiplies the weights by ``s ** p``; NaN for none.
        total: Sum of the weights where it is declared, else NaN.
        signed: Whether weights may be negative.
        ordered: Whether the order of the tasks matters.
        least: Smallest number of tasks.
        wild: Whether the result is exact for norms that differ by a factor of 1e8.
    """

    weights: Weighting
    power: float = 0.0
    total: float = math.nan
    signed: bool = False
    ordered: bool = False
    least: int = 1
    wild: bool = True


def visits(size: int) -> Tensor:
    """Return an order of visits in which every task starts elsewhere."""
    return (torch.arange(size).unsqueeze(-1) - 3 * torch.arange(size) - 1).remainder(size).argsort(dim=1, stable=True)


def losses(gramian: Tensor) -> Tensor:
    return torch.linspace(0.5, 2.0, len(gramian), dtype=gramian.dtype)


def even(gramian: Tensor) -> Tensor:
    return torch.full_like(gramian[0], 1 / len(gramian))


CASES = {
    "aligned_mtl": Case(F.aligned_mtl, signed=True, wild=False),
    "aligned_mtl-median": Case(lambda g: F.aligned_mtl(g, "median"), signed=True, wild=False),
    "aligned_mtl-rmse": Case(lambda g: F.aligned_mtl(g, "rmse"), signed=True, wild=False),
    "cagrad": Case(lambda g: F.cagrad(g, 0.4)),
    "cagrad-beyond-one": Case(lambda g: F.cagrad(g, 1.2)),
    "cagrad-rescaled": Case(lambda g: F.cagrad(g, 0.4, rescale=1)),
    "config": Case(F.config, signed=True),
    "cr_mogm": Case(lambda g: F.cr_mogm(F.upgrad(g), even(g))),
    "db_mtl": Case(F.db_mtl),
    "dualproj": Case(F.dualproj),
    "epo": Case(lambda g: F.epo(g, losses(g), even(g)), total=1.0, ordered=True),
    "fairgrad-half": Case(lambda g: F.fairgrad(g, 0.5), power=-2 / 3),
    "fairgrad-2": Case(lambda g: F.fairgrad(g, 2.0), power=-4 / 3),
    "gradvac": Case(lambda g: F.gradvac(g, torch.full_like(g, 0.1), visits(len(g)))[0], ordered=True),
    "imtl_g": Case(F.imtl_g, total=1.0, signed=True),
    "krum": Case(lambda g: F.krum(g, n_byzantine=0, n_selected=2), total=1.0, least=3),
    "linear_scalarization": Case(F.linear_scalarization, total=1.0),
    "mgda": Case(F.mgda, total=1.0),
    "mgda-l2": Case(lambda g: F.mgda(g, "l2"), power=-1.0),
    "mgda-loss": Case(lambda g: F.mgda(g, "loss", losses(g)), ordered=True),
    "mgda-loss+": Case(lambda g: F.mgda(g, "loss+", losses(g)), power=-1.0, ordered=True),
    "min_norm_point": Case(F.min_norm_point, total=1.0),
    "modo": Case(lambda g: F.modo(g, even(g)), power=math.nan, total=1.0),
    "nash_mtl": Case(F.nash_mtl, power=-1.0),
    "nash_mtl-clipped": Case(lambda g: F.nash_mtl(g, max_norm=1.0), power=-1.0),
    "pcd": Case(F.pcd, ordered=True),
    "pcgrad": Case(lambda g: F.pcgrad(g, visits(len(g))), ordered=True),
    "pmtl": Case(lambda g: F.pmtl(g, losses(g), torch.eye(len(g), dtype=g.dtype), 0), signed=True, ordered=True),
    "sdmgrad": Case(lambda g: F.sdmgrad(g, even(g), n_iter=5)[0], total=1.0),
    "upgrad": Case(F.upgrad),
}

KINDS = ["random", "conflicting", "aligned", "dependent", "identical", "opposite", "zero row", "all zero", "wild norms"]


def gradients(kind: str, tasks: int, seed: int = 0, columns: int | None = None) -> Tensor:
    """Draw a float64 matrix of task gradients of the given kind."""
    generator = torch.Generator().manual_seed(seed)
    columns = columns or max(20, tasks + 5)
    rows = torch.randn(tasks, columns, generator=generator, dtype=torch.float64)
    if kind == "conflicting":
        rows = rows - 0.9 * rows.mean(0)
    elif kind == "aligned":
        rows = rows + 2 * torch.randn(columns, generator=generator, dtype=torch.float64)
    elif kind == "dependent":
        rows = rows[:, : max(1, tasks // 2 + 1)]
    elif kind == "identical":
        rows[-1] = rows[0]
    elif kind == "opposite":
        rows[-1] = -rows[0]
    elif kind == "zero row":
        rows[-1] = 0
    elif kind == "all zero":
        rows = torch.zeros_like(rows)
    elif kind == "wild norms":
        rows = rows * 10.0 ** torch.linspace(-4, 4, tasks, dtype=torch.float64).unsqueeze(-1)
    elif kind != "random":
        raise ValueError(f"gradients: unknown kind {kind!r}")
    return rows
