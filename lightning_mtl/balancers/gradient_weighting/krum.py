"""Krum and Multi-Krum."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gramian import krum


class Krum(GradientWeighting):
    r"""Average the gradients that lie closest to their neighbours (Blanchard et al., NeurIPS 2017).

    The score of a task is the sum of the distances to its :math:`K - f - 2` nearest neighbours; the gradients with the
    lowest scores are averaged (Multi-Krum), the others take no part. It withstands gradients that are arbitrarily
    wrong, such as those of tasks with corrupt labels, as long as the tasks should agree. No state.

    Args:
        n_byzantine: Number :math:`f` of tasks whose gradients may be arbitrary; at least ``n_byzantine + 3`` tasks are
            needed. When tasks are absent from a call, as many are allowed for as the present ones bear.
        n_selected: Number of gradients that are averaged; 1 is Krum.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)`` that sum to 1.

    Raises:
        ValueError: If there are too few tasks.

    Note:
        Distances are summed as in TorchJD; the paper sums their squares. With fewer than three present tasks there is
        no majority, and all are averaged.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = Krum(n_byzantine=1, n_selected=3)
        >>> losses = {"a": x[0], "b": x[0], "c": x[0] + x[1], "d": 100 * x[1]}
        >>> torch.autograd.grad(balancer(losses, shared=[x]), x)[0]
        tensor([1.0000, 0.3333])

    References:
        Blanchard, El Mhamdi, Guerraoui, Stainer. *Machine Learning with Adversaries: Byzantine Tolerant Gradient
        Descent*. NeurIPS 2017. https://papers.nips.cc/paper/2017/hash/f4b9ec30ad9f68f89b29639786cb62ef-Abstract.html,
        Sec. 4.
    """

    def __init__(self, n_byzantine: int, n_selected: int = 1, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if n_byzantine < 0:
            raise ValueError(f"Krum: n_byzantine must not be negative, got {n_byzantine}.")
        if n_selected < 1:
            raise ValueError(f"Krum: n_selected must be at least 1, got {n_selected}.")
        self.n_byzantine = n_byzantine
        self.n_selected = n_selected

    def _create_state(self, num_tasks: int) -> None:
        fewest = max(self.n_byzantine + 3, self.n_selected)
        if num_tasks < fewest:
            raise ValueError(
                f"Krum: n_byzantine={self.n_byzantine} and n_selected={self.n_selected} need at least {fewest} tasks, "
                f"got {num_tasks}; lower them."
            )

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return equal weights for the chosen tasks, 0 for the others."""
        count = len(rows)
        if count < 3:
            return torch.full_like(losses, 1 / count)
        return krum(gramian, min(self.n_byzantine, count - 3), min(self.n_selected, count))
