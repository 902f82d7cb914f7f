"""The loss half of impartial multi-task learning."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_mtl.balancers.base import Recompute, take
from lightning_mtl.balancers.loss_weighting.base import LossWeighting


class IMTLL(LossWeighting):
    r"""Learn a scale for each task that brings all losses to one (IMTL-L; Liu et al., ICLR 2021).

    Each task has a learned number :math:`s_k`, a parameter that the optimizer of the model must hold:

    .. math:: \sum_k e^{s_k} L_k - s_k, \qquad w_k = e^{s_k}

    At the minimum over :math:`s_k` every scaled loss is one: :math:`e^{s_k} L_k = 1`. The term :math:`-s_k` gives its
    gradient only: the value of the returned scalar is :math:`\sum_k w_k L_k`. A task that is absent from a call leaves
    its :math:`s_k` without gradient; there is no normalisation over the tasks.

    Args:
        tasks: Task names. They must be known before the optimizer is built; ``MultiTaskModule`` gives them.
        initial_log_scale: Start value of every :math:`s_k`; 0, as in LibMTL and TorchJD, starts at the sum of losses.

    Shape:
        - losses: ``(K,)``; returns positive weights ``(K,)``.

    Raises:
        ValueError: If the first call comes before the tasks are known.

    Note:
        Twice the Gaussian :class:`UncertaintyWeighting` at :math:`-s_k`. The paper's full method (IMTL) joins it with
        the gradient half IMTL-G. LibMTL offers it only in that hybrid. Losses should be positive: a negative one drives
        its scale up without bound.

    Example:
        >>> import torch
        >>> balancer = IMTLL(tasks=["a", "b"])
        >>> balancer({"a": torch.tensor(1.0), "b": torch.tensor(3.0)}).detach()
        tensor(4.)

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang. *Towards Impartial Multi-task Learning*. ICLR 2021.
        https://openreview.net/forum?id=IMPnRXEWpvr, Sec. 3.2.
    """

    reads_losses: ClassVar[bool] = False
    learns_parameters: ClassVar[bool] = True

    def __init__(self, tasks: Sequence[str] | None = None, initial_log_scale: float = 0.0) -> None:
        super().__init__()
        self.initial_log_scale = initial_log_scale
        self.bind(tasks)

    def _create_state(self, num_tasks: int) -> None:
        self.log_scales = nn.Parameter(torch.full((num_tasks,), float(self.initial_log_scale)))

    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        total = super()._combine(losses, shared, features, recompute)
        regulariser = -take(self.log_scales, self._index(losses)).sum()
        return total + regulariser - regulariser.detach()

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the learned weights; they carry the gradient of the learned numbers."""
        return torch.exp(take(self.log_scales, rows))
