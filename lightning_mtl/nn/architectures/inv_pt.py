"""InvPT: attention over the positions of all tasks at growing resolution."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn.architectures.pad_net import PredictionEncoder, convolution, resized
from lightning_mtl.nn.experts.base import at_least_float32
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.task_aware import SupervisedFeatures, parameters_of


class CrossTaskAttention(nn.Module):
    r"""Let every position of every task attend to the positions of all tasks, with scores handed from stage to stage.

    .. math::
        A = \mathrm{fuse}\Big(\frac{Q K^\top}{\sqrt{D}},\ \mathrm{up}(A_\text{before})\Big), \qquad
        Y = \mathrm{up}\big(\mathrm{softmax}(A)\, V W\big)

    Q comes from maps of half the resolution (a 3 x 3 depthwise convolution of stride 2 with batch normalization for
    every task), K and V from maps averaged over ``pool`` x ``pool`` positions, so that all stages attend to equally
    many of them. The scores of the stage before, upsampled over the positions that ask, are mixed in by a 1 x 1
    convolution over the heads.

    Args:
        num_tasks: Number of tasks K.
        channels: Channels D of every task.
        num_heads: Number of heads; divides the channels.
        pool: Side of the windows over which keys and values are averaged.
        receives: Whether there are scores of a stage before.

    Shape:
        - maps: ``(B, K, D, h, w)``; message: scores of the stage before ``(B, heads, K, h', w', T)`` with T positions
          attended to; returns the maps, and the scores ``(B, heads, K, ceil(h / 2), ceil(w / 2), T)``.
    """

    def __init__(self, num_tasks: int, channels: int, num_heads: int, pool: int, receives: bool) -> None:
        super().__init__()
        width = num_tasks * channels
        self.num_heads = num_heads
        self.scale = channels**-0.5
        self.query = nn.Sequential(
            nn.Conv2d(width, width, 3, stride=2, padding=1, groups=width, bias=False), nn.BatchNorm2d(width)
        )
        self.pool = nn.AvgPool2d(pool, ceil_mode=True)
        self.queries = nn.Linear(channels, channels)
        self.keys = nn.Linear(channels, channels, bias=False)  # the softmax cancels a bias
        self.values = nn.Linear(channels, channels)
        self.output = nn.Linear(channels, channels)
        self.fuse = nn.Conv2d(2 * num_heads, num_heads, 1, bias=False) if receives else None

    def forward(self, maps: Tensor, message: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return what the positions read, and the scores."""
        tasks = maps.shape[1:3]
        joint = maps.flatten(1, 2)
        asking = torch.unflatten(self.query(joint), 1, tasks)
        read = torch.unflatten(self.pool(joint), 1, tasks)
        grid = asking.shape[-2:]
        queries, values = self.heads(self.queries(tokens(asking))), self.heads(self.values(tokens(read)))
        scores = self.scale * queries @ self.heads(self.keys(tokens(read))).transpose(2, 3)
        if self.fuse is not None and message is not None:
            scores = self.fuse(torch.cat([scores, upsampled_scores(message, grid).flatten(2, 4)], dim=1))
        weights = at_least_float32(scores).softmax(dim=-1).to(values.dtype)
        found = self.output((weights @ values).transpose(1, 2).flatten(2))
        found = torch.unflatten(found.transpose(1, 2), 2, (tasks[0], *grid)).transpose(1, 2)
        return resized_tasks(found, maps.shape[-2:]), torch.unflatten(scores, 2, (tasks[0], *grid))

    def heads(self, found: Tensor) -> Tensor:
        """Return ``(B, L, D)`` as ``(B, heads, L, D / heads)``."""
        return torch.unflatten(found, 2, (self.num_heads, -1)).transpose(1, 2)


def tokens(maps: Tensor) -> Tensor:
    """Return the positions of the maps of all tasks, ``(B, K, D, h, w)`` as ``(B, K h w, D)``."""
    return maps.flatten(3).transpose(2, 3).flatten(1, 2)


