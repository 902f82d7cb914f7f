"""What an encoder says about its features, so that heads can be built to fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class FeatureSpec:
    """Shape of the features that an encoder gives to one task.

    Args:
        kind: ``"vector"`` for pooled features ``(B, D)``, ``"maps"`` for a list of feature maps
            ``(B, D_i, H/s_i, W/s_i)`` from the finest to the coarsest, ``"tokens"`` for a sequence ``(B, L, D)``.
        channels: Number of channels ``D_i`` of every map; one number for vectors and tokens.
        strides: Stride ``s_i`` of every map against the input; empty for vectors and tokens.
    """

    kind: Literal["vector", "maps", "tokens"]
    channels: tuple[int, ...]
    strides: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        wanted = len(self.channels) if self.kind == "maps" else 0
        if len(self.strides) != wanted or not self.channels or (self.kind != "maps" and len(self.channels) != 1):
            raise ValueError(
                "FeatureSpec: 'maps' needs one stride for every number of channels, other kinds exactly one number of "
                f"channels and no stride, got kind={self.kind!r}, channels={self.channels}, strides={self.strides}."
            )
