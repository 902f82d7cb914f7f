"""Any encoder behind a learned enhancement of its images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mtl.nn.feature_enhancement import FeatureEnhancement, Fusion
from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.task_aware import SupervisedFeatures


class FeatEnHancer(nn.Module, Recorded):
    """Enhance dark images before an encoder sees them; the losses of the tasks train both.

    The encoder can be any that reads images, with features for all tasks or for each; what it declares
    (``feature_spec``, ``shared_parameters``, ``auxiliary_loss``) holds on. The enhancement is a
    :class:`~lightning_mtl.nn.FeatureEnhancement`, and sees the images as the data module normalised them.

    Args:
        encoder: The encoder behind the enhancement.
        enhanced: Task -> whether it reads the enhanced image or the image as it came, for every task. None enhances for
            all. Where the tasks differ, the encoder reads both in one batch of twice the size, and the features are
            those of ``{task: features}``.
        in_channels: Number of channels of the images.
        hidden_channels: Width of the shared enhancement network and of the skip connection.
        out_channels: Number of channels of the enhanced features, a multiple of ``in_channels`` and of ``heads``.
        heads: Number of attention heads.
        fusion: How the features of the quarter scale are joined: ``"safa"`` by scale-aware aggregation, ``"mean"`` by
            averaging, ``"skip"`` by the skip connection.
        init_std: Standard deviation of the initial convolution weights of the enhancement.
        checkpointing: Keep no activations of the enhancement in training and compute them again in the backward pass.

    Shape:
        - inputs: ``(B, in_channels, H, W)``, normalised, ``H`` and ``W`` at least 15 and what the encoder wants;
          returns what the encoder returns, or task -> that.

    Raises:
        ValueError: If an argument is out of range, or the image has other channels or is too small.

    Note:
        With tasks that differ, normalisation layers of the encoder take their statistics over both images. The
        enhancement is shared when several tasks read it, otherwise it belongs to the one that does.

        Padding of images does not stay zero behind the enhancement, as in the authors' code.

    Example:
        >>> from lightning_mtl.nn import TimmEncoder
        >>> encoder = FeatEnHancer(TimmEncoder("resnet18"), enhanced={"day": False, "night": True})
        >>> {task: tuple(features.shape) for task, features in encoder(torch.zeros(2, 3, 32, 32)).items()}
        {'day': (2, 512), 'night': (2, 512)}

    References:
        Hashmi, Kallempudi, Stricker, Afzal. *FeatEnHancer: Enhancing Hierarchical Features for Object Detection and
        Beyond Under Low-Light Vision*. ICCV 2023. https://arxiv.org/abs/2308.03594. Authors' code:
        https://github.com/khurramHashmi/FeatEnHancer, CC BY-NC 4.0.
    """

    def __init__(
        self,
        encoder: nn.Module,
        enhanced: dict[str, bool] | None = None,
        in_channels: int = 3,
        hidden_channels: int = 32,
        out_channels: int = 24,
        heads: int = 8,
        fusion: Fusion = "safa",
        init_std: float = 0.02,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if enhanced is not None and not any(enhanced.values()):
            raise ValueError(
                f"FeatEnHancer: enhanced must be true for one task at least, got {enhanced}; leave the enhancement out."
            )
        self.enhancement = FeatureEnhancement(
            in_channels, hidden_channels, out_channels, heads, fusion, init_std, checkpointing
        )
        self.encoder = encoder
        self.enhanced = None if enhanced is None else dict(enhanced)
        spec: FeatureSpec | dict[str, FeatureSpec] | None = getattr(encoder, "feature_spec", None)
        if self.enhanced is not None and isinstance(spec, FeatureSpec):
            spec = dict.fromkeys(self.enhanced, spec)
        self.feature_spec = spec
        if hasattr(encoder, "auxiliary_loss"):
            self.auxiliary_loss = encoder.auxiliary_loss

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that all tasks share: the encoder's, and the enhancement's if several tasks read it."""
        shared = list(getattr(self.encoder, "shared_parameters", self.encoder.parameters)())
        if self.enhanced is not None and sum(self.enhanced.values()) == 1:
            return shared
        return [*self.enhancement.parameters(), *shared]

    def forward(self, inputs: Tensor) -> Any:
        """Return the encoder's features of the enhanced images, or the features of every task."""
        images = self.enhancement(inputs)
        if self.enhanced is None:
            return self.encoder(images)
        if all(self.enhanced.values()):
            features = self.encoder(images)
            return {task: _of(features, task) for task in self.enhanced}
        # one pass over both: every parameter takes part, whatever tasks have labels in this batch
        features = self.encoder(torch.cat([images, inputs]))
        count = inputs.shape[0]  # len() would fix it in an exported network
        rows = {True: slice(None, count), False: slice(count, None)}
        return {task: _half(_of(features, task), rows[enhanced]) for task, enhanced in self.enhanced.items()}


def _of(features: Any, task: str) -> Any:
    """Return the features of a task, of an encoder that may have features of its own for each."""
    return features[task] if isinstance(features, Mapping) else features


def _half(features: Any, rows: slice) -> Any:
    if isinstance(features, SupervisedFeatures):
        return features._replace(maps=_half(features.maps, rows), initial=_half(features.initial, rows))
    return features[rows] if isinstance(features, Tensor) else [member[rows] for member in features]
