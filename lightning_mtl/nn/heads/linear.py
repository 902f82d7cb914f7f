"""Heads on one vector per sample."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_mtl.nn.heads.base import check_arguments
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


def fully_connected(head: str, in_features: int, hidden: Sequence[int], out: int, dropout: float) -> nn.Sequential:
    """Return linear layers with a ReLU between them and dropout before each.

    Args:
        head: Name of the calling class, for messages.
        in_features: Width of the input.
        hidden: Widths of the hidden layers.
        out: Width of the output.
        dropout: Probability of dropping a value before each linear layer.
    """
    widths = [in_features, *hidden, out]
    if min(widths) < 1:
        raise ValueError(f"{head}: every width in hidden must be positive, got {list(hidden)}.")
    if not 0 <= dropout < 1:
        raise ValueError(f"{head}: dropout must be in [0, 1), got {dropout}.")
    layers: list[nn.Module] = []
    for i, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        if i:
            layers.append(nn.ReLU())
        if dropout:
            layers.append(nn.Dropout(dropout))
        layers.append(nn.Linear(width_in, width_out))
    return nn.Sequential(*layers)


class LinearHead(nn.Module, Recorded):
    """Predict from a vector with one linear layer.

    Args:
        spec: The features to read, of kind ``"vector"``.
        out_channels: Number of outputs.
        dropout: Probability of dropping a feature before the layer, in [0, 1).

    Shape:
        - features: ``(B, D)``; returns ``(B, out_channels)``.

    Raises:
        ValueError: If the features are no vector; the message names the heads that fit.

    Example:
        >>> import torch
        >>> LinearHead(FeatureSpec("vector", (8,)), out_channels=3)(torch.zeros(2, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(self, spec: FeatureSpec, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_arguments(self, "vector", spec, out_channels)
        self.layers = fully_connected(type(self).__name__, spec.channels[0], (), out_channels, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of a batch."""
        logits: Tensor = self.layers(features)
        return logits


class MLPHead(nn.Module, Recorded):
    """Predict from a vector with hidden layers, each followed by a ReLU.

    Args:
        spec: The features to read, of kind ``"vector"``.
        out_channels: Number of outputs.
        hidden: Widths of the hidden layers.
        dropout: Probability of dropping a value before each linear layer, in [0, 1).

    Shape:
        - features: ``(B, D)``; returns ``(B, out_channels)``.

    Raises:
        ValueError: If the features are no vector; the message names the heads that fit.

    Example:
        >>> import torch
        >>> MLPHead(FeatureSpec("vector", (8,)), out_channels=3, hidden=[16])(torch.zeros(2, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self, spec: FeatureSpec, out_channels: int, hidden: Sequence[int] = (256,), dropout: float = 0.0
    ) -> None:
        super().__init__()
        check_arguments(self, "vector", spec, out_channels)
        self.layers = fully_connected(type(self).__name__, spec.channels[0], hidden, out_channels, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of a batch."""
        logits: Tensor = self.layers(features)
        return logits
