"""SDMGrad."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import take
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions
from lightning_mtl.balancers.gradient_weighting.modo import DoubleSampling
from lightning_mtl.balancers.gradient_weighting.preference import check_preference
from lightning_mtl.functional.gramian import sdmgrad


class SDMGrad(DoubleSampling):
    r"""Find a common descent direction near a preferred one from stochastic gradients (Xiao et al., NeurIPS 2023).

    .. math:: w \leftarrow \Pi_\Delta\big( w - \eta \, J_{t-1} J_t^\top (w + \lambda \tilde w) \big), \qquad
        \hat g_t = J_t^\top \frac{w_t + \lambda \tilde w}{1 + \lambda}

    Several inner steps with momentum, started at the last :math:`w`, make the weights of the next step from the
    gradients of the last batch and of this one, so that weights do not depend on the batch that they multiply.
    The inner products are divided by their scale, so the step size has no units.

    State: the inner weights :math:`w`, 1/K each at the start, and the last gradients, K × P in at least float32, also
    in every checkpoint. Absent tasks keep both; the present ones share their part of the simplex.

    Args:
        lambda_: Pull towards the preferred direction, not negative. The paper uses 0.3 for supervised learning.
        preference: Task name -> :math:`\tilde w_k`; None is 1/K each.
        lr: Inner step size :math:`\eta`: 10 in the authors' code and TorchJD, 5 in LibMTL.
        momentum: Momentum of the inner steps, in [0, 1).
        n_iter: Number of inner steps.
        options: See :class:`GradientOptions`; ``at`` must be ``"parameters"``, as features belong to samples.

    Shape:
        - Gradients ``(K, P)``; weights ``(K,)``, with sum 1 if the preference has.

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        The paper, LibMTL and TorchJD draw three batches a step at the same parameters. Here every step draws one, at a
        third of the cost: the two batches behind the inner steps were taken at parameters one update apart, and each
        batch takes part twice. Where the paper's triple is handed in as three successive batches without an optimizer
        step in between, the third update is the paper's. At neither inner step size have the 20 steps converged, and
        the results differ between the public codes; the step size decides which of them is followed.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = SDMGrad()
        >>> total = balancer({"a": x[0], "b": x[1]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([0.5000, 0.5000])

    References:
        Xiao, Ban, Ji. *Direction-oriented Multi-objective Learning: Simple and Provable Stochastic Algorithms*. NeurIPS
        2023. https://arxiv.org/abs/2305.18409, Alg. 1 and Sec. 6.1. Authors' code:
        https://github.com/OptMN-Lab/SDMGrad, MIT.
    """

    preference_values: Tensor

    def __init__(
        self,
        lambda_: float = 0.3,
        preference: dict[str, float] | None = None,
        lr: float = 10.0,
        momentum: float = 0.5,
        n_iter: int = 20,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(**options)
        if not lambda_ >= 0:
            raise ValueError(f"SDMGrad: lambda_ must not be negative, got {lambda_}.")
        if not lr > 0:
            raise ValueError(f"SDMGrad: lr must be positive, got {lr}.")
        if not 0 <= momentum < 1:
            raise ValueError(f"SDMGrad: momentum must be at least 0 and below 1, got {momentum}.")
        if not n_iter >= 1:
            raise ValueError(f"SDMGrad: n_iter must be at least 1, got {n_iter}.")
        check_preference("SDMGrad", "preference", preference)
        self.lambda_ = lambda_
        self.preference = preference
        self.lr = lr
        self.momentum = momentum
        self.n_iter = n_iter

    def _create_state(self, num_tasks: int) -> None:
        super()._create_state(num_tasks)
        if self.preference is not None:
            self.register_buffer(
                "preference_values", self._per_task("preference", self.preference, 0.0), persistent=False
            )

    def _preferred(self, weights: Tensor, rows: list[int]) -> Tensor:
        if self.preference is None:
            return torch.full_like(weights, 1 / len(rows))
        return take(self.preference_values, rows).to(weights.dtype)

    def next_weights(self, products: Tensor, weights: Tensor, rows: list[int]) -> Tensor:
        """Return the inner weights after the inner steps."""
        preferred = self._preferred(weights, rows)
        return sdmgrad(products, weights, preferred, self.lambda_, self.lr, self.momentum, self.n_iter)[1]

    def applied_weights(self, weights: Tensor, rows: list[int]) -> Tensor:
        """Return the inner weights mixed with the preferred ones."""
        return (weights + self.lambda_ * self._preferred(weights, rows)) / (1 + self.lambda_)
