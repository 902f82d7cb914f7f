"""What the heads share: the check of the features, and the frame of the dense ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec

_FITTING = {
    "vector": "LinearHead, MLPHead, SimilarityHead, PooledHead, or IdentityHead where the channels are the outputs",
    "tokens": "PooledHead, FirstTokenHead, TokenHead, or IdentityHead where the channels are the outputs",
    "maps": "ConvHead, FPNHead, UNetHead, DeepLabV3PlusHead, or PooledHead for one prediction per image",
}


def check_arguments(head: nn.Module, kind: str, spec: FeatureSpec, out_channels: int) -> None:
    """Raise if a head that reads features of one kind was given others, and name the heads that fit these.

    Args:
        head: The head under construction, for messages.
        kind: The kind of features that it reads.
        spec: The features that it was given.
        out_channels: The number of channels that it was asked for.

    Raises:
        ValueError: If the kinds differ, or ``out_channels`` is not positive.
    """
    name = type(head).__name__
    if spec.kind != kind:
        raise ValueError(
            f"{name}: features must be of kind {kind!r}, got {spec.kind!r}; heads that fit: {_FITTING[spec.kind]}."
        )
    if out_channels < 1:
        raise ValueError(f"{name}: out_channels must be positive, got {out_channels}.")


class DenseHead(nn.Module, Recorded, ABC):
    """Base of the heads that turn feature maps into a map of logits.

    Subclasses implement ``decode`` and set ``stride``. The logits have the resolution of the finest map that the
    subclass reads; dense tasks resize them to the image. ``upsample=True`` does so here, for use without a task.

    Args:
        spec: The features to read.
        out_channels: Number of channels of the logits.
        upsample: Resize the logits by ``stride`` to the resolution of the input, bilinearly.

    Shape:
        - features: list of ``(B, D_i, H / s_i, W / s_i)``, finest first; returns ``(B, out_channels, H / s, W / s)``
          with ``s = stride``, or ``(B, out_channels, H, W)`` with ``upsample=True``.
    """

    stride: int
    """Stride of the logits that ``decode`` returns against the input."""

    def __init__(self, spec: FeatureSpec, out_channels: int, upsample: bool = False) -> None:
        super().__init__()
        check_arguments(self, "maps", spec, out_channels)
        self.upsample = upsample

    @abstractmethod
    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits at ``stride``."""

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits, at ``stride`` or at the resolution of the input."""
        logits = self.decode(features)
        if self.upsample and self.stride > 1:
            logits = F.interpolate(logits, scale_factor=float(self.stride), mode="bilinear", align_corners=False)
        return logits
