"""Predicting noise as a task, and the network that does it for all clusters of timesteps at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import MetricCollection

from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.tasks.base import Task, nothing_to_draw


def squared_error(prediction: Tensor, noise: Tensor) -> Tensor:
    """Return the squared error of every number, in float32 or wider."""
    wide = torch.promote_types(prediction.dtype, torch.float32)
    return (prediction.to(wide) - noise.to(wide)).square()


class NoisePrediction(Task):
    """Predict the noise in the samples of one interval of timesteps; the network's output is the prediction.

    The loss of a sample is the mean squared error over its numbers, that of a batch the mean over the samples.

    Args:
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction and target: ``(B, ...)``.
    """

    out_channels = 1

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__(nn.Identity(), loss_weight)
        self.metrics = MetricCollection({})

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return the identity."""
        return nn.Identity()

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Return the mean squared error, exactly zero without samples.

        Raises:
            ValueError: If the shapes differ.
        """
        if prediction.shape != target.shape:
            raise ValueError(
                f"NoisePrediction: the network must return the shape of its samples, {tuple(target.shape)}, got "
                f"{tuple(prediction.shape)}."
            )
        return squared_error(prediction, target).sum() / max(target.numel(), 1)

    def num_labelled(self, target: Tensor) -> Tensor:
        """Return the number of samples."""
        return torch.tensor(len(target), device=target.device)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the noise."""
        return prediction

    def render(self, value: Any) -> Tensor:
        """Return an empty picture."""
        return nothing_to_draw()


@dataclass(frozen=True)
class NoisySamples:
    """A batch at its timesteps, ordered by cluster.

    Args:
        samples: Noisy samples ``(B, ...)``.
        timesteps: ``(B,)``.
        counts: Cluster -> number of its samples, in the order of the samples.
        labels: Conditions ``(B,)``, or None.
        average: Whether the averaged network is to read them.
    """

    samples: Tensor
    timesteps: Tensor
    counts: dict[str, int]
    labels: Tensor | None
    average: bool


class ClusteredDenoiser(nn.Module):
    """The network that is trained and its average; gives every cluster the predictions of its samples."""

    def __init__(self, denoiser: nn.Module, decay: float | None) -> None:
        super().__init__()
        self.network = denoiser
        self.average: AveragedModel | None = None
        if decay is not None:
            update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.original, multi_avg_fn=update)
            self.average.requires_grad_(False)

    @property
    def original(self) -> nn.Module:
        """The network as it was before ``torch.compile``."""
        return cast(nn.Module, getattr(self.network, "_orig_mod", self.network))

    def update_average(self) -> None:
        """Move the average towards the weights as they are now."""
        if self.average is not None:
            self.average.update_parameters(self.original)

    def chosen(self, average: bool) -> nn.Module:
        """Return the averaged network if it is wanted and there is one, else the trained one."""
        return self.average if average and self.average is not None else self.network

    def forward(self, inputs: NoisySamples) -> dict[str, Tensor]:
        """Return cluster -> predicted noise of its samples."""
        prediction = predict_noise(self.chosen(inputs.average), inputs.samples, inputs.timesteps, inputs.labels)
        parts = torch.split(prediction, list(inputs.counts.values()))
        return dict(zip(inputs.counts, parts, strict=True))


def predict_noise(network: nn.Module, samples: Tensor, timesteps: Tensor, labels: Tensor | None) -> Tensor:
    """Call a network, with labels if there are any."""
    noise: Tensor = network(samples, timesteps) if labels is None else network(samples, timesteps, labels)
    return noise
