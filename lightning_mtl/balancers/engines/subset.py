"""Gramian of some of the shared parameters, update of all of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lightning_mtl.balancers.engines.base import TaskGradients, seeds
from lightning_mtl.balancers.engines.graph import TaskGraph, differentiate, filled, weighted_pass
from lightning_mtl.balancers.engines.store import FlatStore
from lightning_mtl.functional.gradients import tensor_hooks_off


class SubsetGradients(TaskGradients):
    """Gradients whose Gramian looks at some parameters only.

    The K passes end at these parameters; one further pass with the weighted sum of the losses covers the whole trunk.

    Args:
        graph: The losses with what belongs to whom.
        compared: The shared parameters that the Gramian looks at.
        scale: Loss scale or None.
        store: Where their gradients are kept.
    """

    def __init__(self, graph: TaskGraph, compared: Sequence[Tensor], scale: Tensor | None, store: FlatStore) -> None:
        self.targets = graph.shared
        self.heads = []
        self._graph = graph
        self._starts = seeds(graph, scale)
        self._dropped: set[int] = set()
        self._rows = store.rows(len(graph.losses), compared)
        count = len(compared)
        with tensor_hooks_off([*compared, *graph.own_leaves]):
            for task, (loss, leaves) in enumerate(zip(graph.losses, graph.heads, strict=True)):
                found: Sequence[Tensor | None] = [None] * count
                if graph.roots[task] is not None:
                    found = differentiate([loss], [*compared, *leaves], [self._starts[task]])
                self._rows.write(task, found[:count])
                self._rows.send(task)
                self.heads.append(filled(found[count:], leaves))

    def gramian_share(self) -> Tensor:
        """Return this process's part of the Gramian."""
        return self._rows.gramian_share()

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the update of all shared parameters."""
        scaled = [
            None if task in self._dropped else weight * start  # zero times what is not finite would be NaN
            for task, (weight, start) in enumerate(zip(weights.unbind(), self._starts, strict=True))
        ]
        return weighted_pass(self._graph, scaled, self.targets)

    def drop(self, tasks: Sequence[int]) -> None:
        """Leave these tasks out."""
        self._dropped |= set(tasks)
        self._rows.drop(tasks)
        self._drop_heads(tasks)