def resized_tasks(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps ``(B, K, D, h, w)`` of all tasks at this height and width, resized bilinearly."""
    return torch.unflatten(resized(maps.flatten(1, 2), size), 1, maps.shape[1:3])


def upsampled_scores(scores: Tensor, size: Sequence[int]) -> Tensor:
    """Return scores ``(B, heads, K, h, w, T)`` for queries on a grid of this height and width."""
    parts = scores.shape[:3]
    larger = resized(scores.flatten(0, 2).movedim(-1, 1), size)
    return torch.unflatten(larger.movedim(1, -1), 0, parts)


class UpTransformerStage(nn.Module):
    """One stage of :class:`InvPT`: upsample the maps of every task, add the encoder's, attend across the tasks.

    Args:
        num_tasks: Number of tasks K.
        in_channels: Channels of every task before the stage.
        channels: Channels D of every task.
        num_heads: Number of heads of the attention.
        mlp_ratio: Width of the hidden layer behind the attention, in channels.
        number: Number s of the stage; the first one, 0, neither upsamples nor receives scores.

    Shape:
        - maps: ``(B, K, C, h, w)``; encoded: ``(B, D, 2 h, 2 w)`` or None; message: scores of the stage before or
          None; returns the maps ``(B, K, D, 2 h, 2 w)`` (the first stage: ``h, w``) and the scores.
    """

    def __init__(
        self, num_tasks: int, in_channels: int, channels: int, num_heads: int, mlp_ratio: float, number: int
    ) -> None:
        super().__init__()
        self.up = None
        if number > 0:
            before, after = num_tasks * in_channels, num_tasks * channels
            self.up = nn.Sequential(
                dilated_convolution(before, after, num_tasks), dilated_convolution(after, after, num_tasks)
            )
        self.attention_norm = nn.LayerNorm(channels)
        self.attention = CrossTaskAttention(num_tasks, channels, num_heads, 2 ** (number + 1), number > 0)
        hidden = round(mlp_ratio * channels)
        self.mlp = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, hidden), nn.GELU(), nn.Linear(hidden, channels)
        )
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, maps: Tensor, encoded: Tensor | None, message: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the maps of all tasks and the scores of the attention."""
        if self.up is not None:
            height, width = maps.shape[-2:]
            larger = resized(maps.flatten(1, 2), (2 * height, 2 * width))
            maps = torch.unflatten(self.up(larger), 1, (maps.shape[1], -1))
        if encoded is not None:
            maps = maps + encoded[:, None]
        normed = self.attention_norm(maps.movedim(2, -1)).movedim(-1, 2)
        found, scores = self.attention(normed, message)
        maps = maps + found
        return maps + self.mlp(maps.movedim(2, -1)).movedim(-1, 2), scores


def dilated_convolution(in_channels: int, channels: int, groups: int) -> nn.Sequential:
    """Return a 3 x 3 convolution of dilation 2 for every group of channels, with batch normalization and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, channels, 3, padding=2, dilation=2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class InvPT(PredictionEncoder):
    r"""Attend across all tasks and positions while the resolution grows (Ye, Xu, ECCV 2022).

    Every task decodes the encoder's coarsest map and makes an initial prediction, trained by the task's loss. Features
    and predictions are mixed into the task's tokens, and an inverted pyramid of stages follows. Each but the first
    doubles the resolution of every task's map and halves its channels (two convolutions of dilation 2 behind a bilinear
    upsampling), adds a finer or shallower map of the encoder, and each lets all positions of all tasks attend to each
    other, on fewer positions than there are and with the scores of the stage before mixed in:

    .. math::
        A^s = \mathrm{fuse}\Big(\frac{Q^s K^{s\top}}{\sqrt{D_s}},\ \mathrm{up}(A^{s-1})\Big), \qquad
        Y^s = X^s + \mathrm{up}\big(\mathrm{softmax}(A^s)\, V^s W^s\big), \qquad
        X^s_\text{out} = Y^s + \mathrm{MLP}(Y^s)

    The normalized maps of all stages are summed at twice the last resolution; the head of the task reads the sum behind
    a convolution.

    Args:
        encoder: Encoder with feature maps: a plain vision transformer, whose maps have one size, or any hierarchical
            one, from the finest to the coarsest map.
        outputs: Task -> number of channels of its predictions, as the tasks want it: classes of a segmentation, 1 for
            depth, 3 for normals.
        channels: Channels D of the tokens of every task in the first stage, and of its features. The authors use 576.
        preliminary_channels: Channels of the features that the initial predictions read; None takes ``channels``. The
            authors use 512.
        num_stages: Number S of stages.
        num_heads: Heads of the attention; they divide the channels ``D / 2**s`` of every stage.
        mlp_ratio: Width of the layers behind the attention, in channels.
        downsample: Factor by which the coarsest map is reduced before anything else. The authors use 2 with a vision
            transformer of stride 16; 1 suits encoders that already come to stride 32.
        deep_supervision: Factor of the losses on the initial predictions, not negative.

    Shape:
        - inputs: those of ``encoder``; returns task -> :class:`~lightning_mtl.nn.SupervisedFeatures` with one map
          ``(B, D, h, w)`` and one initial prediction ``(B, C_out, H / s', W / s')``, where s' is the coarsest stride
          times ``downsample``, and ``h = 2**S * H / s'``.

    Raises:
        ValueError: If the features are no maps, there are more stages than the strides allow, or a number is out of
            range.

    Note:
        Layers and their order follow the authors' code for a vision transformer, of which no line was taken. As there,
        the first stage adds no map of the encoder and the last map is added nowhere. Which map a stage adds with a
        hierarchical encoder is this package's choice: the one of the nearest stride, resized where it differs; of maps
        of one stride the later stages add the shallower ones, as in the authors' code. Biases that the softmax cancels
        are left out, and so is the authors' stochastic depth, which their settings turn off in stages of one block.
        Batch normalization is that of one process; the authors synchronize it (``sync_batchnorm`` of the trainer).

    Example:
        >>> from lightning_mtl.nn import TimmEncoder
        >>> encoder = TimmEncoder("vit_tiny_patch16_224", "maps", img_size=64, out_indices=(2, 5, 8, 11))
        >>> features = InvPT(encoder, {"depth": 1, "normals": 3}, channels=16)(torch.zeros(2, 3, 64, 64))["normals"]
        >>> features.maps[0].shape, features.initial[0].shape
        (torch.Size([2, 16, 16, 16]), torch.Size([2, 3, 2, 2]))

    References:
        Hanrong Ye, Dan Xu. *Inverted Pyramid Multi-task Transformer for Dense Scene Understanding*. ECCV 2022.
        https://arxiv.org/abs/2203.07997. Authors' code: https://github.com/prismformore/Multi-Task-Transformer, MIT
        as a whole, CC BY-NC 4.0 in the headers of the files.
    """

    def __init__(
        self,
        encoder: nn.Module,
        outputs: dict[str, int],
        channels: int = 64,
        preliminary_channels: int | None = None,
        num_stages: int = 3,
        num_heads: int = 2,
        mlp_ratio: float = 4.0,
        downsample: int = 2,
        deep_supervision: float = 1.0,
    ) -> None:
        super().__init__(encoder, outputs, channels, deep_supervision)
        hidden = channels if preliminary_channels is None else preliminary_channels
        for argument, value in (
            ("preliminary_channels", hidden),
            ("num_stages", num_stages),
            ("num_heads", num_heads),
            ("downsample", downsample),
        ):
            if value < 1:
                raise ValueError(f"InvPT: {argument} must be at least 1, got {value}.")
        if mlp_ratio <= 0:
            raise ValueError(f"InvPT: mlp_ratio must be positive, got {mlp_ratio}.")
        if channels % (num_heads * 2 ** (num_stages - 1)):
            raise ValueError(
                f"InvPT: channels must be a multiple of num_heads * 2**(num_stages - 1) = "
                f"{num_heads * 2 ** (num_stages - 1)}, got {channels}; every stage halves them."
            )
        start = self.base_spec.strides[-1] * downsample
        if start % 2**num_stages:
            raise ValueError(
                f"InvPT: the stride of the coarsest map times downsample must be a multiple of 2**num_stages = "
                f"{2**num_stages}, got {start}; take fewer stages or a larger downsample."
            )
        self.downsample = downsample
        last = self.base_spec.channels[-1]
        self.preliminary = nn.ModuleDict(
            {task: nn.Sequential(convolution(last, last, 3), convolution(last, hidden, 3)) for task in outputs}
        )
        self.initial = nn.ModuleDict({task: nn.Conv2d(hidden, width, 1) for task, width in outputs.items()})
        self.mix = nn.ModuleDict({task: nn.Conv2d(hidden + out, channels, 1) for task, out in outputs.items()})

        num_tasks = len(outputs)
        widths = [channels // 2**number for number in range(num_stages)]
        self.stages = nn.ModuleList(
            UpTransformerStage(num_tasks, before, width, num_heads, mlp_ratio, number)
            for number, (before, width) in enumerate(zip([channels, *widths], widths, strict=False))
        )
        self.added = [nearest_map(self.base_spec.strides, start, number, num_stages) for number in range(1, num_stages)]
        self.aggregations = nn.ModuleList(
            projection(self.base_spec.channels[index], width, self.base_spec.strides[index] * 2**number == 2 * start)
            for number, (index, width) in enumerate(zip(self.added, widths[1:], strict=True), 1)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(num_tasks * width) for width in widths)
        self.reductions = nn.ModuleDict(
            {task: nn.ModuleList(nn.Conv2d(width, channels, 1) for width in widths[1:]) for task in outputs}
        )
        self.fusions = nn.ModuleDict({task: output_convolution(channels) for task in outputs})
        self.feature_spec = dict.fromkeys(outputs, FeatureSpec("maps", (channels,), (start // 2**num_stages,)))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return all parameters but those behind the stages: every task reads the tokens of all."""
        before = [self.encoder, self.preliminary, self.initial, self.mix]
        return parameters_of([*before, self.stages, self.aggregations, self.norms])

    def forward(self, inputs: Tensor) -> dict[str, SupervisedFeatures]:  # type: ignore[override]  # maps and more
        """Return the features of every task behind the stages, and its initial prediction."""
        encoded = self.encoder(inputs)
        height, width = (max(side // self.downsample, 1) for side in encoded[-1].shape[-2:])
        coarsest = resized(encoded[-1], (height, width))
        features = {task: decoder(coarsest) for task, decoder in self.preliminary.items()}
        initial = {task: head(features[task]) for task, head in self.initial.items()}
        mixed = [mix(torch.cat([features[task], initial[task]], dim=1)) for task, mix in self.mix.items()]

        maps, message = torch.stack(mixed, dim=1), None
        size = (height * 2 ** len(self.stages), width * 2 ** len(self.stages))
        scales: dict[str, list[Tensor]] = {task: [] for task in self.task_names}
        for number, (stage, norm) in enumerate(zip(self.stages, self.norms, strict=True)):
            added = None
            if number > 0:
                added = self.aggregations[number - 1](encoded[self.added[number - 1]])
                added = resized(added, (height * 2**number, width * 2**number))
            maps, message = stage(maps, added, message)
            normed = torch.unflatten(norm(maps.flatten(1, 2).movedim(1, -1)).movedim(-1, 1), 1, maps.shape[1:3])
            for task, own in zip(self.task_names, normed.unbind(1), strict=True):
                reduced = own if number == 0 else cast(nn.ModuleList, self.reductions[task])[number - 1](own)
                scales[task].append(F.interpolate(reduced, size=size, mode="bilinear", align_corners=False))
        return {
            task: SupervisedFeatures(
                [fusion(torch.stack(scales[task]).sum(dim=0))], [initial[task]], self.deep_supervision
            )
            for task, fusion in self.fusions.items()
        }


def nearest_map(strides: Sequence[int], start: int, number: int, num_stages: int) -> int:
    """Return which map of the encoder a stage adds.

    Args:
        strides: Strides of the maps, from the finest to the coarsest.
        start: Stride of the first stage.
        number: Number s of the stage, from 1 on.
        num_stages: Number of stages.
    """
    candidates = range(max(len(strides) - 1, 1))  # the last one is what the tasks decode
    gaps = [abs(math.log2(strides[i] * 2**number / start)) for i in candidates]
    nearest = [i for i in candidates if gaps[i] == min(gaps)]
    return nearest[min(num_stages - 1 - number, len(nearest) - 1)]


def projection(in_channels: int, channels: int, doubles: bool) -> nn.Module:
    """Return the convolution through which a map of the encoder is added; it may double the resolution."""
    if doubles:
        return nn.ConvTranspose2d(in_channels, channels, 3, stride=2, padding=1, output_padding=1)
    return nn.Conv2d(in_channels, channels, 3, padding=1)


def output_convolution(channels: int) -> nn.Sequential:
    """Return the convolution between the sum over the stages and the head of a task."""
    convolve = nn.Conv2d(channels, channels, 3, padding=1)
    nn.init.trunc_normal_(convolve.weight, std=0.02)
    return nn.Sequential(convolve, nn.BatchNorm2d(channels), nn.ReLU())
