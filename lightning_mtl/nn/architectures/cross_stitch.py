"""Cross-stitch networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn

from lightning_mtl.nn.architectures.base import StagedEncoder, copies, share_of_others
from lightning_mtl.nn.task_aware import parameters_of


class CrossStitchUnit(nn.Module):
    """Mix the maps of all tasks linearly, the same at every position.

    Args:
        num_tasks: Number of tasks K.
        channels: Channels D of the maps; 1 mixes all channels alike.
        self_weight: Start of a task's weight on its own map; the others share the rest.

    Shape:
        - maps: ``(K, B, D, H, W)``; returns the same.
    """

    def __init__(self, num_tasks: int, channels: int, self_weight: float) -> None:
        super().__init__()
        others = share_of_others("CrossStitch", self_weight, num_tasks)
        weights = torch.full((num_tasks, num_tasks), others).fill_diagonal_(self_weight if num_tasks > 1 else 1.0)
        self.weights = nn.Parameter(weights[:, :, None].repeat(1, 1, channels))

    def forward(self, maps: Tensor) -> Tensor:
        """Return the mixed maps."""
        return torch.einsum("ijc,jbchw->ibchw", self.weights.expand(-1, -1, maps.shape[2]), maps)


class CrossStitch(StagedEncoder):
    r"""One network per task, with learned linear mixtures after every stage (Misra et al., CVPR 2016).

    After each stage the map of task i becomes :math:`\tilde x_i = \sum_j \alpha_{ij} x_j`, channel by channel, and the
    next stage of task i reads it.

    Args:
        encoder: Encoder that is copied for every task; it has ``stages()``. The copies start alike, from its weights.
        tasks: Names of the tasks.
        self_weight: Start of :math:`\alpha_{ii}` in (0, 1]; the other tasks share the rest alike.
        granularity: One :math:`\alpha` per ``"channel"``, or per ``"map"``.

    Shape:
        - inputs: those of ``encoder``; returns task -> list of maps, shaped as those of ``encoder``.

    Raises:
        ValueError: If ``self_weight`` is out of range, or the encoder cannot be taken apart.

    Note:
        K networks cost K times the time and memory of one. The paper trains the mixtures with a learning rate 100 to
        1000 times that of the networks, which start from single-task networks; here all start from ``encoder``.

    References:
        Misra et al. *Cross-stitch Networks for Multi-task Learning*. CVPR 2016, Eq. 1 and Sec. 5.
        https://arxiv.org/abs/1604.03539
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Sequence[str],
        self_weight: float = 0.9,
        granularity: Literal["channel", "map"] = "channel",
    ) -> None:
        super().__init__(encoder, tasks)
        if granularity not in ("channel", "map"):
            raise ValueError(f"CrossStitch: granularity must be 'channel' or 'map', got {granularity!r}.")
        count = len(self.task_names)
        self.networks = nn.ModuleList(copies(part, count) for part in self.parts)
        self.units = nn.ModuleList(
            CrossStitchUnit(count, channels if granularity == "channel" else 1, self_weight)
            for channels in self.base_spec.channels
        )

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but those of the last mixture, whose rows belong to single tasks."""
        return parameters_of([self.networks, *self.units[:-1]])

    def forward(self, inputs: Tensor) -> dict[str, list[Tensor]]:  # type: ignore[override]  # lists are features too
        """Return the mixed maps of every task."""
        found: list[Tensor] = []
        current = [inputs] * len(self.task_names)
        for stages, unit in zip(self.networks, self.units, strict=True):
            read = [stage(x) for stage, x in zip(cast(nn.ModuleList, stages), current, strict=True)]
            mixed = unit(torch.stack(read))
            current = list(mixed.unbind())
            found.append(mixed)
        return {task: [maps[i] for maps in found] for i, task in enumerate(self.task_names)}
