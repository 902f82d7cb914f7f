"""Gradients at the features: only the heads are differentiated once a task."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_mtl.balancers.base import is_distributed
from lightning_mtl.balancers.engines.base import HeadPass, TaskGradients
from lightning_mtl.balancers.engines.graph import Edge, TaskGraph, aliased, edge_of
from lightning_mtl.functional.gradients import combine_rows, gramian


class FeatureGradients(TaskGradients):
    """Gradients of the losses at the features.

    Features belong to samples, and processes hold different samples: the Gramian of the joined batch is the sum over
    the processes, divided by the square of their number since losses are scaled for the mean.

    Args:
        graph: The losses, walked down to the features.
        features: The features, in the order in which they were given.
        scale: Loss scale or None.
    """

    def __init__(self, graph: TaskGraph, features: Sequence[Tensor], scale: Tensor | None) -> None:
        passed = HeadPass(graph, scale)
        self.heads = passed.heads
        by_edge: dict[Edge, Tensor] = {}
        for tensor in features:
            by_edge.setdefault(edge_of(tensor), tensor)
            by_edge.setdefault(aliased(edge_of(tensor)), tensor)  # whatever reaches an alias reaches what it stands for
        self.edges = passed.edges
        self.targets = [by_edge[edge] for edge in passed.edges]
        self.dropped: set[int] = set()
        """Tasks that were left out."""
        self._rows = passed.stacked()
        self._world = dist.get_world_size() if is_distributed() else 1

    def gramian_share(self) -> Tensor:
        """Return the Gramian over this process's samples."""
        total: Tensor | None = None
        for rows in self._rows:
            part = gramian(rows.flatten(1))
            total = part if total is None else total + part
        if total is None:
            raise RuntimeError("no loss depends on the features.")
        return total / self._world**2

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sum at every feature."""
        return [combine_rows(weights, rows.flatten(1)).to(rows.dtype).view(rows.shape[1:]) for rows in self._rows]

    def drop(self, tasks: Sequence[int]) -> None:
        """Zero the gradients of these tasks."""
        self.dropped |= set(tasks)
        for rows in self._rows:
            for task in tasks:
                rows[task].zero_()
        self._drop_heads(tasks)

    def matrix(self) -> Tensor:
        """Return the gradients at this process's features as rows."""
        return torch.cat([rows.flatten(1) for rows in self._rows], 1)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector into the shapes of the features."""
        parts = torch.split(vector, [rows[0].numel() for rows in self._rows])
        return [part.to(rows.dtype).view(rows.shape[1:]) for part, rows in zip(parts, self._rows, strict=True)]
