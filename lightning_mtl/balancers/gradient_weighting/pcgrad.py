"""Projecting conflicting gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gramian import pcgrad


class PCGrad(GradientWeighting):
    r"""Remove from every gradient what points against another one (Yu et al., NeurIPS 2020).

    For each task :math:`i`, from :math:`g_i^{PC} = g_i` on, the other tasks :math:`j` are visited in random order:

    .. math:: g_i^{PC} \leftarrow g_i^{PC} - \frac{\min(\langle g_i^{PC}, g_j \rangle, 0)}{\|g_j\|^2} g_j,
        \qquad \hat g = \sum_i g_i^{PC}

    The orders depend on ``seed`` and the number of the step alone: all processes draw the same, and a resumed run goes
    on with the same draws. No state beside the number of the step.

    Args:
        seed: Seed of the orders.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, not below 1.

    Note:
        As in the paper and TorchJD nothing is added to the denominator, which is positive where it is used; LibMTL adds
        1e-8 to the squared norm, 9 % off for gradients of norm 1e-4. The update is a sum, as in the paper and in both
        libraries; the PyTorch ports with a "mean" reduction divide by K.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = PCGrad()
        >>> total = balancer({"a": x[0], "b": x[1] - x[0]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([0.5000, 1.5000])

    References:
        Yu, Kumar, Gupta, Levine, Hausman, Finn. *Gradient Surgery for Multi-Task Learning*. NeurIPS 2020.
        https://arxiv.org/abs/2001.06782, Alg. 1. Authors' code: https://github.com/tianheyu927/PCGrad, MIT.
    """

    def __init__(self, seed: int = 0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        self.seed = seed

    def draw_order(self, num_tasks: int) -> Tensor:
        """Return one random order of the tasks a row, ``(num_tasks, num_tasks)`` int64 on the CPU."""
        return torch.rand(num_tasks, num_tasks, generator=self.generator()).argsort(dim=1)

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the sum of the projected gradients."""
        return pcgrad(gramian, self.draw_order(len(rows)).to(gramian.device, non_blocking=True))
