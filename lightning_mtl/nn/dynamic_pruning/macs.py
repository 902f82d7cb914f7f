"""Theoretical cost of dynamic convolutions."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightning_mtl.nn.dynamic_pruning.conversion import convert_to_dynamic
from lightning_mtl.nn.dynamic_pruning.layers import dynamic_layers


@dataclass(frozen=True)
class MacsCount:
    """Multiply-accumulate operations (MACs) of the dynamic convolutions for a mean image.

    These are theoretical: a layer computes all channels and then drops some.

    Attributes:
        dense: MACs without masks.
        kept: MACs with the masks that were applied.
        target: MACs if the masks were the channels that fired strongly.
        predictors: MACs of the mask predictors, in none of the others.
    """

    dense: float
    kept: float
    target: float
    predictors: float

    @property
    def share(self) -> float:
        """Share of the dense MACs that is left."""
        return self.kept / self.dense

    @property
    def target_share(self) -> float:
        """Share that would be left if the predictors were always right."""
        return self.target / self.dense


def macs_shares(model: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the shares of the MACs with masks and with targets, means over the images of the last pass."""
    passes = [layer.last for layer in dynamic_layers(model).values() if layer.last is not None]
    if not passes:
        raise RuntimeError("count_macs: model must have dynamic convolutions and have run; call it first.")
    dense = sum(last.dense_macs for last in passes)
    kept = torch.stack([last.macs.mean() for last in passes]).sum() / dense
    return kept, torch.stack([last.target_macs.mean() for last in passes]).sum() / dense


def count_macs(model: nn.Module) -> MacsCount:
    r"""Count the MACs of the last pass of a converted model.

    A layer costs :math:`c_{out} H W \, (c_{in} / \text{groups}) \, k^2` with the kept channels, a depthwise one
    :math:`c_{out} H W k^2`. Counted are the dynamic convolutions.

    Args:
        model: A model with :class:`DynamicConv` inside.

    Raises:
        RuntimeError: If there was no pass.

    References:
        Elkerdawy et al. *Fire Together Wire Together*. CVPR 2022. https://arxiv.org/abs/2110.08232
    """
    kept, target = macs_shares(model)
    layers = dynamic_layers(model).values()
    dense = sum(layer.last.dense_macs for layer in layers if layer.last is not None)
    return MacsCount(dense, float(kept) * dense, float(target) * dense, sum(layer.predictor_macs for layer in layers))


def estimate_macs(model: nn.Module, batches: Iterable[Any], mass: float, layers: list[str] | None = None) -> MacsCount:
    """Say what a mass will cost before any predictor is trained, from the activations of the dense network.

    Args:
        model: A trained network that :func:`convert_to_dynamic` can convert; it stays as it is.
        batches: Batches of inputs, or tuples of inputs and something else.
        mass: Share of the peaks to keep, in (0, 1].
        layers: The layers to convert; None for all.

    Returns:
        The count, in which nothing is masked (``share`` is 1); ``target_share`` is the estimate.

    Raises:
        ValueError: If there is no batch, or the model cannot be converted.

    Note:
        Masking changes the activations, and so the masks; the achieved share differs from the estimate.

    References:
        Elkerdawy et al. *Fire Together Wire Together*. CVPR 2022. https://arxiv.org/abs/2110.08232
    """
    model = copy.deepcopy(model).eval()
    for layer in convert_to_dynamic(model, mass, layers).values():
        layer.masking = False
    device = next(model.parameters()).device
    images, target = 0, 0.0
    with torch.no_grad():
        for batch in batches:
            inputs = batch[0] if isinstance(batch, tuple | list) else batch
            model(inputs.to(device))
            target += count_macs(model).target * len(inputs)
            images += len(inputs)
    if not images:
        raise ValueError("estimate_macs: batches must hold at least one batch, got none.")
    count = count_macs(model)
    return MacsCount(count.dense, count.dense, target / images, count.predictors)
