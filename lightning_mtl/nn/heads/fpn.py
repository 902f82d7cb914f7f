"""The feature pyramid network's decoder for dense prediction."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from torch import Tensor, nn

from lightning_mtl.nn.heads.base import DenseHead
from lightning_mtl.nn.spec import FeatureSpec


class FPNHead(DenseHead):
    """Predict a map from the four coarsest feature maps with a feature pyramid (Kirillov et al., CVPR 2019).

    The decoder is that of segmentation_models_pytorch: a top-down pyramid, then every level convolved and upsampled to
    the finest of the four, and summed. It normalises over groups of channels, so a batch of one trains.

    Args:
        spec: The features to read, of kind ``"maps"``: at least four, the last four with strides that double.
        out_channels: Number of channels of the logits.
        pyramid_channels: Width of the pyramid (the paper: 256).
        segmentation_channels: Width of the merged levels, a multiple of 32 (the paper: 128).
        dropout: Probability of dropping a merged channel, in [0, 1).
        upsample: Resize the logits by ``stride`` to the resolution of the input, bilinearly; dense tasks do so anyway.

    Shape:
        - features: list of ``(B, D_i, H / s_i, W / s_i)``, finest first, ``H`` and ``W`` multiples of the coarsest
          stride; returns ``(B, out_channels, H / s, W / s)`` with ``s`` the fourth coarsest stride (4 for most
          encoders), or ``(B, out_channels, H, W)`` with ``upsample=True``.

    Raises:
        ValueError: If the features are no maps, or their strides do not fit.

    Note:
        The default widths are half of the paper's: in multi-task learning there is one such decoder per task.

    References:
        Kirillov, Girshick, He, Dollár. *Panoptic Feature Pyramid Networks*. CVPR, 2019.
        https://arxiv.org/abs/1901.02446, Sec. 3.1.
    """

    def __init__(
        self,
        spec: FeatureSpec,
        out_channels: int,
        pyramid_channels: int = 128,
        segmentation_channels: int = 64,
        dropout: float = 0.0,
        upsample: bool = False,
    ) -> None:
        super().__init__(spec, out_channels, upsample)
        from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
        from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder

        strides = spec.strides[-4:]
        if len(strides) < 4 or any(b != 2 * a for a, b in itertools.pairwise(strides)):
            raise ValueError(
                "FPNHead: the last four feature maps must have strides that double, got strides "
                f"{spec.strides}; use ConvHead or UNetHead, or an encoder with such maps."
            )
        if segmentation_channels < 32 or segmentation_channels % 32:
            raise ValueError(f"FPNHead: segmentation_channels must be a multiple of 32, got {segmentation_channels}.")
        self.stride = strides[0]
        self.coarsest_stride = strides[-1]
        self.decoder = FPNDecoder(
            list(spec.channels),
            encoder_depth=3,
            pyramid_channels=pyramid_channels,
            segmentation_channels=segmentation_channels,
            dropout=dropout,
        )
        self.output = nn.Conv2d(self.decoder.out_channels, out_channels, kernel_size=1)
        initialize_decoder(self.decoder)
        initialize_head(self.output)

    def decode(self, features: Sequence[Tensor]) -> Tensor:
        """Return the logits at the fourth coarsest stride."""
        fine, coarse = features[-4], features[-1]
        if (fine.shape[-2], fine.shape[-1]) != (8 * coarse.shape[-2], 8 * coarse.shape[-1]):
            raise ValueError(
                f"FPNHead: height and width of the input must be multiples of {self.coarsest_stride}, got maps of "
                f"{[tuple(f.shape[-2:]) for f in features]}; resize or crop the images."
            )
        logits: Tensor = self.output(self.decoder(list(features)))
        return logits
