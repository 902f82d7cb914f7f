"""Which channels of an activation fire strongly, and the loss of those who guess it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from lightning_mtl.nn.experts.base import at_least_float32


def channel_peaks(activations: Tensor) -> Tensor:
    """Return the largest absolute value of every channel, ``(B, C, H, W) -> (B, C)``, in float32 or wider."""
    return at_least_float32(activations.detach()).abs().amax(dim=(2, 3))


def keep_one(mask: Tensor, scores: Tensor) -> Tensor:
    """Return the mask with the channel of the highest score kept, ``(B, C)`` each."""
    return mask.scatter(1, scores.argmax(dim=1, keepdim=True), 1.0)


def topk_mass_mask(activations: Tensor, mass: float, delta: float = 1e-5) -> Tensor:
    r"""Keep the channels with the highest peaks that together hold a share of all peaks.

    With the peaks :math:`s_c = \max_{h,w} |A_c|`, their shares :math:`p_c = s_c / \sum_j s_j` are added up from the
    largest one on; a channel is kept as long as the sum up to it does not exceed ``mass``. So the number of channels
    differs from image to image.

    Args:
        activations: Activations of a layer.
        mass: Share of the peaks to keep. A negative one keeps all channels; 1 drops only those with a share of at most
            ``delta``, which are dead for this image.
        delta: Tolerance of the comparisons.

    Shape:
        - activations: ``(B, C, H, W)``; returns ``(B, C)`` of zeros and ones, without gradient.

    Raises:
        ValueError: If ``mass`` is 0 or larger than 1.

    Note:
        The channel with the highest peak is always kept. The authors' code drops it if it alone exceeds ``mass``, and
        divides by zero where all activations are zero. Sums are in float32 or wider, as half precision does not
        resolve ``delta``.

    Example:
        >>> peaks = torch.tensor([5.0, 1.0, 3.0, 1.0]).view(1, 4, 1, 1)
        >>> topk_mass_mask(peaks, 0.8)
        tensor([[1., 0., 1., 0.]])

    References:
        Elkerdawy et al. *Fire Together Wire Together: A Dynamic Pruning Approach with Self-Supervised Mask Prediction*.
        CVPR 2022. https://arxiv.org/abs/2110.08232
    """
    check_mass("topk_mass_mask", mass)
    peaks = channel_peaks(activations)
    if mass < 0:
        return torch.ones_like(peaks)
    total = peaks.sum(dim=1, keepdim=True)
    shares = torch.where(total > 0, peaks / total.where(total > 0, torch.ones_like(total)), torch.zeros_like(peaks))
    if mass == 1:
        return keep_one((shares > delta).to(peaks.dtype), peaks)
    ordered, order = shares.sort(dim=1, descending=True, stable=True)
    kept = ((ordered.cumsum(dim=1) - mass <= delta) & (total > 0)).to(peaks.dtype)
    return keep_one(torch.zeros_like(peaks).scatter(1, order, kept), peaks)


def uniform_mask(activations: Tensor, prune_ratio: float, delta: float = 1e-5) -> Tensor:
    """Drop the same number of channels in every image, those with the lowest peaks.

    Args:
        activations: Activations of a layer.
        prune_ratio: Share of the channels to drop, rounded down to whole channels.
        delta: Channels with a peak of at most this are dropped too.

    Shape:
        - activations: ``(B, C, H, W)``; returns ``(B, C)`` of zeros and ones, without gradient.

    Raises:
        ValueError: If ``prune_ratio`` is not in [0, 1).

    Note:
        The channel with the highest peak is always kept.

    References:
        Elkerdawy et al. *Fire Together Wire Together*. CVPR 2022. https://arxiv.org/abs/2110.08232
    """
    check_prune_ratio("uniform_mask", prune_ratio)
    peaks = channel_peaks(activations)
    ordered, order = peaks.sort(dim=1, stable=True)
    kept = (ordered > delta).to(peaks.dtype)
    kept[:, : int(prune_ratio * peaks.shape[1])] = 0
    return keep_one(torch.zeros_like(peaks).scatter(1, order, kept), peaks)


def mask_cross_entropy(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the binary cross-entropy of guessed masks: mean over images, sum over channels, mean over layers.

    Args:
        logits: What the predictor of every layer says.
        targets: The masks that it should say.

    Shape:
        - logits, targets: ``(B, C_l)`` for layer l; returns a scalar.

    Raises:
        ValueError: If there is no layer, or the numbers of layers differ.

    References:
        Elkerdawy et al. *Fire Together Wire Together*. CVPR 2022. https://arxiv.org/abs/2110.08232
    """
    if not logits or len(logits) != len(targets):
        raise ValueError(
            f"mask_cross_entropy: logits and targets must be of the same layers, at least one, got {len(logits)} and "
            f"{len(targets)}."
        )
    layers = []
    for guess, target in zip(logits, targets, strict=True):
        guess = at_least_float32(guess)
        loss = functional.binary_cross_entropy_with_logits(guess, target.to(guess.dtype), reduction="none")
        layers.append(loss.mean(dim=0).sum())
    return torch.stack(layers).mean()


def check_mass(name: str, mass: float) -> None:
    """Raise an error unless the mass is in (0, 1] or negative."""
    if mass == 0 or not mass <= 1:
        raise ValueError(f"{name}: mass must be in (0, 1], or negative to keep all channels, got {mass}.")


def check_prune_ratio(name: str, prune_ratio: float) -> None:
    """Raise an error unless the ratio is in [0, 1)."""
    if not 0 <= prune_ratio < 1:
        raise ValueError(f"{name}: prune_ratio must be in [0, 1), got {prune_ratio}.")
