"""PAD-Net: initial predictions of every task, and distillation between the tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.task_aware import SupervisedFeatures, TaskAwareEncoder, parameters_of


def convolution(in_channels: int, channels: int, kernel_size: int) -> nn.Sequential:
    """Return a convolution with batch normalization and ReLU that keeps the resolution."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


def resized(feature: Tensor, size: Sequence[int]) -> Tensor:
    """Return a map at this height and width, resized bilinearly."""
    if feature.shape[-2:] == tuple(size):
        return feature
    return F.interpolate(feature, size=tuple(size), mode="bilinear", align_corners=False)


class JoinedMaps(nn.Module):
    """Join maps of several resolutions at that of the first: 1 x 1 convolution of all of them together, BN, ReLU.

    Args:
        in_channels: Channels of every map.
        channels: Channels D of the result.

    Shape:
        - maps: list of ``(B, C_i, h_i, w_i)``; returns ``(B, D, h_0, w_0)``.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        # one convolution a map before resizing is the convolution of the joined maps, for less
        self.reductions = nn.ModuleList(nn.Conv2d(width, channels, 1, bias=False) for width in in_channels)
        self.output = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the joined map."""
        size = maps[0].shape[-2:]
        reduced = [resized(reduce(m), size) for reduce, m in zip(self.reductions, maps, strict=True)]
        joined: Tensor = self.output(torch.stack(reduced).sum(dim=0))
        return joined


