"""Exact Pareto optimal search."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import take
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.balancers.gradient_weighting.preference import check_preference
from lightning_mtl.functional.gramian import epo


class EPO(GradientWeighting):
    r"""Descend to the Pareto optimum on a preference ray (EPO search; Mahapatra & Rajan, ICML 2020).

    The search looks for the Pareto optimum at which :math:`r_k L_k` is the same for all tasks. While these differ, it
    moves towards the ray, and tasks may go up in a controlled way; on the ray it descends. Each step solves a linear
    program in the weights. No state.

    Args:
        preference: Task name -> :math:`r_k`, not negative; the ray is :math:`L_k \propto 1 / r_k`. None is equal.
        tolerance: Non-uniformity of :math:`r_k L_k` below which the search descends; 1e-4 as in the authors' code.
        relax: Descend without keeping to the ray.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, not negative, with sum K.

    Raises:
        ValueError: If a preference or ``tolerance`` is negative.

    Note:
        Weights sum to the number of the present tasks as in the authors' training loop. They hand the program to a
        general solver; here it is an interior-point method that stays on the device. Losses must be positive: negative
        ones count as zero.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = EPO()
        >>> total = balancer({"a": 2 * x[0], "b": x[1]}, shared=[x])  # a is too high
        >>> round(float(balancer.weights["a"]), 4)
        2.0

    References:
        Mahapatra, Rajan. *Multi-Task Learning with User Preferences: Gradient Descent with Controlled Ascent in Pareto
        Optimization*. ICML 2020. https://proceedings.mlr.press/v119/mahapatra20a.html, Eq. 24 and Alg. 1. Authors'
        code: https://github.com/dbmptr/EPOSearch, MIT.
    """

    preference_values: Tensor

    def __init__(
        self,
        preference: dict[str, float] | None = None,
        tolerance: float = 1e-4,
        relax: bool = False,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(**options)
        check_preference("EPO", "preference", preference)
        if not tolerance >= 0:
            raise ValueError(f"EPO: tolerance must not be negative, got {tolerance}; the authors use 1e-4.")
        self.preference = preference
        self.tolerance = tolerance
        self.relax = relax
        self.weight_degree = 0

    def _create_state(self, num_tasks: int) -> None:
        values = self._per_task("preference", self.preference, 1 / num_tasks)
        self.register_buffer("preference_values", values, persistent=False)

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the search."""
        losses = losses.clamp(min=0)
        losses = torch.where((losses > 0).any(), losses, 1)
        return len(rows) * epo(gramian, losses, take(self.preference_values, rows), self.tolerance, self.relax)
