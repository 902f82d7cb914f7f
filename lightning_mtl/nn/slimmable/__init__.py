"""Layers, encoders and heads that can be narrowed while they are in use."""

from lightning_mtl.nn.slimmable.layers import (
    SlimmableBatchNorm2d,
    SlimmableConv2d,
    SlimmableLayer,
    SlimmableLinear,
    active_channels,
    make_divisible,
)
from lightning_mtl.nn.slimmable.networks import (
    SlimmableConvHead,
    SlimmableEncoder,
    SlimmableHead,
    SlimmableMLP,
    SlimmableMLPHead,
    SlimmableNetwork,
    SlimmableResNet,
)

__all__ = [
    "SlimmableBatchNorm2d",
    "SlimmableConv2d",
    "SlimmableConvHead",
    "SlimmableEncoder",
    "SlimmableHead",
    "SlimmableLayer",
    "SlimmableLinear",
    "SlimmableMLP",
    "SlimmableMLPHead",
    "SlimmableNetwork",
    "SlimmableResNet",
    "active_channels",
    "make_divisible",
]