class SpatialDistillation(nn.Module):
    r"""Messages from all tasks to every task behind a spatial gate of the task that reads them (module C of PAD-Net).

    .. math:: F_i^o = F_i + G_i \odot \sum_{j \ne i} W_{ij} * F_j, \qquad G_i = \sigma(W_i * F_i)

    Args:
        tasks: Names of the tasks.
        channels: Channels D of their maps.

    Shape:
        - features: task -> ``(B, D, h, w)``; returns the same.

    References:
        Dan Xu, Wanli Ouyang, Xiaogang Wang, Nicu Sebe. *PAD-Net: Multi-Tasks Guided Prediction-and-Distillation
        Network for Simultaneous Depth Estimation and Scene Parsing*. CVPR 2018. https://arxiv.org/abs/1805.04409
    """

    def __init__(self, tasks: Sequence[str], channels: int) -> None:
        super().__init__()
        several = len(tasks) > 1  # nobody writes to a single task
        self.gates = nn.ModuleDict({task: nn.Conv2d(channels, channels, 3, padding=1) for task in tasks if several})
        self.messages = nn.ModuleDict(
            {
                task: nn.ModuleDict(
                    {other: nn.Conv2d(channels, channels, 3, padding=1) for other in tasks if other != task}
                )
                for task in tasks
                if several
            }
        )

    def forward(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the maps with what the other tasks had to say."""
        distilled = dict(features)
        for task, gate in self.gates.items():
            messages = cast(nn.ModuleDict, self.messages[task])
            said = torch.stack([message(features[other]) for other, message in messages.items()]).sum(dim=0)
            distilled[task] = features[task] + gate(features[task]).sigmoid() * said
        return distilled


class PredictionEncoder(TaskAwareEncoder):
    """Base of the encoders around feature maps that predict on the way to the features of the tasks.

    Args:
        encoder: Encoder with feature maps, from the finest to the coarsest.
        outputs: Task -> number of channels of its predictions.
        channels: Channels of the features of every task.
        deep_supervision: Factor of the losses on the initial predictions.

    Raises:
        ValueError: If the features are no maps, or a number is out of range.
    """

    def __init__(self, encoder: nn.Module, outputs: Mapping[str, int], channels: int, deep_supervision: float) -> None:
        super().__init__(encoder, list(outputs))
        name = type(self).__name__
        if self.base_spec.kind != "maps":
            raise ValueError(
                f"{name}: the encoder must give feature maps, got {self.base_spec.kind!r}; for timm encoders take "
                "features='maps'."
            )
        if min(outputs.values()) < 1:
            raise ValueError(f"{name}: outputs must be the tasks' numbers of channels, got {dict(outputs)}.")
        if channels < 1:
            raise ValueError(f"{name}: channels must be at least 1, got {channels}.")
        if deep_supervision < 0:
            raise ValueError(f"{name}: deep_supervision must not be negative, got {deep_supervision}.")
        self.encoder = encoder
        self.deep_supervision = deep_supervision
        self.feature_spec = dict.fromkeys(outputs, FeatureSpec("maps", (channels,), self.base_spec.strides[:1]))


class PADNet(PredictionEncoder):
    r"""Predict all tasks first, then distil between them what leads to better predictions (Xu et al., CVPR 2018).

    The maps of the encoder are joined at the resolution of the finest. Every task has features :math:`F_i` on them
    from which it makes an initial prediction, trained by the task's loss, and the tasks send each other messages
    behind a spatial gate (module C of the paper):

    .. math:: F_i^o = F_i + G_i \odot \sum_{j \ne i} W_{ij} * F_j, \qquad G_i = \sigma(W_i * F_i)

    The head of the task reads :math:`F_i^o` and makes the final prediction.

    Args:
        encoder: Encoder with feature maps, from the finest to the coarsest.
        outputs: Task -> number of channels of its predictions, as the tasks want it: classes of a segmentation, 1 for
            depth, 3 for normals.
        channels: Channels D of the features of every task.
        deep_supervision: Factor of the losses on the initial predictions, not negative.

    Shape:
        - inputs: those of ``encoder``; returns task -> :class:`~lightning_mtl.nn.SupervisedFeatures` with one map
          ``(B, D, H / s, W / s)`` and one initial prediction ``(B, C_out, H / s, W / s)``, s the finest stride.

    Raises:
        ValueError: If the features are no maps, or a number is out of range.

    Note:
        Messages and gates read the features behind the initial predictions, not the predictions. All tasks are
        predicted twice; tasks that only help are tasks too. Joining the maps, the widths and the layers of the tasks
        are this package's choice, the decoders of the paper are the tasks' heads.

    Example:
        >>> from lightning_mtl.nn import TimmEncoder
        >>> encoder = PADNet(TimmEncoder("resnet10t", "maps", out_indices=(2, 3)), {"depth": 1, "normals": 3}, 16)
        >>> features = encoder(torch.zeros(2, 3, 64, 64))["normals"]
        >>> features.maps[0].shape, features.initial[0].shape
        (torch.Size([2, 16, 8, 8]), torch.Size([2, 3, 8, 8]))

    References:
        Dan Xu, Wanli Ouyang, Xiaogang Wang, Nicu Sebe. *PAD-Net: Multi-Tasks Guided Prediction-and-Distillation
        Network for Simultaneous Depth Estimation and Scene Parsing*. CVPR 2018. https://arxiv.org/abs/1805.04409
    """

    def __init__(
        self, encoder: nn.Module, outputs: dict[str, int], channels: int = 64, deep_supervision: float = 1.0
    ) -> None:
        super().__init__(encoder, outputs, channels, deep_supervision)
        self.join = JoinedMaps(self.base_spec.channels, channels)
        self.branches = nn.ModuleDict({task: convolution(channels, channels, 3) for task in outputs})
        self.initial = nn.ModuleDict({task: nn.Conv2d(channels, width, 1) for task, width in outputs.items()})
        self.distillation = SpatialDistillation(self.task_names, channels)

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but those of initial predictions, gates and messages, which belong to one task."""
        return parameters_of([self.encoder, self.join, self.branches])

    def forward(self, inputs: Tensor) -> dict[str, SupervisedFeatures]:  # type: ignore[override]  # maps and more
        """Return the distilled features and the initial prediction of every task."""
        joined = self.join(self.encoder(inputs))
        features = {task: branch(joined) for task, branch in self.branches.items()}
        initial = {task: [head(features[task])] for task, head in self.initial.items()}
        return {
            task: SupervisedFeatures([feature], initial[task], self.deep_supervision)
            for task, feature in self.distillation(features).items()
        }
