"""Conflict-averse gradient descent."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gramian import cagrad


class CAGrad(GradientWeighting):
    r"""Improve the worst-off task as much as possible near the mean gradient (Liu et al., NeurIPS 2021).

    .. math:: \hat g = \arg\max_d \min_k \langle g_k, d \rangle \quad \text{s.t. } \|d - g_0\| \le c \|g_0\|,
        \qquad g_0 = \frac1K \sum_k g_k

    No state. For c < 1 the method converges to a minimum of the mean loss.

    Args:
        c: Radius of the ball relative to the mean gradient, not negative. The paper uses 0.4 on NYUv2 and Cityscapes;
            0.5 is LibMTL's default. 0 is the mean gradient; from 1 on no task is harmed.
        rescale: 0 returns the paper's update, 1 divides it by :math:`1 + c^2` (the default of LibMTL and of the
            authors' code), 2 by :math:`1 + c`.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, not negative.

    Raises:
        ValueError: If ``c`` is negative or ``rescale`` unknown.

    Note:
        Exact at every gradient scale. TorchJD gives zero weights below a gradient norm of 0.01, which stops training,
        and LibMTL there returns the starting point of its solver. TorchJD has no ``rescale``.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = CAGrad(c=0.5)
        >>> total = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([1.0590, 1.0000])

    References:
        Liu, Liu, Jin, Stone, Liu. *Conflict-Averse Gradient Descent for Multi-task Learning*. NeurIPS 2021.
        https://arxiv.org/abs/2110.14048, Eq. 3 and Alg. 1. Authors' code: https://github.com/Cranial-XIX/CAGrad, MIT.
    """

    def __init__(self, c: float = 0.5, rescale: Literal[0, 1, 2] = 0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if not c >= 0:
            raise ValueError(f"CAGrad: c must not be negative, got {c}; the paper uses values between 0 and 1.")
        if rescale not in (0, 1, 2):
            raise ValueError(f"CAGrad: rescale must be 0, 1 or 2, got {rescale}; 0 is the paper's update.")
        self.c = c
        self.rescale = rescale

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the best direction in the ball."""
        return cagrad(gramian, self.c, self.rescale)
