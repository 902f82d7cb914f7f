"""What an engine is: losses in, the tasks' gradients out, in whatever form is cheapest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from lightning_mtl.balancers.engines.graph import TaskGraph, as_input, blocked, differentiate, filled
from lightning_mtl.functional.gradients import tensor_hooks_off


class TaskGradients(ABC):
    """The gradients of k losses at the shared parameters or features, as an engine left them.

    Everything is scaled by the loss scale that the engine was given.
    """

    targets: list[Tensor]
    """Parameters or features to which the update belongs."""

    heads: list[list[Tensor]]
    """Gradients of each task's own leaves, in the order of ``TaskGraph.heads``."""

    @abstractmethod
    def gramian_share(self) -> Tensor:
        """Return this process's part of the Gramian, ``(k, k)``: the sum over all processes is the Gramian."""

    @abstractmethod
    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sum of the gradients, one tensor a target."""

    @abstractmethod
    def drop(self, tasks: Sequence[int]) -> None:
        """Set the gradients of these tasks to zero, also those of their own leaves."""

    def matrix(self) -> Tensor:
        """Return the gradients as rows, ``(k, P)``, averaged over processes."""
        raise NotImplementedError(f"{type(self).__name__} does not hold the matrix of gradients.")

    def split(self, vector: Tensor) -> list[Tensor]:
        """Cut a vector of ``P`` numbers into one tensor a target."""
        raise NotImplementedError(f"{type(self).__name__} does not hold the matrix of gradients.")

    def _drop_heads(self, tasks: Sequence[int]) -> None:
        for task in tasks:
            self.heads[task] = [torch.zeros_like(gradient) for gradient in self.heads[task]]


class Engine(ABC):
    """Computes task gradients at the shared parameters."""

    name: ClassVar[str]
    """Its name in ``engine=``."""

    @abstractmethod
    def gradients(self, graph: TaskGraph, scale: Tensor | None) -> TaskGradients:
        """Differentiate every loss.

        Args:
            graph: The losses with what belongs to whom.
            scale: Loss scale, a scalar float32 tensor, or None.
        """


def seeds(graph: TaskGraph, scale: Tensor | None) -> list[Tensor]:
    """Return the gradient with which each loss starts: the loss scale, in the loss's dtype."""
    start = graph.losses[0].new_ones(()) if scale is None else scale
    made: dict[tuple[torch.dtype, torch.device], Tensor] = {}
    starts = []
    for loss in graph.losses:
        kind = loss.dtype, loss.device
        if kind not in made:
            made[kind] = start.to(loss.device, loss.dtype)
        starts.append(made[kind])
    return starts


class HeadPass:
    """The gradients of every loss at the cut edges and at the tasks' own leaves.

    When the tasks have nothing in common above the cut, one pass serves all of them. Cut edges that are mere views of
    the same result (an alias of the features for each task) are taken together. Each edge sees what reaches it
    directly, not by way of another cut edge.
    """

    def __init__(self, graph: TaskGraph, scale: Tensor | None) -> None:
        starts = seeds(graph, scale)
        found: list[tuple[Tensor | None, ...]] = []
        live = [task for task, root in enumerate(graph.roots) if root is not None]
        inputs = [[*map(as_input, graph.cuts[task]), *graph.heads[task]] for task in live]
        with tensor_hooks_off(graph.own_leaves), blocked(graph.places):
            if graph.separate:
                joined = iter(
                    differentiate(
                        [graph.losses[task] for task in live],
                        [item for part in inputs for item in part],
                        [starts[task] for task in live],
                    )
                )
                found = [tuple(next(joined) for _ in part) for part in inputs]
            else:
                found = [
                    differentiate([graph.losses[task]], part, [starts[task]])
                    for task, part in zip(live, inputs, strict=True)
                ]
        count = len(graph.losses)
        self.heads: list[list[Tensor]] = [[] for _ in range(count)]
        at_edges: dict[tuple[object, int], list[Tensor | None]] = {}
        for task, gradients in zip(live, found, strict=True):
            cut = graph.cuts[task]
            self.heads[task] = filled(gradients[len(cut) :], graph.heads[task])
            for edge, gradient in zip(cut, gradients[: len(cut)], strict=True):
                if gradient is None:
                    continue
                node, number = edge
                while type(node).__name__ == "ViewBackward0" and _keeps_shape(node, gradient):
                    node, number = node.next_functions[0]
                row = at_edges.setdefault((node, number), [None] * count)
                before = row[task]
                row[task] = gradient if before is None else before + gradient
        self.edges = list(at_edges)
        self.gradients = list(at_edges.values())
        """For every edge, the gradient of each task or None."""

    @property
    def dense(self) -> bool:
        """Whether every task reaches every edge."""
        return all(gradient is not None for row in self.gradients for gradient in row)

    def stacked(self) -> list[Tensor]:
        """Return the gradients at every edge with the tasks in front; zeros where a task does not reach it."""
        stacks = []
        for row in self.gradients:
            some = next(gradient for gradient in row if gradient is not None)
            zero = None if self.dense else torch.zeros_like(some)
            stacks.append(torch.stack([cast(Tensor, zero) if part is None else part for part in row]))
        return stacks


def _keeps_shape(node: object, gradient: Tensor) -> bool:
    sizes = getattr(node, "_saved_self_sym_sizes", None)
    return sizes is not None and tuple(sizes) == tuple(gradient.shape)
