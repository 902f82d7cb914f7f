"""The decoder of DeepLabV3+."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_mtl.nn.heads.base import DenseHead
from lightning_mtl.nn.spec import FeatureSpec


class DeepLabV3PlusHead(DenseHead):
    """Predict a map with atrous spatial pyramid pooling and one skip connection (Chen et al., ECCV 2018).

    The decoder is that of segmentation_models_pytorch. It reads the coarsest map, of stride 8 or 16, and the last map
    of stride 4; ask the encoder for ``output_stride=16`` (or 8), as its own coarsest stride is usually 32.

    Args:
        spec: The features to read, of kind ``"maps"``, with a map of stride 4 and the coarsest of stride 8 or 16.
        out_channels: Number of channels of the logits.
        decoder_channels: Width of the decoder (the paper: 256).
        atrous_rates: The three dilation rates (the paper: 6, 12, 18 at stride 16, twice that at stride 8). None takes
            the paper's for the stride at hand.
        dropout: Probability of dropping a value behind the pyramid, in [0, 1).
        upsample: Resize the logits by ``stride`` to the resolution of the input, bilinearly; dense tasks do so anyway.

    Shape:
        - features: list of ``(B, D_i, H / s_i, W / s_i)``, finest first, ``H`` and ``W`` multiples of the coarsest
          stride; returns ``(B, out_channels, H / 4, W / 4)``, or ``(B, out_channels, H, W)`` with ``upsample=True``.

    Raises:
        ValueError: If the features are no maps, their strides do not fit, or a batch of one is trained.

    Note:
        The image pooling branch normalises one value per channel over the batch, so training needs two images per
        process at least.

    References:
        Chen, Zhu, Papandreou, Schroff, Adam. *Encoder-Decoder with Atrous Separable Convolution for Semantic Image
        Segmentation*. ECCV, 2018. https://arxiv.org/abs/1802.02611
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        decoder_channels: int = 128,
        atrous_rates: Sequence[int] | None = None,
        dropout: float = 0.0,
        upsample: bool = False,
    ) -> None:
        super().__init__(spec, out_channels, upsample)
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import DeepLabV3PlusDecoder

        output_stride = spec.strides[-1]
        if 4 not in spec.strides or output_stride not in (8, 16):
            raise ValueError(
                "DeepLabV3PlusHead: strides must contain 4 and end with 8 or 16, got "
                f"{spec.strides}; build the encoder with output_stride=16, or use FPNHead or UNetHead."
            )
        rates = tuple(r * 16 // output_stride for r in (6, 12, 18)) if atrous_rates is None else tuple(atrous_rates)
        if len(rates) != 3 or min(rates) < 1:
            raise ValueError(f"DeepLabV3PlusHead: atrous_rates must be three positive rates, got {rates}.")
        self.stride = 4
        self.output_stride = output_stride
        self.skip_index = max(i for i, stride in enumerate(spec.strides) if stride == 4)
        # The decoder reads the entries 2 and -1 only.
        self.decoder = DeepLabV3PlusDecoder(
            encoder_channels=(0, 0, spec.channels[self.skip_index], spec.channels[-1]),
            encoder_depth=5,
            out_channels=decoder_channels,
            atrous_rates=rates,
            output_stride=output_stride,
            aspp_separable=True,
            aspp_dropout=dropout,
        )
        self.output = nn.Conv2d(decoder_channels, out_channels, kernel_size=1)
        initialize_decoder(self.decoder)
        initialize_head(self.output)

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits at stride 4."""
        skip, coarse = features[self.skip_index], features[-1]
        ratio = self.output_stride // 4
        if (skip.shape[-2], skip.shape[-1]) != (ratio * coarse.shape[-2], ratio * coarse.shape[-1]):
            raise ValueError(
                f"DeepLabV3PlusHead: height and width of the input must be multiples of {self.output_stride}, got maps "
                f"of {[tuple(f.shape[-2:]) for f in features]}; resize or crop the images."
            )
        if self.training and coarse.shape[0] < 2:
            raise ValueError(
                "DeepLabV3PlusHead: training needs a batch of at least 2 images per process, because it normalises "
                "pooled features over the batch, got 1; raise batch_size or set drop_last=True in the data loader."
            )
        logits: Tensor = self.output(self.decoder([skip, skip, skip, coarse]))
        return logits
