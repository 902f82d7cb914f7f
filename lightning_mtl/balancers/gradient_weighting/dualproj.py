"""DualProj."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions
from lightning_mtl.balancers.gradient_weighting.preference import PreferenceGradientWeighting
from lightning_mtl.functional.gramian import dualproj


class DualProj(PreferenceGradientWeighting):
    r"""Project the mean gradient so that it harms no task (Lopez-Paz & Ranzato, NeurIPS 2017).

    .. math:: \hat g = \arg\min_{y : \langle g_j, y \rangle \ge 0 \; \forall j} \Big\| y - \sum_k p_k g_k \Big\|

    The projection of gradient episodic memory, with every task as a constraint. No state.

    Args:
        preference: Task name -> weight :math:`p_k` in the gradient that is projected; None is 1/K each.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, not below ``preference``.

    Raises:
        ValueError: If a preference is negative.

    Note:
        Exact at all norms and norm ratios; TorchJD adds 1e-4 to the diagonal of the normalized Gramian and takes the
        mean for norms below 0.01.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = DualProj()
        >>> total = balancer({"a": x[0], "b": x[1] - 3 * x[0]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([0.0000, 0.5000])

    References:
        Lopez-Paz, Ranzato. *Gradient Episodic Memory for Continual Learning*. NeurIPS 2017.
        https://arxiv.org/abs/1706.08840, Eq. 11.
    """

    def __init__(self, preference: dict[str, float] | None = None, **options: Unpack[GradientOptions]) -> None:
        super().__init__(preference, **options)

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the projection of the mean."""
        return dualproj(gramian, self.preference_of(rows))
