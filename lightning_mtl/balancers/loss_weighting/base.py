"""The contract of loss weighting: loss values in, one weight a task out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_mtl.balancers.base import Balancer, Recompute, mean_over_ranks


class LossWeighting(Balancer):
    """A balancer that returns ``sum_k w_k L_k`` with weights that depend on the values of the losses.

    The weights are computed from the mean of every loss over all processes, so they are the same everywhere. A method
    whose objective is a nonlinear function ``S(L_1, ..., L_K)`` returns its partial derivatives ``w_k = dS/dL_k``: the
    gradient of the weighted sum is then the gradient of ``S`` on the joined batch. Heads receive the weighted loss.

    With several processes, every process must pass the same tasks in a step; ``MultiTaskModule`` sees to that.
    """

    reads_losses: ClassVar[bool] = True
    """Whether the weights depend on the losses; if not, processes need not exchange them."""

    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        stacked = torch.stack(list(losses.values()))
        weights = self.compute_weights(loss_values(stacked, exchange=self.reads_losses), self._index(losses))
        self._remember_weights(losses, weights)
        return (weights * stacked).sum()

    @abstractmethod
    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the present tasks, and update the state.

        Args:
            losses: Values of the present tasks' losses, shape ``(k,)``, detached, at least float32, alike on all ranks.
            rows: Their rows in the state, ascending.

        Returns:
            Weights, shape ``(k,)``. They carry a gradient only where the method learns them by gradient descent.
        """


def loss_values(losses: Tensor, exchange: bool = True) -> Tensor:
    """Return the losses as numbers to compute with: detached, at least float32, and the mean over all processes.

    Args:
        losses: Stacked losses, shape ``(k,)``.
        exchange: Whether to average over the processes.
    """
    values = losses.detach()
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    return mean_over_ranks(values) if exchange else values


def log_magnitude(losses: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``log |L|`` and where it exists, for methods that divide by the losses.

    A loss of exactly zero has nothing left to minimise and no logarithm; methods treat its task as absent. There and
    where the loss is not finite the first result is 0. No constant is added, so tiny losses keep their scale.

    Args:
        losses: Loss values, any shape.

    Example:
        >>> log_magnitude(torch.tensor([1.0, 0.0]))
        (tensor([0., 0.]), tensor([ True, False]))
    """
    exists = losses.isfinite() & (losses != 0)
    return torch.where(exists, losses, 1.0).abs().log(), exists
