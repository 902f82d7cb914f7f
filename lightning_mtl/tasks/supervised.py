"""Tasks with one loss over labelled units: per sample and per pixel."""

from __future__ import annotations

import itertools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.losses.base import LabelledLoss
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.tasks.base import Task, nothing_to_draw


class SupervisedTask(Task):
    """A task whose loss is a :class:`~lightning_mtl.losses.LabelledLoss` of the raw prediction.

    Subclasses set ``criterion``. Label values are checked on every step on the CPU, and on the first steps on an
    accelerator, where reading them would make the host wait; see the loss.
    """

    criterion: LabelledLoss

    def loss(self, prediction: Any, target: Any) -> Tensor:
        """Return the mean loss over the labelled units, exactly zero without any.

        Raises:
            ValueError: If the shapes do not fit or a label is out of range.
        """
        loss: Tensor = self.criterion(prediction, target)
        return loss

    def num_labelled(self, target: Any) -> Tensor:
        """Return how many units ``loss`` averages over."""
        return self.criterion.labelled(target).sum()


class SampleTask(SupervisedTask):
    """A task with one prediction per sample.

    The default head is linear, on the vector of features or on the mean over the coarsest map or the tokens.
    """

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return a linear head."""
        from lightning_mtl.nn import LinearHead, PooledHead

        return LinearHead(spec, out_channels) if spec.kind == "vector" else PooledHead(spec, out_channels)

    def from_map(self, raw: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return the mean of a map over its positions."""
        return raw.mean(dim=(2, 3))

    def render(self, value: Any) -> Tensor:
        """Return no picture."""
        return nothing_to_draw()


class DenseTask(SupervisedTask):
    """A task with a prediction per pixel.

    The default head is a feature pyramid; for encoders whose last four strides do not double (dilated ones, plain
    vision transformers) it is a convolution on the coarsest map. The raw prediction is resized bilinearly to the input.
    """

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return a feature pyramid head where the strides allow it, otherwise a convolution."""
        from lightning_mtl.nn import ConvHead, FPNHead

        strides = spec.strides[-4:]
        pyramid = len(strides) == 4 and all(coarse == 2 * fine for fine, coarse in itertools.pairwise(strides))
        return FPNHead(spec, out_channels) if pyramid else ConvHead(spec, out_channels)

    def forward(self, features: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Return the raw prediction at the given size, or at that of the head.

        Args:
            features: What the encoder gave: a list of maps.
            size: Height and width of the input image.
        """
        return self.from_map(super().forward(features), size)

    def from_map(self, raw: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Return a map at the given size, resized bilinearly."""
        if size is not None and (raw.shape[-2], raw.shape[-1]) != tuple(size):
            raw = F.interpolate(raw, size=size, mode="bilinear", align_corners=False)
        return raw


def in_float32(prediction: Tensor) -> Tensor:
    """Return the prediction in float32, or in float64 if it is."""
    return prediction.to(torch.promote_types(prediction.dtype, torch.float32))
