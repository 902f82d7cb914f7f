"""Impartial multi-task learning: its gradient half, and both halves."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_mtl.balancers.base import Recompute, take
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gramian import imtl_g


class IMTLG(GradientWeighting):
    r"""Give the update the same projection on every task's gradient (IMTL-G; Liu et al., ICLR 2021).

    .. math:: \Big\langle \sum_j w_j g_j, \frac{g_k}{\|g_k\|} \Big\rangle = \text{const for all } k, \qquad
        \sum_k w_k = 1

    No state. Weights may be negative.

    Args:
        options: See :class:`GradientOptions`. The paper compares the gradients at the features (``at="features"``).

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)`` that sum to 1.

    Note:
        The pseudo-inverse is used as in TorchJD, so that dependent and zero gradients have a solution; LibMTL inverts
        and returns NaN for a zero gradient. Where the unnormalized weights have a negative sum, the paper's
        normalization turns the update uphill; this is rare and kept.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = IMTLG()
        >>> total = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([0.6667, 0.6667])

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang. *Towards Impartial Multi-task Learning*. ICLR 2021.
        https://openreview.net/forum?id=IMPnRXEWpvr, Eq. 2-4.
    """

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights with equal projections."""
        return imtl_g(gramian)


class IMTL(IMTLG):
    r"""Scale all losses to one and equalize the projections of their gradients (IMTL; Liu et al., ICLR 2021).

    Joins IMTL-L and IMTL-G. Each task has a learned number :math:`s_k`, a parameter that the optimizer of the model
    must hold. Heads and :math:`s_k` descend the scaled losses, the shared part the IMTL-G combination of their
    gradients, so that the loss of a task enters with :math:`w_k = \alpha_k e^{s_k}`:

    .. math:: L_k' = e^{s_k} L_k - s_k, \qquad \hat g = \sum_k \alpha_k \nabla L_k'

    with :math:`\alpha` of :class:`IMTLG`. A task that is absent from a call leaves its :math:`s_k` without gradient.
    The term :math:`-s_k` gives its gradient only: the value of the returned scalar is :math:`\sum_k w_k L_k`.

    Args:
        initial_log_scale: Start value of every :math:`s_k`; 0, as in LibMTL.
        options: See :class:`GradientOptions`. ``tasks`` must be known before the optimizer is built;
            ``MultiTaskModule`` gives them. ``head_gradients="weighted"`` multiplies the scaled gradients of the heads
            by :math:`\alpha_k`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``.

    Raises:
        ValueError: If the first call comes before the tasks are known, or gradients are to be accumulated.

    Note:
        As in the paper and in LibMTL, heads receive the gradient of their scaled loss, without :math:`\alpha_k`.
        Losses should be positive: a negative one drives its scale up without bound.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = IMTL(tasks=["a", "b"])
        >>> total = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])
        >>> torch.autograd.grad(total, [x, balancer.log_scales])
        (tensor([0.6667, 0.6667]), tensor([0., 1.]))

    References:
        Liu, Li, Kuang, Xue, Chen, Yang, Liao, Zhang. *Towards Impartial Multi-task Learning*. ICLR 2021.
        https://openreview.net/forum?id=IMPnRXEWpvr, Alg. 1.
    """

    learns_parameters: ClassVar[bool] = True

    def __init__(self, initial_log_scale: float = 0.0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if self.balance != "micro_batch":
            raise ValueError('IMTL: scales the losses of every call, so balance must be "micro_batch".')
        self.initial_log_scale = initial_log_scale

    def _create_state(self, num_tasks: int) -> None:
        self.log_scales = nn.Parameter(torch.full((num_tasks,), float(self.initial_log_scale)))

    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        log_scales = take(self.log_scales, self._index(losses))
        scales = log_scales.detach().exp()
        scaled = {name: loss * scale for (name, loss), scale in zip(losses.items(), scales.unbind(), strict=True)}
        total = super()._combine(scaled, shared, features, recompute)
        self._remember_weights(losses, torch.stack(list(self._weights.values())) * scales)
        values = torch.stack([loss.detach() for loss in losses.values()])
        finite = values.isfinite()
        learned = log_scales.exp() * torch.where(finite, values, 0) - log_scales
        objective = torch.where(finite, learned, 0).sum()
        return total + (objective - objective.detach()).to(total.dtype)
