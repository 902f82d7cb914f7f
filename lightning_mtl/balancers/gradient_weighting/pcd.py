"""Priority-constrained descent."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import put, take
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gramian import pcd


class PCD(GradientWeighting):
    r"""Follow the primary task, with guaranteed progress of the others (PCD; TMLR 2026).

    .. math:: \tilde d = \arg\min_d \tfrac12 \|d - \tilde g_1\|^2 \quad \text{s.t. }
        \langle \tilde g_j, d \rangle \ge \tau \|\tilde g_j\|^2, \; j = 2, \dots, K, \qquad
        \tilde g_k = g_k / \sqrt{\hat v_k}

    The update is :math:`\tilde d` with the norm of :math:`g_1`. :math:`\hat v_k` is the bias-corrected moving average
    of :math:`\|g_k\|^2`.

    State: the moving averages and the number of steps of every task. Absent tasks keep theirs.

    Args:
        primary: Name of the primary task; None takes the first one of the binding.
        tau: Fraction of the progress along its own gradient that is guaranteed to every other task, in [0, 1]. The
            paper uses 0.02.
        beta: Decay of the moving averages, in [0, 1); 0.999 as in TorchJD.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``.

    Raises:
        ValueError: If an argument is out of its range, or ``primary`` is no task.

    Note:
        As in TorchJD, constraints that cannot all be met are dropped. TorchJD adds 1e-8 to the averages of squared
        norms; nothing is added here. Where the primary task is absent from a call or its gradient is zero, the shared
        part gets no update.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = PCD(primary="a", tau=0.0)
        >>> total = balancer({"a": x[0], "b": x[1] - x[0]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]  # the part of a that does not harm b, as long as a
        tensor([0.7071, 0.7071])

    References:
        *Not All Objectives Are Born Equal: Priority-Constrained Descent for Hierarchical Multi-Objective Optimization*.
        TMLR 2026. https://openreview.net/forum?id=HT01yGHLEt. Authors' code:
        https://github.com/DaraVaram/priority-constrained-descent.
    """

    square_norms: Tensor
    count: Tensor

    def __init__(
        self,
        primary: str | None = None,
        tau: float = 0.02,
        beta: float = 0.999,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(**options)
        if not 0 <= tau <= 1:
            raise ValueError(f"PCD: tau must be between 0 and 1, got {tau}; the paper uses 0.02.")
        if not 0 <= beta < 1:
            raise ValueError(f"PCD: beta must be at least 0 and below 1, got {beta}.")
        self.primary = primary
        self.tau = tau
        self.beta = beta

    def _create_state(self, num_tasks: int) -> None:
        if self.primary is not None and self.primary not in self.task_names:
            raise ValueError(f"PCD: primary must be one of {list(self.task_names)}, got {self.primary!r}.")
        self.register_buffer("square_norms", torch.zeros(num_tasks))
        self.register_buffer("count", torch.zeros(num_tasks))

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the constrained descent, and move the averages."""
        count = take(self.count, rows) + 1
        average = self.beta * take(self.square_norms, rows)
        average = average + (1 - self.beta) * gramian.diagonal().clamp(min=0).to(average.dtype)
        put(self.count, rows, count)
        put(self.square_norms, rows, average)
        first = 0 if self.primary is None else self.task_names.index(self.primary)
        if first not in rows:
            return torch.zeros_like(losses)
        corrected = average / (1 - self.beta**count)
        scales = torch.where(corrected > 0, torch.where(corrected > 0, corrected, 1).rsqrt(), 0)
        place = rows.index(first)
        weights = pcd(_to_front(_to_front(gramian, place).T, place), self.tau, _to_front(scales, place))
        return torch.cat([weights[1 : place + 1], weights[:1], weights[place + 1 :]])


def _to_front(values: Tensor, place: int) -> Tensor:
    return torch.cat([values[place : place + 1], values[:place], values[place + 1 :]])
