"""DB-MTL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_mtl.balancers.base import Recompute
from lightning_mtl.balancers.gradient_weighting.base import GradientAggregation, GradientOptions
from lightning_mtl.balancers.gradient_weighting.gradient_memory import GradientMemory
from lightning_mtl.balancers.loss_weighting.base import loss_values
from lightning_mtl.functional.gradients import combine_rows, gramian
from lightning_mtl.functional.gramian import db_mtl


class DBMTL(GradientAggregation):
    r"""Take logarithms of the losses and bring their averaged gradients to one length (DB-MTL; Lin et al., 2023).

    .. math:: y_k \leftarrow \beta_t y_k + (1 - \beta_t) \nabla \log L_k, \qquad
        \hat g = \sum_k \frac{\max_j \|y_j\|}{\|y_k\|} y_k, \qquad \beta_t = \beta / t^{\sigma}

    Heads receive the gradient of the logarithm of their loss.

    State: the averages, which start at zero, K × P in at least float32 and in every checkpoint, and the number of steps
    of every task. Absent tasks keep theirs and take no part in the update.

    Args:
        beta: Decay :math:`\beta` of the averages, in [0, 1). 0.9 is LibMTL's default; 0 uses the gradients of the step.
        beta_decay: :math:`\sigma`, not negative: how fast the decay itself vanishes; 0 keeps it.
        options: See :class:`GradientOptions`.

    Shape:
        - Gradients ``(K, P)``; returns the update ``(P,)``.

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        Follows LibMTL, by the same authors, whose averages start at zero, so that the first update is
        :math:`1 - \beta_1` of a gradient. LibMTL adds 1e-8 to losses and norms, which switches the method off below
        that size; nothing is added here. A loss of exactly zero has nothing left to minimise and a gradient of zero;
        a negative one is divided by its magnitude. With several processes the logarithm is that of the mean loss.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = DBMTL(beta=0.0)
        >>> total = balancer({"a": x[0], "b": 2 * x[1] + 2}, shared=[x])  # gradients of the logarithms: 1 and 1/2
        >>> torch.autograd.grad(total, x)[0]
        tensor([1., 1.])

    References:
        Lin, Jiang, Ye, Zhang, Chen, Chen, Liu, Kwok. *Dual-Balancing for Multi-Task Learning*. 2023.
        https://arxiv.org/abs/2308.12029, Alg. 1. Authors' code: https://github.com/median-research-group/LibMTL, MIT.
    """

    memory: GradientMemory

    def __init__(self, beta: float = 0.9, beta_decay: float = 0.0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if self.balance != "micro_batch":
            raise ValueError('DBMTL: takes the logarithms in every call, so balance must be "micro_batch".')
        if not 0 <= beta < 1:
            raise ValueError(f"DBMTL: beta must be at least 0 and below 1, got {beta}.")
        if not beta_decay >= 0:
            raise ValueError(f"DBMTL: beta_decay must not be negative, got {beta_decay}.")
        self.beta = beta
        self.beta_decay = beta_decay

    def _create_state(self, num_tasks: int) -> None:
        self.memory = GradientMemory(num_tasks)

    def _looks_at_once(self, device: torch.device) -> bool:
        return True  # the state is too large to be kept twice until the gradients are known to be finite

    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        means = loss_values(torch.stack(list(losses.values()))).abs()
        # d log L = dL / L, with the value of the mean loss in the denominator
        factors = torch.where(means > 0, means, 1).reciprocal()
        logarithmic = {
            name: loss * factor for (name, loss), factor in zip(losses.items(), factors.unbind(), strict=True)
        }
        total = super()._combine(logarithmic, shared, features, recompute)
        weights = factors * torch.stack(list(self._weights.values())).to(factors.dtype)
        self._remember_weights(losses, weights)
        value = sum(weight * loss.detach() for weight, loss in zip(weights.unbind(), losses.values(), strict=True))
        return total + (value - total).detach()

    def aggregate(self, matrix: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the sum of the averages, all at the largest norm."""
        self.memory.fit(matrix)
        count = self.memory.step(rows)
        self.memory.move(rows, matrix, 1 - self.beta / count**self.beta_decay)
        tracked = self.memory.rows(rows)
        return combine_rows(db_mtl(gramian(tracked)), tracked)
