"""The autograd graph of several task losses: which leaves belong to a task alone, and where the shared part begins."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lightning_mtl.functional.gradients import tensor_hooks_off

REENTRANT = (
    "Gradient balancing needs torch.autograd.grad, which reentrant activation checkpointing does not support; call "
    "torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
)

Node = Any
Edge = tuple[Node, int]


def edge_of(tensor: Tensor) -> Edge:
    """Return the node that made the tensor, and which of its outputs the tensor is."""
    node = tensor.grad_fn
    if node is None:
        node = get_gradient_edge(tensor).node
    return node, tensor.output_nr


def as_input(edge: Edge) -> GradientEdge:
    """Return the edge in the form that :func:`torch.autograd.grad` takes."""
    return GradientEdge(edge[0], edge[1])


class TaskGraph:
    """Walks once over the graph from the losses and sorts its nodes.

    A node is *private* if a leaf that is not shared lies under it: heads, and whatever a task has for itself in the
    encoder. All other nodes are the *trunk*. An edge from a private node to the trunk is *cut*: gradients at the cut
    edges determine the gradients of the shared parameters. Constants take no part. With ``stop``, the graph is cut at
    these tensors instead, and what lies under them is not looked at.

    Args:
        names: The tasks' names, for messages.
        losses: Their losses.
        shared: Leaves that the tasks share.
        stop: Tensors at which the graph is cut (features); none cuts it at the trunk.
    """

    def __init__(
        self, names: Sequence[str], losses: Sequence[Tensor], shared: Sequence[Tensor], stop: Sequence[Tensor] = ()
    ) -> None:
        self.names = tuple(names)
        self.losses = tuple(losses)
        self.shared = list(shared)
        self.roots: list[Edge | None] = [edge_of(loss) if loss.requires_grad else None for loss in losses]
        self.parents: dict[Node, list[Node]] = {}
        self.heads: list[list[Tensor]] = []
        """Leaves of each task that are not shared."""
        self.cuts: list[list[Edge]] = []
        """Cut edges of each task."""
        self.around: set[int] = set()
        """Tasks that reach a shared leaf by a way around the tensors in ``stop``."""
        self._private: set[Node] = set()
        if stop:
            visited = self._walk_to({edge_of(tensor) for tensor in stop})
        else:
            self._private = self._private_nodes(self._explore())
            visited = sum(self._split(root) for root in self.roots)
        edges = [edge for cut in self.cuts for edge in cut]
        self.separate = visited == len(self._private) and len(set(edges)) == len(edges)
        """Whether the tasks have no node and no cut edge in common, so that one pass serves all."""

    def _walk_to(self, stops: Collection[Edge]) -> int:
        """Sort what lies above these edges; return the number of nodes, each counted once a task."""
        shared = {id(tensor) for tensor in self.shared}
        visited = 0
        for task, root in enumerate(self.roots):
            heads: list[Tensor] = []
            cut: dict[Edge, None] = {}
            seen: set[Node] = set()
            stack: list[Edge] = [] if root is None else [root]
            while stack:
                edge = stack.pop()
                if edge in stops or aliased(edge) in stops:
                    cut[edge] = None
                    continue
                node = edge[0]
                if node in seen:
                    continue
                seen.add(node)
                following = node.next_functions
                if following:
                    stack.extend([child for child in following if child[0] is not None])
                elif (leaf := getattr(node, "variable", None)) is not None:
                    if id(leaf) in shared:
                        self.around.add(task)
                    else:
                        heads.append(leaf)
            self.heads.append(heads)
            self.cuts.append(list(cut))
            self._private |= seen
            visited += len(seen)
        return visited

    def _explore(self) -> list[Node]:
        """Fill ``parents``; return the nodes of leaves that are not shared."""
        shared = {id(tensor) for tensor in self.shared}
        parents = self.parents
        private: list[Node] = []
        stack: list[Node] = []
        for root in self.roots:
            if root is not None and root[0] not in parents:
                parents[root[0]] = []
                stack.append(root[0])
        while stack:
            node = stack.pop()
            following = node.next_functions
            if not following:
                leaf = getattr(node, "variable", None)
                if leaf is not None and id(leaf) not in shared:
                    private.append(node)
                continue
            for child, _ in following:
                if child is None:
                    continue
                above = parents.get(child)
                if above is None:
                    parents[child] = [node]
                    stack.append(child)
                else:
                    above.append(node)
        return private

    def _private_nodes(self, leaves: list[Node]) -> set[Node]:
        private: set[Node] = set()
        stack = leaves
        while stack:
            node = stack.pop()
            if node not in private:
                private.add(node)
                stack.extend(self.parents[node])
        return private

    def _split(self, root: Edge | None) -> int:
        """Append this task's own leaves and cut edges; return the number of its private nodes."""
        private = self._private
        heads: list[Tensor] = []
        cut: dict[Edge, None] = {}
        seen: set[Node] = set()
        if root is not None and root[0] not in private:
            cut[root] = None
        elif root is not None:
            stack = [root[0]]
            while stack:
                node = stack.pop()
                if node in seen:
                    continue
                seen.add(node)
                following = node.next_functions
                if not following:
                    heads.append(node.variable)
                for child, number in following:
                    if child is None:
                        continue
                    if child in private:
                        stack.append(child)
                    else:
                        cut[child, number] = None
        self.heads.append(heads)
        self.cuts.append(list(cut))
        return len(seen)

    @functools.cached_property
    def trunk(self) -> list[Node]:
        """Nodes from which no leaf of a single task can be reached."""
        return [node for node in self.parents if node not in self._private]

    @functools.cached_property
    def meets(self) -> bool:
        """Whether all tasks enter the trunk at the same places, be it through views of the same result."""
        entries = [{_behind_views(edge) for edge in cut} for cut in self.cuts]
        return all(entry == entries[0] for entry in entries)

    @functools.cached_property
    def places(self) -> set[Edge]:
        """The cut edges, if they are more than views of one result, so that one may lie under another."""
        edges = {edge for cut in self.cuts for edge in cut}
        return edges if len({_behind_views(edge) for edge in edges}) > 1 else set()

    @property
    def own_leaves(self) -> list[Tensor]:
        """Leaves that are not shared, each once, in the order of the tasks."""
        return list({id(leaf): leaf for heads in self.heads for leaf in heads}.values())

    @property
    def reentrant(self) -> bool:
        """Whether the graph holds a reentrant activation checkpoint, which hides the parameters under it."""
        return any(type(node).__name__ == "CheckpointFunctionBackward" for node in {*self.parents, *self._private})

    @property
    def sharded(self) -> bool:
        """Whether a module above the cut keeps its parameters sharded (``fully_shard``)."""
        return any(type(node).__name__ == "RegisterPostBackwardFunctionBackward" for node in self._private)

    def reaches_shared(self, task: int) -> bool:
        """Return whether this task's loss depends on something shared."""
        return bool(self.cuts[task])


