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
        values = stacked.detach()
        values = values.to(torch.promote_types(values.dtype, torch.float32))
        if self.reads_losses:
            values = mean_over_ranks(values)
        weights = self.compute_weights(values, self._index(losses))
        self._remember_weights(losses, weights)
        return (weights * stacked).sum()

    @abstractmethod
    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the present tasks, and update the state.

        Args:
            losses: Values of the present tasks' losses, shape ``(k,)``, detached, at least float32, alike on all ranks.
            rows: Their rows in the state.

        Returns:
            Weights, shape ``(k,)``. They carry a gradient only where the method learns them by gradient descent.
        """
