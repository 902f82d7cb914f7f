"""The loss half of dual-balancing multi-task learning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mtl.balancers.loss_weighting.base import LossWeighting


class LogTransform(LossWeighting):
    r"""Minimise the sum of the logarithms of the losses (loss half of DB-MTL; Lin et al., 2023).

    .. math:: S = \sum_k \log L_k, \qquad w_k = \frac{\partial S}{\partial L_k} = \frac{1}{L_k}

    No state. The update does not change when a loss is multiplied by a constant. Every weighted loss is 1, so the value
    of the returned scalar is the number of tasks: monitor the losses of the tasks instead. There is no normalisation
    over the tasks. A loss of exactly zero has nothing left to minimise and gets weight 0; a negative loss is divided by
    its magnitude.

    Args:
        tasks: Task names; None binds them at the first call.

    Shape:
        - losses: ``(K,)``, positive; returns weights ``(K,)``.

    Note:
        The authors and LibMTL add 1e-8 to every loss, which switches the scaling off below that size; nothing is added
        here. The gradient half of DB-MTL is a gradient method.

    Example:
        >>> import torch
        >>> balancer = LogTransform()
        >>> _ = balancer({"a": torch.tensor(0.5), "b": torch.tensor(4.0)})
        >>> balancer.weights["a"], balancer.weights["b"]
        (tensor(2.), tensor(0.2500))

    References:
        Lin, Jiang, Ye, Zhang, Chen, Chen, Liu, Kwok. *Dual-Balancing for Multi-Task Learning*. 2023.
        https://arxiv.org/abs/2308.12029, Sec. 3.1.
    """

    def __init__(self, tasks: Sequence[str] | None = None) -> None:
        super().__init__()
        self.bind(tasks)

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the reciprocals of the losses."""
        exists = losses.isfinite() & (losses != 0)
        magnitudes = losses.abs().clamp(min=torch.finfo(losses.dtype).tiny)
        return torch.where(exists, magnitudes.reciprocal(), 0.0)
