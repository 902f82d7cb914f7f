"""Heads on a sequence of tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_mtl.nn.heads.base import check_arguments
from lightning_mtl.nn.heads.linear import fully_connected
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class FirstTokenHead(nn.Module, Recorded):
    """Predict from the first token of a sequence, the class token of BERT and its relatives.

    Args:
        spec: The features to read, of kind ``"tokens"``.
        out_channels: Number of outputs.
        hidden: Widths of hidden layers, each followed by a ReLU; none makes the head linear.
        dropout: Probability of dropping a value before each linear layer, in [0, 1).

    Shape:
        - features: ``(..., L, D)``; returns ``(..., out_channels)``.

    Raises:
        ValueError: If the features are no tokens; the message names the heads that fit.

    Example:
        >>> import torch
        >>> FirstTokenHead(FeatureSpec("tokens", (8,)), out_channels=3)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 3])
    """

    def __init__(self, spec: FeatureSpec, out_channels: int, hidden: Sequence[int] = (), dropout: float = 0.0) -> None:
        super().__init__()
        check_arguments(self, "tokens", spec, out_channels)
        self.layers = fully_connected(type(self).__name__, spec.channels[0], hidden, out_channels, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of a batch."""
        logits: Tensor = self.layers(features[..., 0, :])
        return logits


class TokenHead(nn.Module, Recorded):
    """Predict for every token with one linear layer.

    Args:
        spec: The features to read, of kind ``"tokens"``.
        out_channels: Number of outputs a token.
        dropout: Probability of dropping a feature before the layer, in [0, 1).

    Shape:
        - features: ``(..., L, D)``; returns ``(..., L, out_channels)``.

    Raises:
        ValueError: If the features are no tokens; the message names the heads that fit.

    Example:
        >>> import torch
        >>> TokenHead(FeatureSpec("tokens", (8,)), out_channels=3)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 3])
    """

    def __init__(self, spec: FeatureSpec, out_channels: int, dropout: float = 0.0) -> None:
        super().__init__()
        check_arguments(self, "tokens", spec, out_channels)
        self.layers = fully_connected(type(self).__name__, spec.channels[0], (), out_channels, dropout)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of every token."""
        logits: Tensor = self.layers(features)
        return logits


class IdentityHead(nn.Module, Recorded):
    """Give the features on as the prediction.

    For encoders whose features are already what a task scores: the logits of a language model, or the vectors of an
    encoder that is trained by retrieval.

    Args:
        spec: The features to read, vectors or tokens with ``out_channels`` channels.
        out_channels: Number of outputs.

    Shape:
        - features: ``(..., out_channels)``; returned as they are.

    Raises:
        ValueError: If the features are maps or have another number of channels.

    Example:
        >>> import torch
        >>> IdentityHead(FeatureSpec("tokens", (8,)), out_channels=8)(torch.zeros(2, 5, 8)).shape
        torch.Size([2, 5, 8])
    """

    def __init__(self, spec: FeatureSpec, out_channels: int) -> None:
        super().__init__()
        check_arguments(self, "tokens" if spec.kind == "maps" else spec.kind, spec, out_channels)
        if spec.channels[0] != out_channels:
            raise ValueError(
                f"IdentityHead: features must have out_channels={out_channels} channels, got {spec.channels[0]}; take "
                "a head with a layer of its own, or change the width of the encoder or of the task."
            )

    def forward(self, features: Tensor) -> Tensor:
        """Return the features."""
        return features
