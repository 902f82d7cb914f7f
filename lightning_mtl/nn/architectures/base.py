"""Encoders taken apart into stages."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import cast

from torch import Tensor, nn

from lightning_mtl.nn.task_aware import TaskAwareEncoder


class StagedEncoder(TaskAwareEncoder):
    """Base of the architectures that work between the stages of a convolutional encoder.

    Args:
        encoder: Encoder with feature maps that can be taken apart: it has ``stages()``, the modules that lead from the
            input to the first map, from there to the second, and so on. :class:`~lightning_mtl.nn.TimmEncoder` has it
            for the convolutional models of timm.
        tasks: Names of the tasks.

    Raises:
        ValueError: If the features are no maps, or the encoder cannot be taken apart.
    """

    def __init__(self, encoder: nn.Module, tasks: Sequence[str]) -> None:
        super().__init__(encoder, tasks)
        name = type(self).__name__
        if self.base_spec.kind != "maps":
            raise ValueError(
                f"{name}: the encoder must give feature maps, got {self.base_spec.kind!r}; for timm encoders take "
                "features='maps'."
            )
        stages = getattr(encoder, "stages", None)
        if not callable(stages):
            raise ValueError(
                f"{name}: {type(encoder).__name__} cannot be taken apart; take TimmEncoder with a convolutional model, "
                "or give the encoder a method stages() with one module per feature map."
            )
        self.parts = cast("list[nn.Module]", list(stages()))
        if len(self.parts) != len(self.base_spec.channels):
            raise ValueError(
                f"{name}: stages() must give one module for each of the {len(self.base_spec.channels)} maps, got "
                f"{len(self.parts)}."
            )
        self.feature_spec = dict.fromkeys(self.task_names, self.base_spec)


def copies(part: nn.Module, count: int) -> nn.ModuleList:
    """Return a stage and as many copies of it as make ``count``; all start alike."""
    return nn.ModuleList(part if i == 0 else copy.deepcopy(part) for i in range(count))


def share_of_others(owner: str, self_weight: float, num_tasks: int) -> float:
    """Return what each other task weighs at the start, where a task weighs ``self_weight`` itself.

    Raises:
        ValueError: If ``self_weight`` is not in (0, 1].
    """
    if not 0 < self_weight <= 1:
        raise ValueError(f"{owner}: self_weight must be in (0, 1], got {self_weight}.")
    return (1 - self_weight) / max(num_tasks - 1, 1)


def along_paths(
    inputs: Tensor, tasks: Sequence[str], paths: Sequence[Sequence[int]], node: Callable[[int, int], nn.Module]
) -> dict[str, list[Tensor]]:
    """Return the maps of every task along its path through a tree of stages; shared nodes are computed once.

    Args:
        inputs: What the first stage reads.
        tasks: Names of the tasks.
        paths: For every stage, the node that each task takes.
        node: Callable ``(stage, node) -> module``.
    """
    found: dict[str, list[Tensor]] = {task: [] for task in tasks}
    for number, stage in enumerate(paths):
        computed: dict[int, Tensor] = {}
        for task, taken in zip(tasks, stage, strict=True):
            if taken not in computed:
                computed[taken] = node(number, taken)(found[task][-1] if found[task] else inputs)
            found[task].append(computed[taken])
    return found
