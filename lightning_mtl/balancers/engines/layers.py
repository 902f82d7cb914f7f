"""Layers whose weight gradients have a Gramian that needs no weight gradient.

The gradient of a linear map's weight is ``D^T X``, with the rows ``X`` that went in and the gradients ``D`` at what
came out, one row a sample and position. Its inner product for two tasks is ``sum((X X^T) * (D_i D_j^T))``: for few rows
that is cheaper than building the weight gradients. Everything needed lies in the autograd graph.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_mtl.balancers.engines.graph import Node, TaskGraph
from lightning_mtl.functional.gradients import gramian, row_products


class Tap(ABC):
    """One use of a weight in the trunk, with what its gradient depends on.

    Args:
        node: Node of the operation.
        weight: Leaf of the weight.
        bias: Leaf of the bias, or None.
    """

    node_name: ClassVar[str]
    rows: int
    fan_in: int
    fan_out: int

    def __init__(self, node: Node, weight: Tensor, bias: Tensor | None) -> None:
        self.node = node
        self.weight = weight
        self.bias = bias

    @property
    def targets(self) -> list[Tensor]:
        """The leaves whose gradients it replaces."""
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def cost(self, tasks: int) -> float:
        """Return the multiplications of Gramian and update."""
        n = self.rows
        gram = n * n * (self.fan_in + tasks * self.fan_out) + tasks * tasks * n * self.fan_out
        return gram + n * self.fan_in * self.fan_out

    def plain_cost(self, tasks: int) -> float:
        """Return the multiplications with weight gradients."""
        return (tasks * self.rows + tasks * tasks + 2 * tasks) * self.fan_in * self.fan_out

    @abstractmethod
    def gramian(self, outputs: Tensor) -> Tensor:
        """Return the Gramian of the gradients of weight and bias.

        Args:
            outputs: Gradients at what came out, tasks in front.
        """

    @abstractmethod
    def update(self, output: Tensor) -> list[Tensor]:
        """Return the gradients of weight and bias for this gradient at what came out."""

    def _gramian(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the Gramian for rows ``(n, fan_in)`` and gradients ``(K, n, fan_out)``."""
        one = inputs.new_full((1, 1), float(self.bias is not None))  # a bias is the weight of an input that is one
        products = torch.addmm(one, inputs, inputs.T)
        return row_products((products @ outputs).flatten(1), outputs.flatten(1))


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


