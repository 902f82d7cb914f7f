"""The two-layer convolutional network of digit images."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class LeNetEncoder(nn.Module, Recorded):
    """Encode small images with a few convolutions and one fully connected layer.

    Every convolution, without a border unless there is padding, is followed by 2 x 2 max pooling and a ReLU; the maps
    that remain are flattened into a fully connected layer with a ReLU. The defaults are the shared part of the network
    that multi-task papers train on pairs of digits.

    Args:
        in_chans: Number of channels of the images.
        image_size: Height and width of the images.
        channels: Number of channels of every convolution.
        kernel_size: Height and width of every kernel.
        width: Width of the features.
        padding: Zeros that every convolution adds at each border.

    Shape:
        - inputs: ``(B, in_chans, image_size, image_size)``; returns ``(B, width)``.

    Raises:
        ValueError: If a size is not positive, ``channels`` is empty, or the images are too small for the layers.

    Example:
        >>> import torch
        >>> encoder = LeNetEncoder()
        >>> encoder(torch.zeros(2, 1, 36, 36)).shape, encoder.feature_spec.channels
        (torch.Size([2, 50]), (50,))

    References:
        LeCun, Bottou, Bengio, Haffner. *Gradient-Based Learning Applied to Document Recognition*. Proceedings of the
        IEEE 86(11), 1998. https://doi.org/10.1109/5.726791.
        Sener, Koltun. *Multi-Task Learning as Multi-Objective Optimization*. NeurIPS 2018, Appendix.
        https://arxiv.org/abs/1810.04650.
    """

    def __init__(
        self,
        in_chans: int = 1,
        image_size: int = 36,
        channels: Sequence[int] = (10, 20),
        kernel_size: int = 5,
        width: int = 50,
        padding: int = 0,
    ) -> None:
        super().__init__()
        if not channels or min(in_chans, kernel_size, width, *channels) < 1:
            raise ValueError(
                "LeNetEncoder: in_chans, kernel_size, width and every number in channels must be positive, and "
                f"channels not empty, got in_chans={in_chans}, kernel_size={kernel_size}, width={width}, "
                f"channels={list(channels)}."
            )
        if padding < 0:
            raise ValueError(f"LeNetEncoder: padding must not be negative, got {padding}.")
        layers: list[nn.Module] = []
        side = image_size
        for width_in, width_out in itertools.pairwise([in_chans, *channels]):
            side = (side + 2 * padding - kernel_size + 1) // 2
            if side < 1:
                raise ValueError(
                    f"LeNetEncoder: image_size must leave at least one pixel after {len(channels)} convolutions of "
                    f"size {kernel_size} with pooling, got {image_size}; take larger images or fewer channels."
                )
            layers += [nn.Conv2d(width_in, width_out, kernel_size, padding=padding), nn.MaxPool2d(2), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels[-1] * side * side, width), nn.ReLU())
        self.feature_spec = FeatureSpec("vector", (width,))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features ``(B, width)`` of a batch."""
        features: Tensor = self.layers(inputs)
        return features
