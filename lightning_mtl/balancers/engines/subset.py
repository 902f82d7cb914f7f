"""Gramian of some of the shared parameters, update of all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mtl.balancers.engines.base import HeadPass, TaskGradients
from lightning_mtl.balancers.engines.graph import TaskGraph, as_input, differentiate
from lightning_mtl.balancers.engines.store import FlatStore
from lightning_mtl.functional.gradients import tensor_hooks_off


class SubsetGradients(TaskGradients):
    """Gradients whose Gramian looks at some parameters only.

    The K passes end at these parameters; one further pass with the weighted sum covers the whole trunk. Both start at
    the cut, so heads are passed once.

    Args:
        graph: The losses with what belongs to whom.
        compared: The shared parameters that the Gramian looks at.
        scale: Loss scale or None.
        store: Where their gradients are kept.
    """

    def __init__(self, graph: TaskGraph, compared: Sequence[Tensor], scale: Tensor | None, store: FlatStore) -> None:
        self.targets = graph.shared
        self._graph = graph
        self._passed = HeadPass(graph, scale)
        self.heads = self._passed.heads
        self._rows = store.rows(len(graph.losses), compared)
        with tensor_hooks_off(compared):
            for task in range(len(graph.losses)):
                reached = [
                    (as_input(edge), row[task])
                    for edge, row in zip(self._passed.edges, self._passed.gradients, strict=True)
                    if row[task] is not None
                ]
                self._rows.write(
                    task, differentiate([edge for edge, _ in reached], compared, [part for _, part in reached])
                )
                self._rows.send(task)

    def gramian_share(self) -> Tensor:
        """Return this process's part of the Gramian."""
        return self._rows.gramian_share()

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the update of all shared parameters."""
        return self._passed.trunk_pass(self._graph, weights)

    def drop(self, tasks: Sequence[int]) -> None:
        """Zero the gradients of these tasks."""
        for row in self._passed.gradients:
            for task in tasks:
                part = row[task]
                if part is not None:
                    row[task] = torch.zeros_like(part)
        self._drop_heads(tasks)