@contextlib.contextmanager
def blocked(edges: Collection[Edge]) -> Iterator[None]:
    """Keep gradients that reach these edges from going on, so that each edge sees what reaches it directly.

    Where one of them lies under another (feature maps of several levels), what the lower one receives through the
    higher one would otherwise be counted twice.
    """
    if not edges:
        yield
        return
    numbers: dict[Node, set[int]] = {}
    for node, number in edges:
        if node.next_functions:
            numbers.setdefault(node, set()).add(number)

    def block(node_numbers: set[int]) -> Any:
        return lambda gradients: tuple(
            None if number in node_numbers else gradient for number, gradient in enumerate(gradients)
        )

    handles = [node.register_prehook(block(held)) for node, held in numbers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def aliased(edge: Edge) -> Edge:
    """Return the edge of which this one is a view of the same shape, or the edge itself."""
    node, number = edge
    while type(node).__name__ == "ViewBackward0":
        if tuple(node._saved_self_sym_sizes) != tuple(node._input_metadata[0].shape):
            break
        node, number = node.next_functions[0]
    return node, number


def _behind_views(edge: Edge) -> Edge:
    node, number = edge
    while type(node).__name__ == "ViewBackward0":
        node, number = node.next_functions[0]
    return node, number


def weighted_pass(graph: TaskGraph, weights: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients of the weighted sum of the losses at these leaves, by one pass.

    Args:
        graph: The losses with what belongs to whom.
        weights: One a task; None leaves it out.
        leaves: Leaves of the graph; those that are not reached get zeros.
    """
    parts = [
        (loss, weight.to(loss.dtype))
        for loss, root, weight in zip(graph.losses, graph.roots, weights, strict=True)
        if root is not None and weight is not None
    ]
    with tensor_hooks_off(leaves):
        found = differentiate([loss for loss, _ in parts], leaves, [weight for _, weight in parts])
    return filled(found, leaves)


def filled(gradients: Sequence[Tensor | None], leaves: Sequence[Tensor]) -> list[Tensor]:
    """Put zeros where a gradient is missing."""
    return [
        torch.zeros_like(leaf) if gradient is None else gradient
        for gradient, leaf in zip(gradients, leaves, strict=True)
    ]


def differentiate(
    outputs: Sequence[Any],
    inputs: Sequence[Any],
    grad_outputs: Sequence[Tensor | None],
    batched: bool = False,
) -> tuple[Tensor | None, ...]:
    """Call :func:`torch.autograd.grad`, keep the graph, and explain the errors that a repeated backward can meet.

    Raises:
        RuntimeError: If the graph cannot be passed several times, with the remedy in the message.
    """
    if not inputs or not outputs:
        return (None,) * len(inputs)
    try:
        return torch.autograd.grad(
            outputs, inputs, grad_outputs, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )
    except RuntimeError as error:
        text = str(error)
        if "donated buffer" in text:
            raise RuntimeError(
                "Gradient balancing passes the graph once a task, which a torch.compile'd network with donated buffers "
                "does not allow; call balancer.watch(encoder) before its first forward pass, or set "
                "torch._functorch.config.donated_buffer = False."
            ) from error
        if "use_reentrant" in text or "incompatible with .grad()" in text:
            raise RuntimeError(REENTRANT) from error
        raise
