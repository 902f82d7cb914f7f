"""The Task: a head, a loss, metrics, and how to show a prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection

from lightning_mtl.nn.recorded import Recorded
from lightning_mtl.nn.spec import FeatureSpec

HeadCallable = Callable[[FeatureSpec, int], nn.Module]
"""Builds a head from the features that it reads and the number of channels that the task wants."""


class Task(nn.Module, Recorded, ABC):
    """One task of a multi-task network.

    A task is data with a contract: its ``head`` turns features into a raw prediction, ``loss`` scores that prediction,
    ``num_labelled`` counts what the loss averaged over, ``metrics`` judge it, ``predict`` and ``render`` make it
    readable. Subclasses set ``out_channels``, fill ``metrics`` and implement the abstract methods.

    The loss is the **mean over the labelled units** of the target (samples, or pixels for dense targets), and
    ``num_labelled`` counts exactly these units. The two together let several processes compute the gradient of the mean
    over the joined batch, whatever part of the labels each of them holds. A target without any label gives a loss of
    exactly zero with zero gradients, never NaN.

    Args:
        head: A built module, or a callable ``(FeatureSpec, out_channels) -> nn.Module`` that is called when the encoder
            is known. ``None`` takes the task's default head for the kind of features at hand.
        loss_weight: Constant factor of this task's loss, applied before any balancer sees it. Positive.
    """

    out_channels: int
    metrics: MetricCollection
    draws_on_input = False
    """Whether ``draw`` draws on the input images; pictures of these are then made large enough to read."""
    max_new_tokens: int | None = None
    """Longest text, in tokens, that the encoder writes for this task at evaluation; None for tasks without text."""

    def __init__(self, head: nn.Module | HeadCallable | None = None, loss_weight: float = 1.0) -> None:
        super().__init__()
        if loss_weight <= 0:
            raise ValueError(f"{type(self).__name__}: loss_weight must be positive, got {loss_weight}.")
        self.loss_weight = loss_weight
        self.head: nn.Module | None = head if isinstance(head, nn.Module) else None
        self._make_head: HeadCallable | None = None if isinstance(head, nn.Module) else head

    def build_head(self, spec: FeatureSpec | None) -> None:
        """Build the head for features of this shape, if none was given ready-made.

        Args:
            spec: What the encoder declares, or None when it declares nothing.

        Raises:
            ValueError: If there is neither a built head nor a ``spec`` to build one from.
        """
        if self.head is not None:
            return
        if spec is None:
            raise ValueError(
                f"{type(self).__name__}: the encoder declares no feature_spec, so a head cannot be built for it; "
                "pass head= as a built nn.Module, or give the encoder a feature_spec."
            )
        make = self._make_head or self.default_head
        self.head = make(spec, self.out_channels)

    @abstractmethod
    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return a new head for features of this shape."""

    def forward(self, features: Any, size: tuple[int, int] | None = None) -> Any:
        """Return the raw prediction (logits) for these features.

        Args:
            features: What the encoder gave: a tensor or a list of maps.
            size: Height and width of the input image, for tasks that predict at input resolution; ignored by others.
        """
        if self.head is None:
            raise RuntimeError(f"{type(self).__name__}: build_head() was not called.")
        return self.head(features)

    def from_map(self, raw: Tensor, size: tuple[int, int] | None = None) -> Any:
        """Return a map ``(B, out_channels, h, w)`` of any resolution as a raw prediction that ``loss`` can score.

        Encoders that predict on the way to their features are trained by it; see
        :class:`~lightning_mtl.nn.SupervisedFeatures`.

        Args:
            raw: The map.
            size: Height and width of the input image.

        Raises:
            TypeError: If the predictions of this task are no maps.
        """
        raise TypeError(
            f"{type(self).__name__}: cannot be trained on the initial predictions of an encoder, which are maps; take "
            "an encoder without them."
        )

    @abstractmethod
    def loss(self, prediction: Any, target: Any) -> Tensor:
        """Return the mean loss over the labelled units, a scalar; exactly zero when there are none.

        Raises:
            ValueError: If the shapes do not fit or a label is out of range; the message names both shapes.
        """

    def loss_parts(self, prediction: Any, target: Any) -> dict[str, Tensor]:
        """Return name -> part of the loss, scalars of which ``loss`` is the sum; empty where it has no parts.

        ``MultiTaskModule`` logs them as ``train/<task>/<name>``. A task whose loss has parts implements this, and
        ``loss`` as their sum.
        """
        return {}

    @abstractmethod
    def num_labelled(self, target: Any) -> Tensor:
        """Return how many units ``loss`` averages over, a scalar integer tensor on the target's device."""

    def update_metrics(self, prediction: Any, target: Any) -> None:
        """Add a batch to ``metrics``; unlabelled units are left out."""
        self.metrics.update(self.predict(prediction), target)

    def attach(self, datamodule: Any) -> None:
        """Take what the task needs from the data module of the Trainer; called before every run, None without one."""

    def read_generated(self, tokens: Tensor) -> Any:
        """Turn what the encoder wrote for this task into what a user reads; for tasks with ``max_new_tokens``.

        Args:
            tokens: ``(B, T)``, what ``encoder.generate(inputs, max_new_tokens)`` gave.
        """
        raise TypeError(f"{type(self).__name__}: reads no generated text, but has max_new_tokens.")

    def update_generated(self, tokens: Tensor, target: Any) -> None:
        """Add a batch of what the encoder wrote to ``metrics``; for tasks with ``max_new_tokens``.

        Args:
            tokens: ``(B, T)``, what ``encoder.generate(inputs, max_new_tokens)`` gave.
            target: The batch's target; rows without labels are left out.
        """
        raise TypeError(f"{type(self).__name__}: reads no generated text, but has max_new_tokens.")

    @abstractmethod
    def predict(self, prediction: Any) -> Any:
        """Turn a raw prediction into what a user reads: class probabilities or ids, metres, unit vectors."""

    @abstractmethod
    def render(self, value: Any) -> Tensor:
        """Draw what ``predict`` returned, or a target, for a logger.

        Returns:
            Images ``(B, 3, H, W)``, uint8. Tasks that are no pictures draw nothing and return ``(0, 3, 1, 1)``.
        """

    def draw(self, images: Tensor, value: Any, scale: int = 1) -> Tensor:
        """Draw what ``predict`` returned, or a target, where the input images are at hand.

        Args:
            images: The input images ``(B, 3, scale H, scale W)``, uint8, enlarged by whole pixels. Used by tasks with
                ``draws_on_input``; others ignore them.
            value: What ``predict`` returned, or a target.
            scale: By how much the images were enlarged.

        Returns:
            Images ``(B, 3, h, w)``, uint8, of any size; none for tasks that are no pictures.
        """
        return self.render(value)


def nothing_to_draw() -> Tensor:
    """Return the empty picture of tasks that are no pictures."""
    return torch.empty((0, 3, 1, 1), dtype=torch.uint8)
