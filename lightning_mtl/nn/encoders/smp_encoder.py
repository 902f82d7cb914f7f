"""Any encoder of segmentation_models_pytorch."""

from __future__ import annotations

import difflib
from typing import Literal

from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec


class SmpEncoder(nn.Module, Recorded):
    """Encode images as feature maps with an encoder of segmentation_models_pytorch.

    The stage at input resolution, which most of these encoders fill with the image itself, is left out, and so are
    stages without channels.

    Args:
        name: Name of the encoder: ``"resnet34"``, ``"mit_b0"``, ``"efficientnet-b0"``, or ``"tu-<timm model>"``.
        weights: Name of published weights, which are downloaded, for instance ``"imagenet"``; None starts from scratch.
        depth: Number of stages, 3 to 5; the coarsest map has stride ``2 ** depth``.
        in_channels: Number of channels of the input images.
        output_stride: Stride that the encoder must not exceed; later stages are dilated instead. 32 dilates nothing.

    Shape:
        - inputs: ``(B, in_channels, H, W)``, ``H`` and ``W`` multiples of the coarsest stride; returns a list of
          ``(B, D_i, H / s_i, W / s_i)``, finest first.

    Raises:
        ValueError: If the encoder or its weights are unknown; the message lists what is close.

    Example:
        >>> SmpEncoder("resnet18", depth=4).feature_spec
        FeatureSpec(kind='maps', channels=(64, 64, 128, 256), strides=(2, 4, 8, 16))

    References:
        Iakubovskii. *Segmentation Models Pytorch*. 2019. https://github.com/qubvel-org/segmentation_models.pytorch
    """

    def __init__(
        self,
        name: str,
        weights: str | None = None,
        depth: Literal[3, 4, 5] = 5,
        in_channels: int = 3,
        output_stride: Literal[8, 16, 32] = 32,
    ) -> None:
        super().__init__()
        from segmentation_models_pytorch.encoders import encoders, get_encoder

        if depth not in (3, 4, 5):
            raise ValueError(f"SmpEncoder: depth must be 3, 4 or 5, got {depth}.")
        if not name.startswith(("tu-", "timm-")) and name not in encoders:
            close = difflib.get_close_matches(name, encoders, n=3)
            hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "for a timm model write 'tu-<model>'."
            raise ValueError(
                f"SmpEncoder: name must be an encoder of segmentation_models_pytorch, got {name!r}; {hint}"
            )
        if weights is not None and name in encoders and weights not in encoders[name]["pretrained_settings"]:
            known = ", ".join(encoders[name]["pretrained_settings"])
            raise ValueError(f"SmpEncoder: weights of {name} must be one of {known} or None, got {weights!r}.")
        self.encoder: nn.Module = get_encoder(
            name, in_channels=in_channels, depth=depth, weights=weights, output_stride=output_stride
        )
        channels = [int(c) for c in self.encoder.out_channels]
        self._stages = tuple(i for i, c in enumerate(channels) if i > 0 and c > 0)
        self.feature_spec = FeatureSpec(
            "maps",
            tuple(channels[i] for i in self._stages),
            tuple(min(2**i, output_stride) for i in self._stages),
        )

    def forward(self, inputs: Tensor) -> list[Tensor]:
        """Return the feature maps of a batch of images, finest first."""
        stages = self.encoder(inputs)
        return [stages[i] for i in self._stages]
