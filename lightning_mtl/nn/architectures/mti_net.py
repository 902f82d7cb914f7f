"""MTI-Net: distillation between the tasks at every scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from lightning_mtl.nn.architectures.pad_net import (
    JoinedMaps,
    PredictionEncoder,
    SpatialDistillation,
    convolution,
    resized,
)
from lightning_mtl.nn.task_aware import SupervisedFeatures, parameters_of


class FeaturePropagation(nn.Module):
    r"""Refine the features of every task with those of all tasks, before the next finer scale reads them.

    The features of the tasks are harmonized to shared ones, weighed per task, channel and position by a softmax over
    the tasks, and every task adds what a squeeze and excitation of its own lets through:

    .. math::
        S = g\big([A_1 \odot F_1; \dots; A_K \odot F_K]\big), \qquad
        A = \operatorname{softmax}_K f([F_1; \dots; F_K]), \qquad
        F_i' = F_i + \sigma\big(\mathrm{MLP}_i(\mathrm{GAP}(S))\big) \odot S

    Args:
        tasks: Names of the K tasks.
        channels: Channels D of their maps.
        reduction: Factor by which the squeezed layer is narrower.

    Shape:
        - features: task -> ``(B, D, h, w)``; returns the same.
    """

    def __init__(self, tasks: Sequence[str], channels: int, reduction: int) -> None:
        super().__init__()
        joined, hidden = len(tasks) * channels, max(channels // reduction, 1)
        self.attention = nn.Sequential(convolution(joined, channels, 1), nn.Conv2d(channels, joined, 1))
        self.harmonize = convolution(joined, channels, 1)
        self.excitations = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.AdaptiveAvgPool2d(1),
                    nn.Conv2d(channels, hidden, 1),
                    nn.ReLU(),
                    nn.Conv2d(hidden, channels, 1),
                    nn.Sigmoid(),
                )
                for task in tasks
            }
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the refined maps."""
        maps = torch.stack(list(features.values()), dim=1)
        weights = self.attention(maps.flatten(1, 2)).unflatten(1, maps.shape[1:3]).softmax(dim=1)
        shared = self.harmonize((weights * maps).flatten(1, 2))
        return {task: feature + self.excitations[task](shared) * shared for task, feature in features.items()}


class MTINet(PredictionEncoder):
    r"""Predict and distil at every scale, from the coarsest to the finest (Vandenhende et al., ECCV 2020).

    At each scale every task has features on the encoder's map and, but for the coarsest scale, on what feature
    propagation hands down from the scale before; it makes an initial prediction from them, trained by the task's loss.
    The tasks send each other messages behind a spatial gate, scale by scale, as in :class:`PADNet`. The distilled maps
    of a task are joined at the finest scale, for its head to read.

    Args:
        encoder: Encoder with feature maps, from the finest to the coarsest.
        outputs: Task -> number of channels of its predictions, as the tasks want it: classes of a segmentation, 1 for
            depth, 3 for normals.
        channels: Channels D of the features of every task, at all scales.
        reduction: Factor by which the squeezed layer of the propagation is narrower than the features.
        deep_supervision: Factor of the losses on the initial predictions, not negative; they are summed over the
            scales.

    Shape:
        - inputs: those of ``encoder``; returns task -> :class:`~lightning_mtl.nn.SupervisedFeatures` with one map
          ``(B, D, H / s, W / s)``, s the finest stride, and an initial prediction ``(B, C_out, H / s_i, W / s_i)`` for
          every map of the encoder, the finest first.

    Raises:
        ValueError: If the features are no maps, or a number is out of range.

    Note:
        The distillation is that of the PAD-Net paper, with the gate on the task that reads. All scales have features
        of one width. The widths and the layers of the tasks are this package's choice, the decoders of the paper are
        the tasks' heads.

    Example:
        >>> from lightning_mtl.nn import TimmEncoder
        >>> encoder = MTINet(TimmEncoder("resnet10t", "maps", out_indices=(2, 3)), {"depth": 1, "normals": 3}, 16)
        >>> features = encoder(torch.zeros(2, 3, 64, 64))["normals"]
        >>> [tuple(m.shape) for m in features.maps], [tuple(p.shape) for p in features.initial]
        ([(2, 16, 8, 8)], [(2, 3, 8, 8), (2, 3, 4, 4)])

    References:
        Simon Vandenhende, Stamatios Georgoulis, Luc Van Gool. *MTI-Net: Multi-Scale Task Interaction Networks for
        Multi-Task Learning*. ECCV 2020. https://arxiv.org/abs/2001.06902
    """

    def __init__(
        self,
        encoder: nn.Module,
        outputs: dict[str, int],
        channels: int = 64,
        reduction: int = 4,
        deep_supervision: float = 1.0,
    ) -> None:
        super().__init__(encoder, outputs, channels, deep_supervision)
        if reduction < 1:
            raise ValueError(f"MTINet: reduction must be at least 1, got {reduction}.")
        widths = self.base_spec.channels
        handed_down = [channels] * (len(widths) - 1) + [0]
        self.branches = nn.ModuleList(
            nn.ModuleDict({task: convolution(width + more, channels, 3) for task in outputs})
            for width, more in zip(widths, handed_down, strict=True)
        )
        self.initial = nn.ModuleList(
            nn.ModuleDict({task: nn.Conv2d(channels, out, 1) for task, out in outputs.items()}) for _ in widths
        )
        self.propagations = nn.ModuleList(
            FeaturePropagation(self.task_names, channels, reduction) for _ in widths[1:]
        )  # the last one leads from the coarsest scale to the one before
        self.distillations = nn.ModuleList(SpatialDistillation(self.task_names, channels) for _ in widths)
        self.aggregations = nn.ModuleDict({task: JoinedMaps([channels] * len(widths), channels) for task in outputs})

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the encoder, of the features before distillation and of their propagation."""
        return parameters_of([self.encoder, self.branches, self.propagations])

    def forward(self, inputs: Tensor) -> dict[str, SupervisedFeatures]:  # type: ignore[override]  # maps and more
        """Return the aggregated features and the initial predictions of every task."""
        maps = self.encoder(inputs)
        initial: dict[str, list[Tensor]] = {task: [] for task in self.task_names}
        distilled: dict[str, list[Tensor]] = {task: [] for task in self.task_names}
        features: dict[str, Tensor] = {}
        for scale in reversed(range(len(maps))):
            feature = maps[scale]
            read = dict.fromkeys(self.task_names, feature)
            if features:
                for task, handed in self.propagations[scale](features).items():
                    read[task] = torch.cat([feature, resized(handed, feature.shape[-2:])], dim=1)
            branches = cast(nn.ModuleDict, self.branches[scale])
            features = {task: branches[task](read[task]) for task in self.task_names}
            for task, head in cast(nn.ModuleDict, self.initial[scale]).items():
                initial[task].insert(0, head(features[task]))
            for task, value in self.distillations[scale](features).items():
                distilled[task].insert(0, value)
        return {
            task: SupervisedFeatures([join(distilled[task])], initial[task], self.deep_supervision)
            for task, join in self.aggregations.items()
        }
