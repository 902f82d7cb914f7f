"""Networks that predict the noise in a sample."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded


class MLPDenoiser(nn.Module, Recorded):
    r"""Predict the noise in vectors with fully connected layers that also read the timestep.

    The timestep enters as sines and cosines of :math:`\tfrac\pi2 2^j t / T`, beside the sample.

    Args:
        features: Numbers of one sample.
        hidden: Width of every hidden layer, each followed by a SiLU. At least one.
        num_frequencies: Number of sines and of cosines.
        num_steps: Number T of timesteps of the noise schedule.
        num_classes: Number of classes that may be given as condition; 0 for none.

    Shape:
        - samples: ``(B, features)``; timesteps: ``(B,)``; labels: ``(B,)`` int64; returns ``(B, features)``.

    Raises:
        ValueError: If a number is not positive, ``hidden`` is empty, or labels come without ``num_classes`` or the
            other way round.

    Example:
        >>> denoiser = MLPDenoiser(features=2, num_steps=100)
        >>> denoiser(torch.zeros(3, 2), torch.tensor([0, 50, 99])).shape
        torch.Size([3, 2])
    """

    def __init__(
        self,
        features: int = 2,
        hidden: Sequence[int] = (48, 48),
        num_frequencies: int = 8,
        num_steps: int = 1000,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        if min(features, num_frequencies, num_steps, *hidden, len(hidden)) < 1 or num_classes < 0:
            raise ValueError(
                "MLPDenoiser: features, num_frequencies, num_steps and every width in hidden must be positive and "
                f"hidden not empty, got {features}, {num_frequencies}, {num_steps} and {list(hidden)}."
            )
        self.sample_shape = (features,)
        self.num_steps = num_steps
        self.num_classes = num_classes
        self.register_buffer("frequencies", math.pi / 2 * 2.0 ** torch.arange(num_frequencies), persistent=False)
        widths = [features + 2 * num_frequencies + num_classes, *hidden]
        layers: list[nn.Module] = []
        for width_in, width_out in itertools.pairwise(widths):
            layers += [nn.Linear(width_in, width_out), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], features))

    def forward(self, samples: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the predicted noise."""
        if (labels is None) != (self.num_classes == 0):
            given = "no labels" if labels is None else "labels"
            raise ValueError(f"MLPDenoiser: was built with num_classes={self.num_classes}, got {given}.")
        phase = (timesteps.float() / self.num_steps)[:, None] * cast(Tensor, self.frequencies)
        parts = [samples, phase.sin().to(samples.dtype), phase.cos().to(samples.dtype)]
        if labels is not None:
            parts.append(nn.functional.one_hot(labels, self.num_classes).to(samples.dtype))
        noise: Tensor = self.layers(torch.cat(parts, dim=1))
        return noise


class DiffusersDenoiser(nn.Module, Recorded):
    """Predict the noise in images with a network from ``diffusers``.

    Args:
        model: A built network, or the name of its class, such as ``UNet2DModel`` or ``DiTTransformer2DModel``.
        config: Arguments of the class, if its name is given.

    Shape:
        - samples: ``(B, C, H, W)``; timesteps: ``(B,)``; labels: ``(B,)`` int64; returns ``(B, C, H, W)``.

    Raises:
        ModuleNotFoundError: If a name is given and the extra ``diffusion`` is not installed.
        ValueError: If ``diffusers`` has no class of that name, or ``config`` comes with a built network.

    Note:
        Of a network with twice as many outputs, which predicts variances too, the first half is used. A
        ``DiTTransformer2DModel`` needs labels; without any, all samples are of class 0.

    References:
        Peebles, Xie. *Scalable Diffusion Models with Transformers*. ICCV 2023. https://arxiv.org/abs/2212.09748
    """

    def __init__(self, model: nn.Module | str, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        if isinstance(model, str):
            try:
                import diffusers
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError("DiffusersDenoiser needs `pip install lightning-mtl[diffusion]`.") from error
            network = getattr(diffusers, model, None)
            if network is None:
                raise ValueError(f"DiffusersDenoiser: model must be the name of a class of diffusers, got {model!r}.")
            self.network = network(**(config or {}))
        elif config is not None:
            raise ValueError("DiffusersDenoiser: config goes with the name of a class; the given model is built.")
        else:
            self.network = model

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Channels, height and width of a sample."""
        config = self.network.config
        size = config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (int(config.in_channels), int(height), int(width))

    def forward(self, samples: Tensor, timesteps: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return the predicted noise."""
        if labels is None and getattr(self.network.config, "num_embeds_ada_norm", None):
            labels = torch.zeros_like(timesteps)
        noise: Tensor = self.network(samples, timestep=timesteps, class_labels=labels).sample
        return noise[:, : samples.shape[1]]
