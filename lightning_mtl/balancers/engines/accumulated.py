"""Task gradients summed over several micro-batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mtl.balancers.engines.base import seeds
from lightning_mtl.balancers.engines.graph import TaskGraph, differentiate, filled
from lightning_mtl.balancers.engines.sequential import StoredGradients
from lightning_mtl.balancers.engines.store import FlatRows, FlatStore
from lightning_mtl.functional.gradients import tensor_hooks_off


class Accumulator:
    """Sums the gradients of every task over the micro-batches of one optimizer step.

    Args:
        dtype: Type in which gradients are stored; None takes that of the parameters.
    """

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self._store = FlatStore(dtype)
        self._rows: FlatRows | None = None
        self._losses: dict[str, Tensor] = {}
        self._heads: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}

    def add(
        self, graph: TaskGraph, scale: Tensor | None, row_of: dict[str, int], keep_heads: bool
    ) -> list[list[Tensor]]:
        """Differentiate the losses of a micro-batch and add their gradients.

        Args:
            graph: The losses with what belongs to whom.
            scale: Loss scale or None.
            row_of: Name of every task -> its row.
            keep_heads: Whether the gradients of the tasks' own leaves are summed as well.

        Returns:
            The gradients of the tasks' own leaves for this micro-batch.
        """
        if self._rows is None:
            self._rows = self._store.rows(len(row_of), graph.shared)
            self._rows.matrix.zero_()
        starts = seeds(graph, scale)
        heads: list[list[Tensor]] = []
        count = len(graph.shared)
        with tensor_hooks_off([*graph.shared, *graph.own_leaves]):
            for task, (name, loss, leaves) in enumerate(zip(graph.names, graph.losses, graph.heads, strict=True)):
                found: Sequence[Tensor | None] = [None] * (count + len(leaves))
                if graph.roots[task] is not None:
                    found = differentiate([loss], [*graph.shared, *leaves], [starts[task]])
                self._rows.add(row_of[name], found[:count])
                heads.append(filled(found[count:], leaves))
                value = loss.detach().to(torch.promote_types(loss.dtype, torch.float32))
                self._losses[name] = self._losses[name] + value if name in self._losses else value
                if keep_heads:
                    for leaf, gradient in zip(leaves, heads[-1], strict=True):
                        _, before = self._heads.get((name, id(leaf)), (leaf, None))
                        self._heads[name, id(leaf)] = leaf, gradient if before is None else before + gradient
        return heads

    def finish(self, row_of: dict[str, int]) -> tuple[list[str], StoredGradients, Tensor, list[list[Tensor]]]:
        """Hand over the sums and begin anew.

        Returns:
            The tasks that occurred, their gradients, the sums of their losses, and their own leaves if these were kept.
        """
        if self._rows is None:
            raise RuntimeError("no micro-batch was added.")
        rows, names = self._rows, [name for name in row_of if name in self._losses]
        present = [row_of[name] for name in names]
        matrix = rows.matrix if len(present) == len(row_of) else rows.matrix[present]
        part = FlatRows(matrix, [], rows.like, rows.world)
        for row in range(len(names)):
            part.send(row)
        leaves = [[leaf for (owner, _), (leaf, _) in self._heads.items() if owner == name] for name in names]
        heads = [[sum_ for (owner, _), (_, sum_) in self._heads.items() if owner == name] for name in names]
        losses = torch.stack([self._losses[name] for name in names])
        self.clear()
        return names, StoredGradients(part, rows.like, heads), losses, leaves

    def clear(self) -> None:
        """Forget what was added."""
        self._rows, self._losses, self._heads = None, {}, {}
