"""What the one-stage detection heads give."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class BoxPredictions(NamedTuple):
    """Raw predictions of a one-stage detector: one for each of N anchors, all pyramid levels in a row.

    Attributes:
        logits: Class logits ``(B, N, C)``.
        deltas: Codes of the boxes relative to the anchors ``(B, N, 4)``.
        centerness: Logits of the centre-ness ``(B, N, 1)``, None for heads without it.
        anchors: Anchors of each level ``(N_l, 4)`` in pixels, float32, from the finest level to the coarsest.
        size: Height and width of the batched image in pixels.
    """

    logits: Tensor
    deltas: Tensor
    centerness: Tensor | None
    anchors: tuple[Tensor, ...]
    size: tuple[int, int]
