"""UPGrad."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions
from lightning_mtl.balancers.gradient_weighting.preference import PreferenceGradientWeighting
from lightning_mtl.functional.gramian import upgrad


class UPGrad(PreferenceGradientWeighting):
    r"""Average the gradients, each projected so that it harms no task (Quinton & Rey, 2024).

    .. math:: \hat g = \sum_k p_k \, \pi(g_k), \qquad
        \pi(x) = \arg\min_{y : \langle g_j, y \rangle \ge 0 \; \forall j} \|y - x\|

    No task's loss increases to first order, and a task with a larger gradient has more influence. No state.

    Args:
        preference: Task name -> weight :math:`p_k` of its projection; None is 1/K each.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, not below ``preference``.

    Raises:
        ValueError: If a preference is negative.

    Note:
        The projections are exact at all norms and norm ratios. TorchJD and LibMTL add 1e-4 to the diagonal of the
        normalized Gramian, with which most conflicting gradients of norm ratio 10 harm a task, and take the mean for
        norms below 0.01.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = UPGrad()
        >>> total = balancer({"a": x[0], "b": x[1] - x[0]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([0.2500, 0.7500])

    References:
        Quinton, Rey. *Jacobian Descent for Multi-Objective Optimization*. 2024. https://arxiv.org/abs/2406.16232, Eq. 6
        and Prop. 1. Authors' code: https://github.com/SimplexLab/TorchJD, MIT.
    """

    def __init__(self, preference: dict[str, float] | None = None, **options: Unpack[GradientOptions]) -> None:
        super().__init__(preference, **options)

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the average of the projections."""
        return upgrad(gramian, self.preference_of(rows))
