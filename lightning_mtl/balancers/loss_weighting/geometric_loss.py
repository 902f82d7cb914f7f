"""Geometric loss strategy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mtl.balancers.loss_weighting.base import LossWeighting, log_magnitude


class GeometricLoss(LossWeighting):
    r"""Minimise the geometric mean of the losses (GLS; Chennupati et al., CVPR workshops 2019).

    .. math:: S = \Big(\prod_k L_k\Big)^{1/K}, \qquad w_k = \frac{\partial S}{\partial L_k} = \frac{S}{K L_k}

    No state. The value of the returned scalar is S. Scaling one loss scales the whole gradient and changes no
    trade-off. The mean runs over the present tasks. A loss of exactly zero has nothing left to minimise and is treated
    as absent, with weight 0, else it would stop the other tasks; a negative loss counts with its magnitude.

    Args:
        tasks: Task names; None binds them at the first call.

    Shape:
        - losses: ``(K,)``, positive; returns weights ``(K,)`` with :math:`\sum_k w_k L_k = S`.

    Note:
        LibMTL and TorchJD compute the same on positive losses and give zero or infinite gradients where one is zero.
        The paper's focused variant, which gives chosen tasks a second factor, is not here.

    Example:
        >>> import torch
        >>> GeometricLoss()({"a": torch.tensor(1.0), "b": torch.tensor(4.0)})
        tensor(2.)

    References:
        Chennupati, Sistu, Yogamani, Rawashdeh. *MultiNet++: Multi-Stream Feature Aggregation and Geometric Loss
        Strategy for Multi-Task Learning*. CVPR workshops 2019. https://arxiv.org/abs/1904.08492, Sec. 3.
    """

    def __init__(self, tasks: Sequence[str] | None = None) -> None:
        super().__init__()
        self.bind(tasks)

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the partial derivatives of the geometric mean."""
        logs, exists = log_magnitude(losses)
        count = exists.sum().clamp(min=1)
        return torch.where(exists, torch.exp(logs.sum() / count - logs) / count, 0.0)
