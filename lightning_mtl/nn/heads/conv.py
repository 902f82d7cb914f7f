"""A convolution on one feature map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from lightning_mtl.nn.heads.base import DenseHead
from lightning_mtl.nn.spec import FeatureSpec


class ConvHead(DenseHead):
    """Predict a map with one or two convolutions on a single feature map.

    The lightest dense head, and the plainest one for vision transformers, whose maps all have one stride.

    Args:
        spec: The features to read, of kind ``"maps"``.
        out_channels: Number of channels of the logits.
        kernel_size: Size of the last convolution.
        hidden_channels: Width of a 3 x 3 convolution with a ReLU before it; None leaves it out.
        map_index: Which map to read; the default is the coarsest, so that every layer of the encoder is trained.
        upsample: Resize the logits by ``stride`` to the resolution of the input, bilinearly; dense tasks do so anyway.

    Shape:
        - features: list of ``(B, D_i, H / s_i, W / s_i)``, finest first; returns ``(B, out_channels, H / s, W / s)``
          with ``s`` the stride of the map that is read, or ``(B, out_channels, H, W)`` with ``upsample=True``.

    Raises:
        ValueError: If the features are no maps or there is no map ``map_index``.

    Note:
        With a finer map than the coarsest, the stages behind it get no gradient from this task.

    Example:
        >>> import torch
        >>> head = ConvHead(FeatureSpec("maps", (4, 8), (4, 8)), out_channels=3, upsample=True)
        >>> head([torch.zeros(2, 4, 16, 16), torch.zeros(2, 8, 8, 8)]).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        kernel_size: Literal[1, 3] = 1,
        hidden_channels: int | None = None,
        map_index: int = -1,
        upsample: bool = False,
    ) -> None:
        super().__init__(spec, out_channels, upsample)
        if kernel_size not in (1, 3):
            raise ValueError(f"ConvHead: kernel_size must be 1 or 3, got {kernel_size}.")
        if not -len(spec.channels) <= map_index < len(spec.channels):
            raise ValueError(
                f"ConvHead: map_index must be one of the encoder's {len(spec.channels)} maps, got {map_index}."
            )
        self.map_index = map_index
        self.stride = spec.strides[map_index]
        width = spec.channels[map_index]
        layers: list[nn.Module] = []
        if hidden_channels is not None:
            layers += [nn.Conv2d(width, hidden_channels, 3, padding=1), nn.ReLU()]
            width = hidden_channels
        self.layers = nn.Sequential(*layers, nn.Conv2d(width, out_channels, kernel_size, padding=kernel_size // 2))

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits at the stride of the map that is read."""
        logits: Tensor = self.layers(features[self.map_index])
        return logits
