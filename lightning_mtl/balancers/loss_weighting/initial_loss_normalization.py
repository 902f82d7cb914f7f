"""Division by the losses at the start of training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mtl.balancers.base import put, take
from lightning_mtl.balancers.loss_weighting.base import LossWeighting


class InitialLossNormalization(LossWeighting):
    r"""Divide each loss by its value at the start of training, so that all begin at one.

    .. math:: w_k = \frac{1}{L_k(0)}, \qquad L_k(0) = \frac{1}{n} \sum_{t=1}^{n} L_k(t)

    with the mean over the first n calls in which task k had a loss; until then the mean so far is used. State: that
    mean and its number of calls. There is no normalisation over the tasks, and an absent task starts when it comes.
    Losses of zero and such that are not finite do not count; a task without any other has weight 1. A negative loss
    counts with its magnitude.

    Args:
        tasks: Task names; None binds them at the first call.
        num_steps: Calls n over which the start value is averaged. 1 takes the first loss, as GradNorm does for its
            training rates; more are steadier where the batches are small. Ours.

    Shape:
        - losses: ``(K,)``; returns positive weights ``(K,)``, constant after n calls.

    Raises:
        ValueError: If ``num_steps`` is not positive.

    Note:
        Common practice without a paper of its own; the loss ratio :math:`L_k(t) / L_k(0)` is the inverse training rate
        of GradNorm.

    Example:
        >>> import torch
        >>> balancer = InitialLossNormalization()
        >>> balancer({"a": torch.tensor(2.0), "b": torch.tensor(50.0)})
        tensor(2.)
        >>> balancer({"a": torch.tensor(1.0), "b": torch.tensor(25.0)})
        tensor(1.)

    References:
        Chen, Badrinarayanan, Lee, Rabinovich. *GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep
        Multitask Networks*. ICML 2018. https://arxiv.org/abs/1711.02257, Sec. 3.1.
    """

    mean: Tensor
    count: Tensor

    def __init__(self, tasks: Sequence[str] | None = None, num_steps: int = 1) -> None:
        super().__init__()
        if num_steps < 1:
            raise ValueError(f"InitialLossNormalization: num_steps must be positive, got {num_steps}.")
        self.num_steps = num_steps
        self.bind(tasks)

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("mean", torch.zeros(num_tasks))
        self.register_buffer("count", torch.zeros(num_tasks))

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the reciprocals of the start values, and measure them while the start lasts."""
        mean, count = take(self.mean, rows), take(self.count, rows)
        measure = losses.isfinite() & (losses != 0) & (count < self.num_steps)
        count = count + measure
        mean = mean + torch.where(measure, losses.abs() - mean, 0.0) / count.clamp(min=1)
        put(self.mean, rows, mean)
        put(self.count, rows, count)
        return torch.where(count > 0, mean.clamp(min=torch.finfo(mean.dtype).tiny), 1.0).reciprocal()
