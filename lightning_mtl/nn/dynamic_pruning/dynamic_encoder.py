"""Any convolutional encoder, with convolutions that skip channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_mtl.nn.dynamic_pruning.conversion import convert_to_dynamic
from lightning_mtl.nn.dynamic_pruning.layers import Mode, Normalize, dynamic_layers, mask_loss
from lightning_mtl.nn.recorded import Recorded


class DynamicEncoder(nn.Module, Recorded):
    """Give every convolution of an encoder a predictor of the channels that an image needs (Elkerdawy et al., 2022).

    The masks belong to the images, and all tasks share them. :class:`~lightning_mtl.MultiTaskModule` adds the mask loss
    (``auxiliary_loss``) to the balancer's scalar and gives the predictors a parameter group of their own; gradient
    balancers leave them alone. Start from a trained encoder and add the callback
    :class:`~lightning_mtl.callbacks.DynamicPruning`, which trains the predictors before the masks are switched on.

    Args:
        encoder: Encoder to convert, in place; see :func:`convert_to_dynamic` for what can be.
        mass: Share of the peaks to keep in every layer, in (0, 1]; the budget. Negative keeps all.
        layers: Names of the convolutions in ``encoder`` to convert; None converts all that are found.
        mode: ``"decoupled"`` trains the predictors alone by the mask loss, ``"joint"`` the layers below them too.
        mask_lr: Learning rate of the predictors. Their weights do not decay.
        prune_ratio: Drop this share of the channels in every image instead of choosing by mass.
        embedding: See :class:`MaskPredictor`.
        normalize: See :class:`MaskPredictor`.

    Shape:
        - inputs: those of ``encoder``; returns its features.

    Raises:
        ValueError: If the encoder cannot be converted, or an argument does not fit.

    Note:
        What is saved are theoretical FLOPs, see :class:`DynamicConv`. The wrapper must be the outermost one, as
        MultiTaskModule asks it for its auxiliary loss. An auxiliary loss of ``encoder`` itself is kept.

    Example:
        >>> import torch
        >>> from lightning_mtl.nn import TimmEncoder
        >>> encoder = DynamicEncoder(TimmEncoder("resnet18"), mass=0.9)
        >>> encoder(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 512])

    References:
        Elkerdawy et al. *Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction*.
        CVPR 2022. https://arxiv.org/abs/2110.08232
    """

    def __init__(
        self,
        encoder: nn.Module,
        mass: float = 0.9,
        layers: Sequence[str] | None = None,
        mode: Mode = "decoupled",
        mask_lr: float = 0.1,
        prune_ratio: float | None = None,
        embedding: int | None = None,
        normalize: Normalize = "scaled_softmax",
    ) -> None:
        super().__init__()
        if mask_lr <= 0:
            raise ValueError(f"DynamicEncoder: mask_lr must be positive, got {mask_lr}.")
        self.encoder = encoder
        self.mask_lr = mask_lr
        convert_to_dynamic(encoder, mass, layers, mode, prune_ratio, embedding, normalize)
        if hasattr(encoder, "feature_spec"):
            self.feature_spec = encoder.feature_spec

    def predictor_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the mask predictors."""
        found = [layer.predictor for layer in dynamic_layers(self).values() if layer.predictor is not None]
        return [parameter for predictor in found for parameter in predictor.parameters()]

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that several tasks train, without the predictors."""
        declared = getattr(self.encoder, "shared_parameters", self.encoder.parameters)
        predictors = {id(parameter) for parameter in self.predictor_parameters()}
        return [parameter for parameter in declared() if id(parameter) not in predictors]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's group of the predictors: a learning rate of their own and no weight decay."""
        group = {"params": self.predictor_parameters(), "name": "mask_predictors"}
        return [group | {"lr": self.mask_lr, "weight_decay": 0.0}]

    def auxiliary_loss(self) -> Tensor:
        """Return the mask loss for the last pass.

        Raises:
            RuntimeError: If there was no pass.
        """
        loss = mask_loss(self.encoder)
        own = getattr(self.encoder, "auxiliary_loss", None)
        return loss + own() if callable(own) else loss

    def forward(self, inputs: Tensor) -> Any:
        """Return the features of the encoder, of which every image used some channels only."""
        return self.encoder(inputs)
