"""A convolution that guesses from its input which of its output channels are worth computing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_mtl.nn.dynamic_pruning.masks import (
    check_mass,
    check_prune_ratio,
    keep_one,
    mask_cross_entropy,
    topk_mass_mask,
    uniform_mask,
)
from lightning_mtl.nn.experts.base import at_least_float32

Normalize = Literal["softmax", "scaled_softmax", "none"]
Mode = Literal["decoupled", "joint"]


class MaskPredictor(nn.Module):
    r"""Guess from the input of a convolution which of its output channels fire strongly.

    The input is pooled, normalized and given to one linear layer.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels to guess.
        embedding: Wanted length of the pooled input: it is pooled to squares of side
            ``round(sqrt(embedding / in_channels))``, at least 1. None pools to one value a channel.
        normalize: What is done to the D pooled values: a ``"softmax"`` as in the authors' code, a softmax times D
            (``"scaled_softmax"``), or ``"none"``.

    Shape:
        - inputs: ``(B, in_channels, H, W)``; returns logits ``(B, out_channels)``.

    Raises:
        ValueError: If a number is not positive, or ``normalize`` is unknown.

    Note:
        The softmax alone gives inputs of the size 1 / D, with which predictors learn slowly; the scaled one is the
        default here.

    References:
        Elkerdawy et al. *Fire Together Wire Together*. CVPR 2022. https://arxiv.org/abs/2110.08232
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int | None = None,
        normalize: Normalize = "scaled_softmax",
    ) -> None:
        super().__init__()
        if in_channels < 1 or out_channels < 1 or (embedding is not None and embedding < 1):
            raise ValueError(
                "MaskPredictor: in_channels, out_channels and embedding must be positive, got "
                f"{in_channels}, {out_channels} and {embedding}."
            )
        if normalize not in ("softmax", "scaled_softmax", "none"):
            raise ValueError(
                f"MaskPredictor: normalize must be 'softmax', 'scaled_softmax' or 'none', got {normalize!r}."
            )
        self.side = 1 if embedding is None else max(1, round((embedding / in_channels) ** 0.5))
        self.normalize = normalize
        self.linear = nn.Linear(in_channels * self.side**2, out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return a logit for every output channel."""
        pooled = functional.adaptive_avg_pool2d(inputs, self.side).flatten(1)
        if self.normalize != "none":
            pooled = at_least_float32(pooled).softmax(dim=1)
        if self.normalize == "scaled_softmax":
            pooled = pooled * pooled.shape[1]
        logits: Tensor = self.linear(pooled.to(self.linear.weight.dtype))
        return logits


@dataclass(frozen=True)
class ConvPass:
    """What the last pass through a dynamic convolution did, for every image.

    Attributes:
        logits: What the predictor said, ``(B, C)``; None for a depthwise convolution that follows another mask.
        target: Channels that fired strongly, ``(B, C)``.
        mask: Channels that were kept, ``(B, C)``; ones while masking is off.
        macs: Multiply-accumulate operations with this mask, ``(B,)``.
        target_macs: The same with the target as the mask, ``(B,)``.
        dense_macs: Those of the whole convolution.
    """

    logits: Tensor | None
    target: Tensor
    mask: Tensor
    macs: Tensor
    target_macs: Tensor
    dense_macs: float


class DynamicConv(nn.Module):
    r"""Convolution, normalization and activation of which only some channels are kept, chosen image by image.

    A :class:`MaskPredictor` guesses from the input which channels will fire; the others are set to zero. It learns from
    the layer's own activations, by :func:`mask_loss`: its target is :func:`topk_mass_mask` or :func:`uniform_mask`.
    The loss of the task reaches the layer through the kept channels only.

    Args:
        conv: The convolution.
        norm: Its normalization.
        act: Its activation; None where none follows directly.
        mass: Share of the peaks to keep, in (0, 1]; negative keeps all.
        mode: ``"decoupled"`` keeps the gradients of the mask loss inside the predictor, ``"joint"`` lets them go on
            into the layers below.
        prune_ratio: Drop this share of the channels in every image instead of choosing by mass.
        embedding: Length of what the predictor reads; see :class:`MaskPredictor`.
        normalize: How the predictor normalizes; see :class:`MaskPredictor`.
        source: The dynamic convolution whose masked output is the input, if only pooling and the like lies between. The
            channels that it drops cost nothing here. A depthwise convolution takes over the mask of its source.

    Shape:
        - inputs: ``(B, C_in, H, W)``; returns ``(B, C_out, H', W')``.

    Raises:
        ValueError: If an argument does not fit.

    Note:
        All channels are computed and then masked: what is saved are theoretical FLOPs. ``masking`` switches the masks
        on and is part of the state; ``learning`` says whether the predictor is trained. At least one channel is kept.

    References:
        Elkerdawy et al. *Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction*.
        CVPR 2022. https://arxiv.org/abs/2110.08232. Authors' code: https://github.com/selkerdawy/FTWT
    """

    masking_on: Tensor

    def __init__(
        self,
        conv: nn.Conv2d,
        norm: nn.Module,
        act: nn.Module | None = None,
        mass: float = 0.9,
        mode: Mode = "decoupled",
        prune_ratio: float | None = None,
        embedding: int | None = None,
        normalize: Normalize = "scaled_softmax",
        source: DynamicConv | None = None,
    ) -> None:
        super().__init__()
        check_mass("DynamicConv", mass)
        if prune_ratio is not None:
            check_prune_ratio("DynamicConv", prune_ratio)
        if mode not in ("decoupled", "joint"):
            raise ValueError(f"DynamicConv: mode must be 'decoupled' or 'joint', got {mode!r}.")
        if source is not None and source.conv.out_channels != conv.in_channels:
            raise ValueError(
                f"DynamicConv: source must have as many output channels as conv has input channels, "
                f"{conv.in_channels}, got {source.conv.out_channels}."
            )
        self.conv: nn.Conv2d = conv
        self.norm = norm
        self.act = nn.Identity() if act is None else act
        self.mass = mass
        self.mode = mode
        self.prune_ratio = prune_ratio
        self.depthwise = conv.groups == conv.in_channels == conv.out_channels and conv.groups > 1
        self._source = (source,)  # in a tuple, so that it does not become a part of this module
        tied = self.depthwise and source is not None
        self.predictor = None if tied else MaskPredictor(conv.in_channels, conv.out_channels, embedding, normalize)
        if self.predictor is not None:
            self.predictor.to(conv.weight.device, conv.weight.dtype)
        self.learning = True
        self.last: ConvPass | None = None
        self.register_buffer("masking_on", torch.ones((), dtype=torch.bool, device=conv.weight.device))
        self._masking = True  # the same as the buffer, which the host would have to wait for
        self.register_load_state_dict_post_hook(_read_masking)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "last": None}  # what belongs to a pass is not copied

    @property
    def source(self) -> DynamicConv | None:
        """The dynamic convolution that the input comes from."""
        return self._source[0]

    @property
    def masking(self) -> bool:
        """Whether channels are dropped."""
        return self._masking

    @masking.setter
    def masking(self, on: bool) -> None:
        self._masking = on
        self.masking_on.fill_(on)

    @property
    def predictor_macs(self) -> int:
        """Multiply-accumulate operations of the predictor for one image."""
        return 0 if self.predictor is None else self.predictor.linear.weight.numel()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the activation with the dropped channels at zero, and note what was kept in ``last``."""
        outputs: Tensor = self.act(self.norm(self.conv(inputs)))
        before = None if self.source is None else self.source.last
        logits = None
        if self.predictor is None:
            if before is None:
                raise RuntimeError(
                    "DynamicConv: a depthwise convolution takes over the mask of its source, which did not run before "
                    "it; run the whole network."
                )
            target, mask = before.target, before.mask
        else:
            coupled = self.mode == "joint" and self.learning
            logits = self.predictor(inputs if coupled else inputs.detach())
            if self.prune_ratio is None:
                target = topk_mass_mask(outputs, self.mass)
            else:
                target = uniform_mask(outputs, self.prune_ratio)
            guess = logits.detach()
            mask = keep_one((guess > 0).to(target.dtype), guess) if self._masking else torch.ones_like(target)
        size = outputs.shape[2] * outputs.shape[3]
        self.last = ConvPass(
            logits,
            target,
            mask,
            self._macs(mask, None if before is None else before.mask, size),
            self._macs(target, None if before is None else before.target, size),
            self._per_channel(size) * self.conv.out_channels,
        )
        return outputs * mask[:, :, None, None].to(outputs.dtype) if self._masking else outputs

    def _per_channel(self, size: int) -> float:
        """Return the operations of one output channel that reads all of its inputs."""
        return size * self.conv.weight[0].numel()

    def _macs(self, kept: Tensor, kept_before: Tensor | None, size: int) -> Tensor:
        macs = kept.sum(dim=1) * self._per_channel(size)
        if kept_before is not None and not self.depthwise:  # a kept depthwise channel reads its own input, kept too
            macs = macs * kept_before.mean(dim=1)
        return macs


def _read_masking(layer: nn.Module, _: Any) -> None:
    cast(DynamicConv, layer)._masking = bool(cast(DynamicConv, layer).masking_on)


def dynamic_layers(model: nn.Module) -> dict[str, DynamicConv]:
    """Return the dynamic convolutions of a model by name."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, DynamicConv)}


def mask_loss(model: nn.Module) -> Tensor:
    """Return the loss of all mask predictors of a model for its last pass.

    It is added to the loss of the tasks. While a layer's ``learning`` is off, its share is a zero that gives the
    predictor's parameters a gradient of zero, so that distributed training finds them all in use.

    Args:
        model: A model with :class:`DynamicConv` inside.

    Returns:
        A scalar, see :func:`mask_cross_entropy`.

    Raises:
        ValueError: If there is no predictor.
        RuntimeError: If there was no pass.

    References:
        Elkerdawy et al. *Fire Together Wire Together*. CVPR 2022. https://arxiv.org/abs/2110.08232
    """
    layers = [layer for layer in dynamic_layers(model).values() if layer.predictor is not None]
    if not layers:
        raise ValueError(
            f"mask_loss: {type(model).__name__} has no DynamicConv with a predictor; call convert_to_dynamic first."
        )
    losses = []
    for layer in layers:
        if layer.last is None or layer.last.logits is None:
            raise RuntimeError("mask_loss: every DynamicConv must have run; call the model first.")
        loss = mask_cross_entropy([layer.last.logits], [layer.last.target])
        losses.append(loss if layer.learning else 0.0 * loss)
    return torch.stack(losses).mean()
