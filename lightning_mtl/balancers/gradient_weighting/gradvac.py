"""Gradient vaccine."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import put, take
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions
from lightning_mtl.balancers.gradient_weighting.pcgrad import PCGrad
from lightning_mtl.functional.gramian import gradvac


class GradVac(PCGrad):
    r"""Pull every pair of gradients to the similarity that it usually has (Wang et al., ICLR 2021).

    Where :class:`PCGrad` acts on cosines below zero, this acts on cosines :math:`\phi` below a goal
    :math:`\hat\phi_{ij}`, and adds as much of :math:`g_j` to :math:`g_i'` as brings the cosine to the goal:

    .. math:: g_i' \leftarrow g_i' + \frac{\|g_i'\| (\hat\phi \sqrt{1 - \phi^2} - \phi \sqrt{1 - \hat\phi^2})}
        {\|g_j\| \sqrt{1 - \hat\phi^2}} g_j, \qquad
        \hat\phi_{ij} \leftarrow (1 - \beta) \hat\phi_{ij} + \beta \phi, \qquad \hat g = \sum_i g_i'

    State: the goals, K × K, zero at the start. Goals of pairs with an absent task stay as they are. Orders are drawn as
    in :class:`PCGrad`.

    Args:
        beta: Step of the moving average of the similarities, between 0 and 1. The paper uses 0.01.
        seed: Seed of the orders.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, not below 1.

    Raises:
        ValueError: If ``beta`` is outside of [0, 1].

    Note:
        LibMTL and TorchJD have 0.5 as the default of ``beta``. As there, :math:`\phi` is measured to the gradient as
        modified so far. The goals are for the whole shared part (``whole_model`` in the paper); the paper's best
        setting keeps them for each layer, which is ``parameters=[...]`` for one layer here. Nothing is added to the
        denominators.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = GradVac()
        >>> total = balancer({"a": x[0], "b": x[1] - x[0]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]  # with goals of zero this is PCGrad
        tensor([0.5000, 1.5000])

    References:
        Wang, Tsvetkov, Firat, Cao. *Gradient Vaccine: Investigating and Improving Multi-task Optimization in Massively
        Multilingual Models*. ICLR 2021. https://arxiv.org/abs/2010.05874, Eq. 2-4 and Alg. 1.
    """

    goals: Tensor

    def __init__(self, beta: float = 0.01, seed: int = 0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(seed, **options)
        if not 0 <= beta <= 1:
            raise ValueError(f"GradVac: beta must be between 0 and 1, got {beta}; the paper uses 0.01.")
        self.beta = beta

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("goals", torch.zeros(num_tasks, num_tasks))

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the sum of the vaccinated gradients, and move the goals."""
        order = self.draw_order(len(rows)).to(gramian.device, non_blocking=True)
        columns = take(self.goals, rows).T
        weights, goals = gradvac(gramian, take(columns, rows).T, order, self.beta)
        columns = columns.contiguous()
        put(columns, rows, goals.T)
        put(self.goals, rows, columns.T)
        return weights
