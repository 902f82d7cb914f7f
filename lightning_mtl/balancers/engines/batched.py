"""All tasks in one vectorized pass of the trunk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mtl.balancers.base import is_distributed
from lightning_mtl.balancers.engines.base import Engine, HeadPass, TaskGradients
from lightning_mtl.balancers.engines.graph import TaskGraph, as_input, differentiate
from lightning_mtl.balancers.engines.sequential import StoredGradients
from lightning_mtl.balancers.engines.store import FlatStore
from lightning_mtl.functional.gradients import combine_rows, gramian, tensor_hooks_off


class StackedGradients(TaskGradients):
    """One tensor a parameter, with the tasks in front."""

    def __init__(self, stacks: list[Tensor | None], targets: list[Tensor], heads: list[list[Tensor]]) -> None:
        self.stacks = stacks
        self.targets = targets
        self.heads = heads

    def gramian_share(self) -> Tensor:
        """Return the Gramian."""
        return torch.stack([gramian(stack.flatten(1)) for stack in self.stacks if stack is not None]).sum(0)

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sum for every parameter."""
        return [
            torch.zeros_like(target)
            if stack is None
            else combine_rows(weights, stack.flatten(1)).view(target.shape).to(target.dtype)
            for stack, target in zip(self.stacks, self.targets, strict=True)
        ]

    def drop(self, tasks: Sequence[int]) -> None:
        """Zero the gradients of these tasks."""
        for stack in self.stacks:
            for task in tasks:
                if stack is not None:
                    stack[task].zero_()
        self._drop_heads(tasks)


class BatchedEngine(Engine):
    """One pass of the trunk for all tasks, vectorized by :func:`torch.vmap`; ``K × P`` numbers.

    The trunk must consist of operations whose derivatives can be vectorized, and be compiled by nothing. Faster than a
    loop where the work of a single pass is small, as in networks of linear layers.

    Args:
        dtype: Type in which gradients are stored; None takes that of the parameters.
    """

    name: ClassVar[str] = "batched"

    def __init__(self, dtype: torch.dtype | None = None) -> None:
        self.dtype = dtype
        self.store = FlatStore(dtype)

    def gradients(self, graph: TaskGraph, scale: Tensor | None, matrix: bool = False) -> TaskGradients:
        """Differentiate all losses at once.

        Args:
            graph: The losses with what belongs to whom.
            scale: Loss scale or None.
            matrix: Whether the result must lie as rows in one matrix.
        """
        passed = HeadPass(graph, scale)
        with tensor_hooks_off(graph.shared):
            stacks = differentiate(
                [as_input(edge) for edge in passed.edges], graph.shared, passed.stacked(), batched=True
            )
        if not matrix and not is_distributed() and self.dtype is None:
            return StackedGradients(list(stacks), graph.shared, passed.heads)
        rows = self.store.rows(len(graph.losses), graph.shared)
        for task in range(len(graph.losses)):
            rows.write(task, [None if stack is None else stack[task] for stack in stacks])
            rows.send(task)
        return StoredGradients(rows, graph.shared, passed.heads)
