"""Pareto MTL."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import take
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.balancers.gradient_weighting.preference import check_preference
from lightning_mtl.functional.gramian import pmtl


class PMTL(GradientWeighting):
    r"""Descend within the region of the losses that belongs to one preference (Pareto MTL; Lin et al., NeurIPS 2019).

    Preference vectors :math:`u_1, \dots, u_M` cut the space of the losses into regions, in each of which one model is
    trained, so that together the models cover the Pareto front. In the region of :math:`u_i` all
    :math:`\langle u_j - u_i, L \rangle \le 0`. The update is the shortest vector in the hull of the task gradients and
    of the gradients of the violated constraints. A first phase follows the violated constraints alone; it ends when
    none is left, or after ``initial_epochs`` epochs.

    State: whether the first phase has ended.

    Args:
        preferences: One mapping task name -> number for each region, not negative. The authors spread them evenly over
            the unit sphere.
        index: Region in which this model is trained.
        initial_epochs: Longest duration of the first phase; 2 as in the authors' code.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, possibly negative, whose magnitudes sum to K unless all are zero.

    Raises:
        ValueError: If a preference is negative, or ``index`` is no region.

    Note:
        The point of smallest norm is exact where the authors use Frank-Wolfe steps. As in their training loop the
        weights are scaled such that their magnitudes sum to the number of the present tasks. When tasks are absent,
        regions are those of the present ones.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = PMTL([{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}], index=0)
        >>> total = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])  # b is too large for this region
        >>> balancer.weights["a"], balancer.weights["b"]
        (tensor(-1.), tensor(1.))

    References:
        Lin, Zhen, Li, Zhang, Kwong. *Pareto Multi-Task Learning*. NeurIPS 2019. https://arxiv.org/abs/1912.12854, Eq.
        11-13 and Alg. 1. Authors' code: https://github.com/Xi-L/ParetoMTL, MIT.
    """

    rays: Tensor
    in_region: Tensor

    def __init__(
        self,
        preferences: list[dict[str, float]],
        index: int,
        initial_epochs: int = 2,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(**options)
        for ray in preferences:
            check_preference("PMTL", "preferences", ray)
        if not 0 <= index < len(preferences):
            raise ValueError(f"PMTL: index must be one of {len(preferences)} preferences, from 0 on, got {index}.")
        if not initial_epochs >= 0:
            raise ValueError(f"PMTL: initial_epochs must not be negative, got {initial_epochs}.")
        self.preferences = preferences
        self.index = index
        self.initial_epochs = initial_epochs

    def _create_state(self, num_tasks: int) -> None:
        rays = [self._per_task("preferences", ray, 0.0) for ray in self.preferences]
        self.register_buffer("rays", torch.stack(rays, dim=1), persistent=False)  # one row a task
        self.register_buffer("in_region", torch.zeros(()))

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the restricted descent, or those of the way into the region."""
        rays = take(self.rays, rows).T.to(losses.dtype)
        weights = pmtl(gramian, losses, rays, self.index)
        if self.epochs < self.initial_epochs:
            inside = ((rays - rays[self.index]) @ losses <= 0).all()
            self.in_region.copy_(torch.where(inside, 1, self.in_region))
            weights = torch.where(self.in_region > 0, weights, pmtl(gramian, losses, rays, self.index, initial=True))
        size = weights.abs().sum()
        return weights * (len(rows) / torch.where(size > 0, size, 1))
