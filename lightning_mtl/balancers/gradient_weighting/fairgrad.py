"""FairGrad."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gramian import fairgrad


class FairGrad(GradientWeighting):
    r"""Allocate the improvement to the tasks in an alpha-fair way (Ban & Ji, ICML 2024).

    .. math:: G w = w^{-1/\alpha}, \quad w > 0

    No state.

    Args:
        alpha: Fairness, positive. Towards 0 the sum of the improvements counts, at 1 (LibMTL's default) their product,
            as in Nash-MTL, towards infinity the smallest one.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, positive. Gradients times c give weights times
          :math:`c^{-2\alpha / (1 + \alpha)}`.

    Raises:
        ValueError: If ``alpha`` is not positive.

    Note:
        Newton's method on the equivalent convex problem reaches rounding errors; the authors, LibMTL and TorchJD call
        ``scipy.optimize.least_squares``, which stops early for small gradients. The authors weight the heads too:
        ``head_gradients="weighted"``. The length of the update depends on the scale of the gradients by the power
        above; loss scaling of mixed precision is divided out before.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = FairGrad(alpha=1.0)
        >>> total = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([1., 1.])

    References:
        Ban, Ji. *Fair Resource Allocation in Multi-Task Learning*. ICML 2024. https://arxiv.org/abs/2402.15638, Eq. 4
        and Alg. 1. Authors' code: https://github.com/OptMN-Lab/fairgrad, MIT.
    """

    def __init__(self, alpha: float = 1.0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if not alpha > 0:
            raise ValueError(f"FairGrad: alpha must be positive, got {alpha}; for 0 use FixedWeighting.")
        self.alpha = alpha
        self.weight_degree = -2 * alpha / (1 + alpha)

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the alpha-fair solution."""
        return fairgrad(gramian, self.alpha)
