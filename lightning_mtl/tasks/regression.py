"""Regression of samples."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from lightning_mtl.losses.regression import AbsoluteError, Huber, SquaredError
from lightning_mtl.metrics import (
    LabelledMAE,
    LabelledPearson,
    LabelledR2,
    LabelledRMSE,
    LabelledSpearman,
    TaskMetrics,
)
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.supervised import SampleTask, in_float32

_LOSSES = {"mse": SquaredError, "l1": AbsoluteError, "huber": Huber}


class Regression(SampleTask):
    """Predict one or several numbers for a sample; NaN marks numbers that are missing.

    The loss is the mean over the known entries; metrics ``mae`` and ``rmse`` over entries, ``r2``, ``pearson`` and
    ``spearman`` averaged over the outputs.

    Args:
        num_outputs: Numbers per sample.
        loss: Squared error, absolute error, or Huber's loss with delta 1.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: ``(B, num_outputs)``.
        - target: ``(B, num_outputs)``, or ``(B,)`` for one output.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> task = Regression(num_outputs=2, loss="l1")
        >>> task.loss(torch.zeros(1, 2), torch.tensor([[3.0, float("nan")]]))
        tensor(3.)
    """

    def __init__(
        self,
        num_outputs: int = 1,
        loss: Literal["mse", "l1", "huber"] = "mse",
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        if num_outputs < 1:
            raise ValueError(f"{type(self).__name__}: num_outputs must be at least 1, got {num_outputs}.")
        if loss not in _LOSSES:
            raise ValueError(f"{type(self).__name__}: loss must be one of {list(_LOSSES)}, got {loss!r}.")
        self.out_channels = num_outputs
        self.criterion = _LOSSES[loss]()
        self.metrics = TaskMetrics(
            {
                "mae": LabelledMAE(num_outputs),
                "rmse": LabelledRMSE(num_outputs),
                "r2": LabelledR2(num_outputs),
                "pearson": LabelledPearson(num_outputs),
                "spearman": LabelledSpearman(num_outputs),
            },
            shared=[["mae", "rmse", "r2", "pearson"]],
        )

    def loss(self, prediction: Any, target: Any) -> Tensor:
        """Return the mean loss over the known entries, exactly zero without any.

        Raises:
            ValueError: If the shapes do not fit or a target is infinite.
        """
        return super().loss(prediction, target.unsqueeze(1) if target.ndim == 1 else target)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the numbers, ``(B, num_outputs)``."""
        return in_float32(prediction)
