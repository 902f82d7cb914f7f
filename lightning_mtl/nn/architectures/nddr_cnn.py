"""NDDR-CNN: layer-wise feature fusion by discriminative dimensionality reduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lightning_mtl.nn.architectures.base import StagedEncoder, copies, share_of_others
from lightning_mtl.nn.task_aware import parameters_of


class NDDRLayer(nn.Module):
    """Reduce the joined channels of all tasks to those of one task: 1 x 1 convolution, batch normalization, ReLU.

    Args:
        num_tasks: Number of tasks K.
        task: Index of the task that reads the result.
        channels: Channels D of the map of one task.
        self_weight: Start of the weight of the task's own channel; the same channel of the others shares the rest.

    Shape:
        - joined: ``(B, K * D, H, W)``; returns ``(B, D, H, W)``.
    """

    def __init__(self, num_tasks: int, task: int, channels: int, self_weight: float) -> None:
        super().__init__()
        conv = nn.Conv2d(num_tasks * channels, channels, 1, bias=False)
        others = share_of_others("NDDRCNN", self_weight, num_tasks)
        blocks = [torch.eye(channels) * (self_weight if j == task else others) for j in range(num_tasks)]
        conv.weight.data.copy_(torch.cat(blocks, dim=1)[:, :, None, None])
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, joined: Tensor) -> Tensor:
        """Return the fused map of the task."""
        fused: Tensor = self.layers(joined)
        return fused


class NDDRCNN(StagedEncoder):
    r"""One network per task, whose maps are joined and reduced after every stage (Gao et al., CVPR 2019).

    After each stage the maps of all tasks are concatenated, and every task takes its own 1 x 1 convolution of them with
    batch normalization and ReLU, the *neural discriminative dimensionality reduction*.

    Args:
        encoder: Encoder that is copied for every task; it has ``stages()``. The copies start alike, from its weights.
        tasks: Names of the tasks.
        self_weight: Start of the weight of a task's own channels in (0, 1]; the paper's 0.9. The same channels of the
            others share the rest.

    Shape:
        - inputs: those of ``encoder``; returns task -> list of maps, shaped as those of ``encoder``.

    Raises:
        ValueError: If ``self_weight`` is out of range, or the encoder cannot be taken apart.

    Note:
        K networks cost K times the time and memory of one. The paper starts from single-task networks, trains the
        reductions with a learning rate 100 times that of the networks, and has shortcuts from the lower reductions to
        the last one as a variant (NDDR-CNN-Shortcut), which is not built: heads here read all maps anyway.

    References:
        Gao et al. *NDDR-CNN: Layerwise Feature Fusing in Multi-Task CNNs by Neural Discriminative Dimensionality
        Reduction*. CVPR 2019, Sec. 3. https://arxiv.org/abs/1801.08297
    """

    def __init__(self, encoder: nn.Module, tasks: Sequence[str], self_weight: float = 0.9) -> None:
        super().__init__(encoder, tasks)
        count = len(self.task_names)
        self.networks = nn.ModuleList(copies(part, count) for part in self.parts)
        self.fusions = nn.ModuleList(
            nn.ModuleList(NDDRLayer(count, i, channels, self_weight) for i in range(count))
            for channels in self.base_spec.channels
        )

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but those of the last reductions, which belong to single tasks."""
        return parameters_of([self.networks, *self.fusions[:-1]])

    def forward(self, inputs: Tensor) -> dict[str, list[Tensor]]:  # type: ignore[override]  # lists are features too
        """Return the fused maps of every task."""
        found: list[list[Tensor]] = []
        current = [inputs] * len(self.task_names)
        for stages, fusions in zip(self.networks, self.fusions, strict=True):
            read = [stage(x) for stage, x in zip(cast(nn.ModuleList, stages), current, strict=True)]
            joined = torch.cat(read, dim=1)
            current = [fusion(joined) for fusion in cast(nn.ModuleList, fusions)]
            found.append(current)
        return {task: [maps[i] for maps in found] for i, task in enumerate(self.task_names)}
