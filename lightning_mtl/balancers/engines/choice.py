"""Which engine computes the gradients of a step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from lightning_mtl.balancers.base import is_distributed
from lightning_mtl.balancers.engines.base import TaskGradients
from lightning_mtl.balancers.engines.batched import BatchedEngine
from lightning_mtl.balancers.engines.graph import TaskGraph
from lightning_mtl.balancers.engines.layers import Tap
from lightning_mtl.balancers.engines.mixed import MixedEngine
from lightning_mtl.balancers.engines.sequential import SequentialEngine

EngineName = Literal["auto", "sequential", "batched", "mixed"]

_VECTORIZABLE = (
    *("Add", "Addmm", "Bmm", "Cat", "Clone", "Div", "Elu", "Exp", "Expand", "Gelu", "LeakyRelu", "Mean", "Mm", "Mul"),
    *("NativeDropout", "NativeLayerNorm", "Neg", "Permute", "Pow", "Relu", "ReshapeAlias", "Select", "Sigmoid", "Silu"),
    *("Slice", "Softmax", "Softplus", "Squeeze", "Stack", "Sub", "Sum", "T", "Tanh", "ToCopy", "Transpose", "Unbind"),
    *("Unsqueeze", "UnsafeView", "View"),
)
"""Operations whose derivatives torch.vmap has a rule for."""

_VECTORIZABLE_NODES = {f"{name}Backward{number}" for name in _VECTORIZABLE for number in (0, 1, 2)} | {"AccumulateGrad"}

_SMALL_PASS = {"cpu": 1 << 25}
_SMALL_PASS_ELSEWHERE = 1 << 31
"""Multiplications of one pass of the trunk below which the calls cost more than the arithmetic."""


class Engines:
    """Keeps one engine of each kind, with its memory, and chooses among them.

    The choice follows from the graph, the number of tasks and the number of processes alone, so it is the same on all
    processes and after a resume.

    Args:
        name: The engine that the user wants.
        dtype: Type in which gradients are stored; None takes that of the parameters.
    """

    def __init__(self, name: EngineName, dtype: torch.dtype | None) -> None:
        self.name = name
        self.dtype = dtype
        self.sequential = SequentialEngine(dtype)
        self.batched = BatchedEngine(dtype)
        self.mixed = MixedEngine(False, dtype)
        self.mixed_batched = MixedEngine(True, dtype)
        self.report = "no step yet"
        """What was chosen in the last step, and why."""
        self._told: tuple[str, str, int] | None = None

    def gradients(self, graph: TaskGraph, scale: Tensor | None, matrix: bool) -> TaskGradients:
        """Differentiate the losses with the engine that suits.

        Args:
            graph: The losses with what belongs to whom.
            scale: Loss scale or None.
            matrix: Whether the rows themselves are needed.

        Raises:
            RuntimeError: If ``engine="batched"`` was asked for and some operation cannot be vectorized.
        """
        name, reason, taps = self._choose(graph, matrix)
        if (key := (name, reason, len(taps))) != self._told:
            self._told = key
            self.report = f"{name}: {reason.format(_extent(graph, taps))}"
        if name == "mixed":
            return self.mixed.gradients(graph, scale, taps)
        if name == "mixed, batched":
            return self.mixed_batched.gradients(graph, scale, taps)
        if name == "batched":
            return self.batched.gradients(graph, scale, matrix)
        return self.sequential.gradients(graph, scale)

    def _choose(self, graph: TaskGraph, matrix: bool) -> tuple[str, str, list[Tap]]:
        if self.name in ("sequential", "batched"):
            return self.name, "as asked for", []
        count = len(graph.losses)
        if count == 1:
            return "sequential", "a single task needs a single pass", []
        kinds = {type(node).__name__ for node in graph.trunk}
        if "CompiledFunctionBackward" in kinds:
            return "sequential", "the trunk is compiled, so its layers cannot be told apart", []
        together = kinds <= _VECTORIZABLE_NODES and graph.meets and _is_small(graph)
        if matrix or is_distributed():
            why = "the method needs all gradients" if matrix else "Gramians of averaged gradients need all gradients"
            return ("batched" if together else "sequential"), why, []
        taps = MixedEngine.choose(graph, count)
        if not taps:
            if together and self.name == "auto":
                return "batched", "small linear layers, none of them cheaper in the ghost form", []
            return "sequential", "no layer is cheaper in the ghost form", []
        return ("mixed, batched" if together else "mixed"), "{} are cheaper in the ghost form", taps


def _extent(graph: TaskGraph, taps: list[Tap]) -> str:
    covered = sum(target.numel() for tap in taps for target in tap.targets)
    return (
        f"{len(taps)} layers with {covered / sum(leaf.numel() for leaf in graph.shared):.0%} of the shared parameters"
    )


def _is_small(graph: TaskGraph) -> bool:
    """Return whether a pass of the trunk has linear maps, and so little work that its calls cost more."""
    work = 0.0
    for node in graph.trunk:
        kind = type(node).__name__
        if kind in ("AddmmBackward0", "MmBackward0"):
            rows, fan_in = node._saved_mat1_sym_sizes if kind == "AddmmBackward0" else node._saved_self_sym_sizes
            work += float(rows * fan_in * node._saved_mat2_sym_sizes[1])
    return 0 < work < _SMALL_PASS.get(graph.losses[0].device.type, _SMALL_PASS_ELSEWHERE)
