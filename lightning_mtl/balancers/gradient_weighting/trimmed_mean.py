"""Coordinate-wise trimmed mean."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientAggregation, GradientOptions
from lightning_mtl.functional.matrix import trimmed_mean


class TrimmedMean(GradientAggregation):
    r"""Average every coordinate of the gradients without its extreme entries (Yin et al., ICML 2018).

    It withstands ``trim_number`` tasks with arbitrarily wrong gradients, as long as the tasks should agree. No state.
    Heads receive the gradient of their own loss.

    Args:
        trim_number: Number of largest and of smallest entries that are left out of every coordinate; more than twice
            as many tasks are needed. When tasks are absent from a call, as many are left out as the present ones bear.
        options: See :class:`GradientOptions`.

    Shape:
        - Gradients ``(K, P)``; returns the update ``(P,)``.

    Raises:
        ValueError: If there are too few tasks.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = TrimmedMean(trim_number=1)
        >>> total = balancer({"a": x[0], "b": 2 * x[0] + x[1], "c": 100 * x[0]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([2., 0.])

    References:
        Yin, Chen, Ramchandran, Bartlett. *Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates*.
        ICML 2018. https://arxiv.org/abs/1803.01498, Def. 2.
    """

    def __init__(self, trim_number: int, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if trim_number < 0:
            raise ValueError(f"TrimmedMean: trim_number must not be negative, got {trim_number}.")
        self.trim_number = trim_number

    def _create_state(self, num_tasks: int) -> None:
        if num_tasks <= 2 * self.trim_number:
            raise ValueError(
                f"TrimmedMean: trim_number={self.trim_number} needs more than {2 * self.trim_number} tasks, got "
                f"{num_tasks}; lower it."
            )

    def aggregate(self, matrix: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the trimmed mean of every column."""
        return trimmed_mean(matrix, min(self.trim_number, (len(rows) - 1) // 2))
