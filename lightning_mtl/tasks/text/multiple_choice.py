"""Multiple choice: one of several alternatives is right."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from lightning_mtl.losses.classification import CrossEntropy
from lightning_mtl.metrics import LabelledAccuracy, TaskMetrics
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.supervised import in_float32
from lightning_mtl.tasks.text.base import TextTask


class MultipleChoice(TextTask):
    """Choose one of several alternatives, each of which is a text of its own.

    Every alternative gets one score from the same head; softmax cross entropy over the alternatives; metric
    ``accuracy``. ``predict`` gives probabilities.

    Args:
        num_choices: Number of alternatives C, at least 2.
        ignore_index: Label of unlabelled samples.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - features: vectors ``(B, C, D)`` or tokens ``(B, C, L, D)``.
        - prediction: logits ``(B, C)``.
        - target: integers ``(B,)``.

    Raises:
        ValueError: If an argument is out of range, or the features are not of C alternatives.

    Example:
        >>> import torch
        >>> task = MultipleChoice(num_choices=2)
        >>> task.loss(torch.zeros(3, 2), torch.tensor([0, 1, -100]))
        tensor(0.6931)
    """

    out_channels = 1

    def __init__(
        self,
        num_choices: int,
        ignore_index: int = -100,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        if num_choices < 2:
            raise ValueError(f"MultipleChoice: num_choices must be at least 2, got {num_choices}.")
        self.num_choices = num_choices
        self.criterion = CrossEntropy(num_choices, ignore_index)
        self.metrics = TaskMetrics({"accuracy": LabelledAccuracy(ignore_index)})

    def forward(self, features: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Return the score of every alternative.

        Args:
            features: What the encoder gave: ``(B, C, D)``, or ``(B, C, L, D)``.
            size: Not used.
        """
        scores: Tensor = super().forward(features)
        if scores.ndim != 3 or scores.shape[1:] != (self.num_choices, 1):
            raise ValueError(
                f"MultipleChoice: features must be of {self.num_choices} alternatives, (B, {self.num_choices}, ...), "
                f"got {tuple(features.shape)}, of which the head made {tuple(scores.shape)}; give the alternatives a "
                "dimension of their own in input_ids."
            )
        return scores.squeeze(-1)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the probability of every alternative, ``(B, C)``."""
        return in_float32(prediction).softmax(1)