class LinearTap(Tap):
    """``x @ W.T`` or ``x @ W``, with or without a bias."""

    def __init__(self, node: Node, inputs: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> None:
        super().__init__(node, weight, bias)
        self.inputs = inputs
        self.transposed = transposed
        self.rows, self.fan_in = inputs.shape
        self.fan_out = weight.shape[0] if transposed else weight.shape[1]

    def gramian(self, outputs: Tensor) -> Tensor:
        """Return the Gramian of the gradients of weight and bias."""
        return self._gramian(_wide(self.inputs), _wide(outputs))

    def update(self, output: Tensor) -> list[Tensor]:
        """Return the gradients of weight and bias."""
        inputs = _wide(self.inputs)
        output = output.to(inputs.dtype)
        weight = output.T @ inputs if self.transposed else inputs.T @ output
        return [weight] if self.bias is None else [weight, output.sum(0)]


class ConvTap(Tap):
    """A convolution over one or two dimensions, in one group."""

    def __init__(self, node: Node, weight: Tensor, bias: Tensor | None, positions: int) -> None:
        super().__init__(node, weight, bias)
        self.fan_out = weight.shape[0]
        self.fan_in = weight[0].numel()
        self.rows = positions

    def cost(self, tasks: int) -> float:
        """Return the multiplications of Gramian and update, with the price of unfolding the input."""
        return super().cost(tasks) + 8.0 * self.rows * self.fan_in

    def gramian(self, outputs: Tensor) -> Tensor:
        """Return the Gramian of the gradients of weight and bias."""
        flat = _wide(outputs).flatten(3).permute(0, 1, 3, 2).reshape(len(outputs), -1, self.fan_out)
        return self._gramian(self._unfolded(), flat)

    def _unfolded(self) -> Tensor:
        node = self.node
        inputs = _wide(node._saved_input)
        kernel, stride = tuple(self.weight.shape[2:]), tuple(node._saved_stride)
        padding, dilation = tuple(node._saved_padding), tuple(node._saved_dilation)
        if len(kernel) == 1:
            inputs, kernel, stride = inputs.unsqueeze(2), (1, *kernel), (1, *stride)
            padding, dilation = (0, *padding), (1, *dilation)
        if kernel == (1, 1) and padding == (0, 0):
            columns = inputs[:, :, :: stride[0], :: stride[1]].flatten(2)
        else:
            columns = F.unfold(inputs, kernel, dilation, padding, stride)
        return columns.transpose(1, 2).reshape(-1, self.fan_in)

    def update(self, output: Tensor) -> list[Tensor]:
        """Return the gradients of weight and bias."""
        node = self.node
        inputs = node._saved_input
        _, weight, bias = torch.ops.aten.convolution_backward(
            output.to(inputs.dtype),
            inputs,
            node._saved_weight,
            None if self.bias is None else [self.fan_out],
            node._saved_stride,
            node._saved_padding,
            node._saved_dilation,
            False,
            node._saved_output_padding,
            1,
            [False, True, self.bias is not None],
        )
        return [weight] if self.bias is None else [weight, bias]


class EmbeddingTap(Tap):
    """A lookup table: only the rows that were looked up have a gradient."""

    def __init__(self, node: Node, weight: Tensor) -> None:
        super().__init__(node, weight, None)
        self.indices = node._saved_indices.flatten()
        self.rows = self.indices.numel()
        self.fan_in, self.fan_out = weight.shape
        padding = node._saved_padding_idx
        self.padding = padding if padding < self.fan_in else None  # no padding is stored as -1 without a sign

    def cost(self, tasks: int) -> float:
        """Return the additions into the rows that occur."""
        return float(4 * (tasks + 1) * self.rows * self.fan_out)

    def plain_cost(self, tasks: int) -> float:
        """Return the additions into whole tables."""
        return float(2 * tasks * self.fan_in * self.fan_out)

    def gramian(self, outputs: Tensor) -> Tensor:
        """Return the Gramian of the gradients of the table."""
        flat = _wide(outputs).reshape(len(outputs), -1, self.fan_out)
        present, inverse = torch.unique(self.indices, return_inverse=True)
        compact = flat.new_zeros(len(flat), len(present), self.fan_out).index_add_(1, inverse, flat)
        if self.padding is not None:
            compact = compact.masked_fill_((present == self.padding)[None, :, None], 0)
        return gramian(compact.flatten(1))

    def update(self, output: Tensor) -> list[Tensor]:
        """Return the gradient of the table."""
        flat = output.reshape(-1, self.fan_out).to(self.weight.dtype)
        table = torch.zeros_like(self.weight).index_add_(0, self.indices, flat)
        if self.padding is not None:
            table[self.padding] = 0
        return [table]


def find_taps(graph: TaskGraph) -> list[Tap]:
    """Return the weights of the trunk that are used exactly once, by an operation that is known here.

    Weights that are used several times, reparametrized, tied, or used under activation checkpointing (their inputs are
    not kept) are left to autograd.
    """
    shared = {id(tensor) for tensor in graph.shared}
    taps = []
    for node in graph.trunk:
        make = _MAKERS.get(type(node).__name__)
        tap = None if make is None else make(graph, node)
        if tap is not None and all(id(target) in shared for target in tap.targets):
            taps.append(tap)
    return taps


def _leaf_behind(graph: TaskGraph, node: Node | None) -> tuple[Tensor | None, bool]:
    """Follow casts and transpositions up to a leaf; return it, or None, and whether it was transposed."""
    transposed = False
    while node is not None and len(graph.parents.get(node, ())) == 1:
        following = node.next_functions
        if not following:
            return getattr(node, "variable", None), transposed
        kind = type(node).__name__
        if kind == "TBackward0":
            transposed = not transposed
        elif kind != "ToCopyBackward0":
            return None, False
        node = following[0][0]
    return None, False


def _kept(saved: Any) -> bool:
    """Return whether a saved tensor is simply there, rather than recomputed or fetched from elsewhere."""
    return getattr(saved, "unpack_hook", saved) is None


def _bias(graph: TaskGraph, node: Node | None) -> Tensor | None:
    leaf, _ = _leaf_behind(graph, node)
    return leaf if leaf is not None and leaf.ndim == 1 else None


def _from_addmm(graph: TaskGraph, node: Node) -> Tap | None:
    (bias_node, _), _, (weight_node, _) = node.next_functions
    weight, transposed = _leaf_behind(graph, weight_node)
    if weight is None or weight.ndim != 2 or node._saved_alpha != 1 or node._saved_beta != 1:
        return None
    bias = _bias(graph, bias_node)
    if not _kept(node._raw_saved_mat1) or (bias is not None and len(bias) != weight.shape[0 if transposed else 1]):
        return None
    return LinearTap(node, node._saved_mat1, weight, bias, transposed)


def _from_mm(graph: TaskGraph, node: Node) -> Tap | None:
    _, (weight_node, _) = node.next_functions
    weight, transposed = _leaf_behind(graph, weight_node)
    if weight is None or weight.ndim != 2 or not _kept(node._raw_saved_self):
        return None
    return LinearTap(node, node._saved_self, weight, None, transposed)


def _from_convolution(graph: TaskGraph, node: Node) -> Tap | None:
    _, (weight_node, _), (bias_node, _) = node.next_functions
    weight, transposed = _leaf_behind(graph, weight_node)
    if weight is None or transposed or weight.ndim not in (3, 4):
        return None
    if node._saved_groups != 1 or node._saved_transposed or not _kept(node._raw_saved_input):
        return None
    shape, batch = node._saved_input.shape, len(node._saved_input)
    positions = batch
    for size, kernel, stride, padding, dilation in zip(
        shape[2:],
        weight.shape[2:],
        node._saved_stride,
        node._saved_padding,
        node._saved_dilation,
        strict=True,
    ):
        positions *= (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    return ConvTap(node, weight, _bias(graph, bias_node), positions)


def _from_embedding(graph: TaskGraph, node: Node) -> Tap | None:
    weight, transposed = _leaf_behind(graph, node.next_functions[0][0])
    if weight is None or transposed or node._saved_sparse or node._saved_scale_grad_by_freq:
        return None
    return EmbeddingTap(node, weight) if _kept(node._raw_saved_indices) else None


_MAKERS = {
    "AddmmBackward0": _from_addmm,
    "MmBackward0": _from_mm,
    "ConvolutionBackward0": _from_convolution,
    "EmbeddingBackward0": _from_embedding,
}
