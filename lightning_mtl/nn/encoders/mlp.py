"""A multilayer perceptron, the encoder of tabular data and of small studies."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class MLPEncoder(nn.Module, Recorded):
    """Encode vectors with fully connected layers, each followed by a ReLU.

    Args:
        in_features: Number of values of one sample. Samples of any shape with as many values are flattened.
        hidden: Width of every layer; the last one is the width of the features. At least one.
        dropout: Probability of dropping a feature after every layer, in [0, 1).

    Shape:
        - inputs: ``(B, ...)`` with ``in_features`` values per sample; returns ``(B, hidden[-1])``.

    Raises:
        ValueError: If a width is not positive, ``hidden`` is empty or ``dropout`` is out of range.

    Example:
        >>> import torch
        >>> encoder = MLPEncoder(in_features=784, hidden=[64, 32])
        >>> encoder(torch.zeros(2, 1, 28, 28)).shape, encoder.feature_spec.channels
        (torch.Size([2, 32]), (32,))
    """

    def __init__(self, in_features: int, hidden: Sequence[int], dropout: float = 0.0) -> None:
        super().__init__()
        widths = [in_features, *hidden]
        if len(widths) < 2 or min(widths) < 1:
            raise ValueError(
                "MLPEncoder: in_features and every width in hidden must be positive, and hidden not empty, got "
                f"in_features={in_features}, hidden={list(hidden)}."
            )
        if not 0 <= dropout < 1:
            raise ValueError(f"MLPEncoder: dropout must be in [0, 1), got {dropout}.")
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
        self.layers = nn.Sequential(*layers)
        self.feature_spec = FeatureSpec("vector", (widths[-1],))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features ``(B, hidden[-1])`` of a batch."""
        features: Tensor = self.layers(inputs)
        return features
