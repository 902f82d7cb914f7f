"""The U-Net's decoder."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_mtl.nn.heads.base import DenseHead
from lightning_mtl.nn.spec import FeatureSpec


class UNetHead(DenseHead):
    """Predict a map from all feature maps with a U-Net decoder (Ronneberger et al., MICCAI 2015).

    The decoder is that of segmentation_models_pytorch: from the coarsest map on, upsample to the next finer one,
    concatenate it, convolve twice. Any strides and any image size fit.

    Args:
        spec: The features to read, of kind ``"maps"``, at least two.
        out_channels: Number of channels of the logits.
        decoder_channels: Width after each step, from coarse to fine, one less than there are maps. None halves from
            128 down to 32 at the least.
        upsample: Resize the logits by ``stride`` to the resolution of the input, bilinearly; dense tasks do so anyway.

    Shape:
        - features: list of ``(B, D_i, H_i, W_i)``, finest first; returns ``(B, out_channels, H_0, W_0)``, the
          resolution of the finest map, or ``(B, out_channels, H, W)`` with ``upsample=True``.

    Raises:
        ValueError: If the features are no maps, there is only one, or the widths do not match their number.

    Note:
        The decoder normalises over the batch. Its smallest map is the second coarsest feature map, so a batch of one
        trains as long as that map has more than one position. It ends at the finest feature map, not at the image.

    References:
        Ronneberger, Fischer, Brox. *U-Net: Convolutional Networks for Biomedical Image Segmentation*. MICCAI, 2015.
        https://arxiv.org/abs/1505.04597
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        decoder_channels: Sequence[int] | None = None,
        upsample: bool = False,
    ) -> None:
        super().__init__(spec, out_channels, upsample)
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder

        steps = len(spec.channels) - 1
        if steps < 1:
            raise ValueError("UNetHead: features must have at least two maps, got one; use ConvHead.")
        widths = [max(128 >> i, 32) for i in range(steps)] if decoder_channels is None else list(decoder_channels)
        if len(widths) != steps or min(widths) < 1:
            raise ValueError(
                f"UNetHead: decoder_channels must be {steps} positive widths for {steps + 1} maps, got {widths}."
            )
        self.stride = spec.strides[0]
        # The first entry stands for the image, which the decoder ignores.
        self.decoder = UnetDecoder(encoder_channels=(0, *spec.channels), decoder_channels=widths, n_blocks=steps)
        self.output = nn.Conv2d(widths[-1], out_channels, kernel_size=3, padding=1)
        initialize_decoder(self.decoder)
        initialize_head(self.output)

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits at the finest stride."""
        decoded = self.decoder([features[0], *features])
        logits: Tensor = self.output(decoded)
        return logits
