"""Multi-task attention network."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn.architectures.base import StagedEncoder
from lightning_mtl.nn.task_aware import parameters_of


class AttentionMask(nn.Module):
    """Two 1 x 1 convolutions with batch normalization that end in a sigmoid: g and h of the paper.

    Args:
        in_channels: Channels of what is read.
        channels: Channels D of the mask.
        hidden: Channels between the two.

    Shape:
        - read: ``(B, in_channels, H, W)``; returns ``(B, D, H, W)`` in (0, 1).
    """

    def __init__(self, in_channels: int, channels: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.Sigmoid(),
        )

    def forward(self, read: Tensor) -> Tensor:
        """Return the mask."""
        mask: Tensor = self.layers(read)
        return mask


class MTAN(StagedEncoder):
    r"""One shared network, from which every task takes what it needs by attention (Liu et al., CVPR 2019).

    In stage j the attention of task i reads the shared map :math:`u^j` before the stage's last block and what it took
    from the stage before, and masks the stage's output :math:`p^j`:

    .. math::
        \hat a_i^j = a_i^j \odot p^j, \qquad
        a_i^j = h_i^j\big(g_i^j([u^j;\, f^j(\hat a_i^{j-1})])\big)

    g and h are 1 x 1 convolutions with batch normalization, followed by ReLU and sigmoid; f, shared by the tasks, is a
    3 x 3 convolution with batch normalization and ReLU, and max-pooling where the stage lowers the resolution.

    Args:
        encoder: Encoder with ``stages()``, for instance ``TimmEncoder("resnet50", "maps", out_indices=(1, 2, 3, 4))``.
        tasks: Names of the tasks.
        reduction: Factor by which the attention's hidden layer is narrower than the map.

    Shape:
        - inputs: those of ``encoder``; returns task -> list of masked maps, shaped as those of ``encoder``.

    Raises:
        ValueError: If ``reduction`` is not positive, or the encoder cannot be taken apart.

    Note:
        The last block is the last member of the stage, or of the sequence that ends the stage. In a stage that is a
        single block, u is its output. The paper's decoder has attention too; here the heads decode.

    References:
        Liu, Johns, Davison. *End-to-End Multi-Task Learning with Attention*. CVPR 2019, Sec. 3.2, Eq. 1 and 2.
        https://arxiv.org/abs/1803.10704
    """

    def __init__(self, encoder: nn.Module, tasks: Sequence[str], reduction: int = 4) -> None:
        super().__init__(encoder, tasks)
        if reduction < 1:
            raise ValueError(f"MTAN: reduction must be at least 1, got {reduction}.")
        split = [_split(part) for part in self.parts]
        self.trunk = nn.ModuleList(body for body, _ in split)
        self.last_blocks = nn.ModuleList(last for _, last in split)
        channels, strides = self.base_spec.channels, self.base_spec.strides
        # u has the channels of the stage's output: blocks of one sequence keep the number of channels
        self.masks = nn.ModuleList(
            nn.ModuleDict(
                {
                    task: AttentionMask(width if j == 0 else 2 * width, width, max(width // reduction, 1))
                    for task in self.task_names
                }
            )
            for j, width in enumerate(channels)
        )
        self.carry = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
            for before, width in itertools.pairwise(channels)
        )
        self.pooling = [after // before for before, after in itertools.pairwise(strides)]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the network and of f; the masks belong to their tasks."""
        return parameters_of([self.trunk, self.last_blocks, self.carry])

    def forward(self, inputs: Tensor) -> dict[str, list[Tensor]]:  # type: ignore[override]  # lists are features too
        """Return the masked maps of every task."""
        found: dict[str, list[Tensor]] = {task: [] for task in self.task_names}
        shared = inputs
        for j, (body, last) in enumerate(zip(self.trunk, self.last_blocks, strict=True)):
            before = body(shared)
            shared = last(before)
            for task, mask in cast(nn.ModuleDict, self.masks[j]).items():
                read = before
                if j > 0:
                    carried = self.carry[j - 1](found[task][-1])
                    if self.pooling[j - 1] > 1:
                        carried = F.max_pool2d(carried, self.pooling[j - 1], ceil_mode=True)
                    read = torch.cat([before, carried], dim=1)
                found[task].append(mask(read) * shared)
        return found


def _split(stage: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Split a stage before its last block."""
    if isinstance(stage, nn.Sequential) and len(stage) > 0:
        *body, last = stage
        if isinstance(last, nn.Sequential) and len(last) > 1:
            *inner, last = last
            return nn.Sequential(*body, *inner), last
    return stage, nn.Identity()
