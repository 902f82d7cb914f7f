"""One backward pass a task, in turn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mtl.balancers.engines.base import Engine, TaskGradients, seeds
from lightning_mtl.balancers.engines.graph import TaskGraph, differentiate, filled
from lightning_mtl.balancers.engines.store import FlatRows, FlatStore
from lightning_mtl.functional.gradients import tensor_hooks_off


class StoredGradients(TaskGradients):
    """Gradients that lie as rows in a flat matrix."""

    def __init__(self, rows: FlatRows, targets: list[Tensor], heads: list[list[Tensor]]) -> None:
        self.rows = rows
        self.targets = targets
        self.heads = heads

    def gramian_share(self) -> Tensor:
        """Return this process's part of the Gramian."""
        return self.rows.gramian_share()

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sum of the rows."""
        return self.rows.combine(weights)

    def drop(self, tasks: Sequence[int]) -> None:
        """Zero the rows of these tasks."""
        self.rows.drop(tasks)
        self._drop_heads(tasks)

    def matrix(self) -> Tensor:
        """Return the rows, averaged over processes."""
        return self.rows.averaged()

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector into the shapes of the parameters."""
        return self.rows.split(vector)


class SequentialEngine(Engine):
    r"""A loop over the tasks: K passes of the trunk, gradients kept as ``K × P`` numbers.

    Works with every network whose graph can be passed twice. When the losses come from separate forward passes (one
    data loader a task), each backward only covers its own graph, and the K passes together cost what the plain sum of
    the losses costs.

    Args:
        dtype: Type in which gradients are stored; None takes that of the parameters.
    """

    name: ClassVar[str] = "sequential"

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.store = FlatStore(dtype)

    def gradients(self, graph: TaskGraph, scale: Tensor | None) -> TaskGradients:
        """Differentiate the losses one after the other."""
        rows = self.store.rows(len(graph.losses), graph.shared)
        starts = seeds(graph, scale)
        heads: list[list[Tensor]] = []
        count = len(graph.shared)
        with tensor_hooks_off([*graph.shared, *graph.own_leaves]):
            for task, (loss, leaves) in enumerate(zip(graph.losses, graph.heads, strict=True)):
                found: Sequence[Tensor | None] = [None] * count
                if graph.roots[task] is not None:
                    found = differentiate([loss], [*graph.shared, *leaves], [starts[task]])
                rows.write(task, found[:count])
                rows.send(task)
                heads.append(filled(found[count:], leaves))
                del found
        return StoredGradients(rows, graph.shared, heads)
