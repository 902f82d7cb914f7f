"""Gramians layer by layer, with weight gradients only where these are cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mtl.balancers.base import is_distributed
from lightning_mtl.balancers.engines.base import Engine, HeadPass, TaskGradients, seeds
from lightning_mtl.balancers.engines.graph import TaskGraph, as_input, differentiate, filled
from lightning_mtl.balancers.engines.layers import Tap, find_taps
from lightning_mtl.balancers.engines.store import FlatRows, FlatStore
from lightning_mtl.functional.gradients import combine_rows, tensor_hooks_off


class LayerwiseGradients(TaskGradients):
    """Gradients at the outputs of some layers, and rows for the parameters of the others."""

    def __init__(
        self,
        taps: list[Tap],
        outputs: list[Tensor],
        rows: FlatRows | None,
        targets: list[Tensor],
        heads: list[list[Tensor]],
    ) -> None:
        self.taps = taps
        self.outputs = outputs
        self.rows = rows
        self.targets = targets
        self.heads = heads

    def gramian_share(self) -> Tensor:
        """Return the Gramian, a sum over the layers."""
        parts = [tap.gramian(output) for tap, output in zip(self.taps, self.outputs, strict=True)]
        if self.rows is not None:
            parts.append(self.rows.gramian_share())
        return torch.stack(parts).sum(0)

    def combine(self, weights: Tensor) -> list[Tensor]:
        """Return the weighted sum: the gradients at the outputs are summed, then turned into weight gradients."""
        found: dict[int, Tensor] = {}
        if self.rows is not None:
            for leaf, gradient in zip(self.rows.like, self.rows.combine(weights), strict=True):
                found[id(leaf)] = gradient
        for tap, output in zip(self.taps, self.outputs, strict=True):
            total = combine_rows(weights, output.flatten(1)).view(output.shape[1:])
            for leaf, gradient in zip(tap.targets, tap.update(total), strict=True):
                found[id(leaf)] = gradient.to(leaf.dtype)
        return [found[id(target)] for target in self.targets]

    def drop(self, tasks: Sequence[int]) -> None:
        """Zero the gradients of these tasks."""
        for output in self.outputs:
            for task in tasks:
                output[task].zero_()
        if self.rows is not None:
            self.rows.drop(tasks)
        self._drop_heads(tasks)


class MixedEngine(Engine):
    r"""Exact Gramian and update without most weight gradients (*ghost* form).

    K passes compute gradients at layer outputs only. For a linear map with rows ``X`` the Gramian of its weight
    gradients is :math:`\sum (X X^\top) \odot (D_i D_j^\top)`, and its update is one weight gradient of
    :math:`\sum_k w_k D_k`. Where a layer has more rows (samples times positions) than that pays for, and for
    operations that are not linear maps, weight gradients are computed and kept as usual. The work is that of the
    trunk's forward pass times ``1 + K + 1`` rather than ``1 + 2K``.

    With several processes the Gramian of averaged gradients has terms between processes, which this form does not
    give: use the matrix there.

    Args:
        batched: Whether the K passes are vectorized; a loop otherwise.
        dtype: Type in which weight gradients are stored; None takes that of the parameters.
    """

    name: ClassVar[str] = "mixed"

    def __init__(self, batched: bool = False, dtype: torch.dtype | None = None) -> None:
        self.batched = batched
        self.store = FlatStore(dtype)

    @staticmethod
    def choose(graph: TaskGraph, tasks: int) -> list[Tap]:
        """Return the layers that are cheaper in the ghost form."""
        return [tap for tap in find_taps(graph) if tap.cost(tasks) < tap.plain_cost(tasks)]

    def gradients(self, graph: TaskGraph, scale: Tensor | None, taps: list[Tap] | None = None) -> TaskGradients:
        """Differentiate the losses at the layers' outputs and at the remaining parameters.

        Args:
            graph: The losses with what belongs to whom.
            scale: Loss scale or None.
            taps: Layers in the ghost form; None chooses by cost.
        """
        if is_distributed():
            raise RuntimeError("the mixed engine has no terms between processes; use another engine.")
        count = len(graph.losses)
        chosen = self.choose(graph, count) if taps is None else taps
        tapped = {id(target) for tap in chosen for target in tap.targets}
        rest = [leaf for leaf in graph.shared if id(leaf) not in tapped]
        rows = self.store.rows(count, rest) if rest else None
        inputs = [*(as_input((tap.node, 0)) for tap in chosen), *rest]
        if self.batched:
            passed = HeadPass(graph, scale)
            with tensor_hooks_off(graph.shared):
                found = differentiate([as_input(edge) for edge in passed.edges], inputs, passed.stacked(), batched=True)
            outputs = [_present(stack) for stack in found[: len(chosen)]]
            if rows is not None:
                for task in range(count):
                    rows.write(task, [None if stack is None else stack[task] for stack in found[len(chosen) :]])
            return LayerwiseGradients(chosen, outputs, rows, graph.shared, passed.heads)
        starts = seeds(graph, scale)
        kept: list[Tensor | None] = [None] * len(chosen)
        heads: list[list[Tensor]] = []
        with tensor_hooks_off([*graph.shared, *graph.own_leaves]):
            for task, (loss, leaves) in enumerate(zip(graph.losses, graph.heads, strict=True)):
                got: Sequence[Tensor | None] = [None] * len(inputs)
                if graph.roots[task] is not None:
                    got = differentiate([loss], [*inputs, *leaves], [starts[task]])
                for number, gradient in enumerate(got[: len(chosen)]):
                    if gradient is not None:
                        stack = kept[number]
                        if stack is None:
                            stack = kept[number] = gradient.new_zeros((count, *gradient.shape))
                        stack[task] = gradient
                if rows is not None:
                    rows.write(task, got[len(chosen) : len(inputs)])
                heads.append(filled(got[len(inputs) :], leaves))
        return LayerwiseGradients(chosen, [_present(stack) for stack in kept], rows, graph.shared, heads)


def _present(stack: Tensor | None) -> Tensor:
    if stack is None:  # every tap lies on a way from a loss
        raise RuntimeError("a layer of the trunk received no gradient.")
    return stack
