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


class ProposalPredictions(NamedTuple):
    """Raw predictions of the first stage of a two-stage detector.

    Attributes:
        levels: The feature pyramid that the second stage reads, from the finest level to the coarsest.
        objectness: Logits of there being an object at each of N anchors ``(B, N)``.
        deltas: Codes of the boxes relative to the anchors ``(B, N, 4)``.
        anchors: Anchors of each level ``(N_l, 4)`` in pixels, float32.
        proposals: Boxes of every image ``(n, 4)`` that the second stage is to judge, in pixels, without gradient.
        size: Height and width of the batched image in pixels.
    """

    levels: tuple[Tensor, ...]
    objectness: Tensor
    deltas: Tensor
    anchors: tuple[Tensor, ...]
    proposals: tuple[Tensor, ...]
    size: tuple[int, int]
