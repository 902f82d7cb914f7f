"""A head with one prediction per sample for any kind of features."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_mtl.nn.heads.base import check_arguments
from lightning_mtl.nn.heads.linear import fully_connected
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class PooledHead(nn.Module, Recorded):
    """Average the features of a sample and predict from the mean.

    This is the head of a per-sample task (classification, regression) beside dense tasks: it averages the coarsest
    feature map over the image, or the tokens over the sequence. A vector is read as it is.

    Args:
        spec: The features to read, of any kind.
        out_channels: Number of outputs.
        hidden: Widths of hidden layers, each followed by a ReLU; none makes the head linear.
        dropout: Probability of dropping a value before each linear layer, in [0, 1).

    Shape:
        - features: list of ``(B, D_i, H_i, W_i)``, ``(B, L, D)`` or ``(B, D)``; returns ``(B, out_channels)``.

    Note:
        The mean over tokens counts every token; features of padded sequences must be pooled by their encoder.

    Example:
        >>> import torch
        >>> head = PooledHead(FeatureSpec("maps", (4, 8), (4, 8)), out_channels=3)
        >>> head([torch.zeros(2, 4, 16, 16), torch.zeros(2, 8, 8, 8)]).shape
        torch.Size([2, 3])
    """

    def __init__(self, spec: FeatureSpec, out_channels: int, hidden: Sequence[int] = (), dropout: float = 0.0) -> None:
        super().__init__()
        check_arguments(self, spec.kind, spec, out_channels)
        self.kind = spec.kind
        self.layers = fully_connected(type(self).__name__, spec.channels[-1], hidden, out_channels, dropout)

    def forward(self, features: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the logits of a batch."""
        pooled = features if isinstance(features, Tensor) else features[-1]
        if self.kind == "maps":
            pooled = pooled.mean(dim=(2, 3))
        elif self.kind == "tokens":
            pooled = pooled.mean(dim=1)
        logits: Tensor = self.layers(pooled)
        return logits
