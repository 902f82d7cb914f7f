"""A tree of stages: tasks share the stages below the point where they part."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from lightning_mtl.nn.architectures.base import StagedEncoder, along_paths
from lightning_mtl.nn.task_aware import parameters_of


class TaskTree(StagedEncoder):
    """Share each stage among groups of tasks, as a tree says.

    Args:
        encoder: Encoder whose stages are copied for the branches; it has ``stages()``. Copies start alike.
        tasks: Names of the tasks.
        tree: For every stage, the branch that each task takes, in the order of ``tasks``: tasks with the same number
            share the stage. Tasks that have parted stay apart. ``[[0, 0, 0], [0, 0, 1], [0, 1, 2]]`` shares the first
            stage among three tasks, the second between the first two, and the third not at all.
            :meth:`LearningToBranch.tree` finds one.

    Shape:
        - inputs: those of ``encoder``; returns task -> list of maps, shaped as those of ``encoder``.

    Raises:
        ValueError: If ``tree`` has another form than stages and tasks, or joins tasks that have parted.

    Example:
        >>> import torch
        >>> from lightning_mtl.nn import TimmEncoder
        >>> trunk = TimmEncoder("resnet10t", "maps", out_indices=(1, 2))
        >>> encoder = TaskTree(trunk, ["depth", "normals"], tree=[[0, 0], [0, 1]])
        >>> features = encoder.eval()(torch.zeros(1, 3, 32, 32))
        >>> features["depth"][0] is features["normals"][0]
        True

    References:
        Guo, Lee, Ulbricht. *Learning to Branch for Multi-Task Learning*. ICML 2020. https://arxiv.org/abs/2006.01895
    """

    def __init__(self, encoder: nn.Module, tasks: Sequence[str], tree: Sequence[Sequence[int]]) -> None:
        super().__init__(encoder, tasks)
        self.branches = [list(stage) for stage in tree]
        self._check()
        self.stages = nn.ModuleList(
            nn.ModuleDict(
                {str(branch): part if i == 0 else copy.deepcopy(part) for i, branch in enumerate(dict.fromkeys(stage))}
            )
            for part, stage in zip(self.parts, self.branches, strict=True)
        )

    def _check(self) -> None:
        count = len(self.task_names)
        if len(self.branches) != len(self.parts) or any(len(stage) != count for stage in self.branches):
            raise ValueError(
                f"TaskTree: tree must have {len(self.parts)} stages with one number for each of the {count} tasks, got "
                f"{self.branches}."
            )
        for j in range(1, len(self.branches)):
            parents: dict[int, int] = {}
            for task, before, branch in zip(self.task_names, self.branches[j - 1], self.branches[j], strict=True):
                if parents.setdefault(branch, before) != before:
                    raise ValueError(
                        f"TaskTree: tasks that have parted must stay apart, but {task!r} joins branch {branch} of "
                        f"stage {j} from branch {before}, others from {parents[branch]}."
                    )

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the stages that more than one task takes."""
        return parameters_of(
            cast(nn.ModuleDict, modules)[str(branch)]
            for modules, stage in zip(self.stages, self.branches, strict=True)
            for branch in dict.fromkeys(stage)
            if stage.count(branch) > 1
        )

    def forward(self, inputs: Tensor) -> dict[str, list[Tensor]]:  # type: ignore[override]  # lists are features too
        """Return the maps along the path of every task."""
        return along_paths(
            inputs,
            self.task_names,
            self.branches,
            lambda stage, branch: cast(nn.ModuleDict, self.stages[stage])[str(branch)],
        )
