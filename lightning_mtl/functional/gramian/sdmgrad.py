"""SDMGrad: a stochastic common descent direction near a preferred one."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.arrays import solver_dtype
from lightning_mtl.functional.gramian.linear_scalarization import preference_vector
from lightning_mtl.functional.gramian.simplex import project_to_simplex


def sdmgrad(
    cross_gramian: Tensor,
    weights: Tensor,
    preference: Tensor | None = None,
    lambda_: float = 0.3,
    lr: float = 10.0,
    momentum: float = 0.5,
    n_iter: int = 20,
) -> tuple[Tensor, Tensor]:
    r"""Run the inner projected steps of direction-oriented multi-objective learning (Xiao et al., NeurIPS 2023).

    .. math:: w \leftarrow \Pi_\Delta\big( w - \eta \, J_1 J_2^\top (w + \lambda \tilde w) \big), \qquad
        \hat g = J_3^\top \frac{w + \lambda \tilde w}{1 + \lambda}

    with the gradients of three independent batches and momentum in the steps. :math:`J_1 J_2^\top` is divided by the
    squared mean of the roots of its non-negative diagonal entries, so that the step size has no units.

    Args:
        cross_gramian: :math:`J_1 J_2^\top`, inner products of gradients from two batches; neither symmetric nor
            positive.
        weights: The inner weights that the last call returned; 1/K each at the start.
        preference: Direction weights :math:`\tilde w`. Default: 1/K each.
        lambda_: Pull towards the preferred direction, not negative.
        lr: Inner step size.
        momentum: Momentum of the inner steps, in [0, 1).
        n_iter: Number of inner steps.

    Shape:
        - cross_gramian: ``(K, K)``.
        - weights, preference: ``(K,)``.
        - returns: the weights of the update and the inner weights, both ``(K,)``, on the simplex.

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        The step size is 10 in TorchJD and 5 in LibMTL; at neither have the 20 steps converged, so the results differ.
        Both add 1e-8 to the divisor, which is left out here. A NaN or infinity makes the weights of the update NaN and
        leaves the inner weights as they are.

    Example:
        >>> start = torch.tensor([0.5, 0.5])
        >>> sdmgrad(torch.eye(2), start)[0]
        tensor([0.5000, 0.5000])

    References:
        P. Xiao, H. Ban, K. Ji. *Direction-oriented multi-objective learning: simple and provable stochastic
        algorithms*. NeurIPS, 2023, Alg. 1 and Sec. 6.1. https://arxiv.org/abs/2305.18409
    """
    if lambda_ < 0 or lr <= 0 or not 0 <= momentum < 1 or n_iter < 1:
        raise ValueError(
            "sdmgrad: lambda_ must be >= 0, lr > 0, momentum in [0, 1) and n_iter >= 1, got "
            f"{lambda_}, {lr}, {momentum} and {n_iter}; correct them."
        )
    matrix = cross_gramian.detach().to(solver_dtype(cross_gramian.device))
    finite = matrix.isfinite().all()
    matrix = torch.where(finite, matrix, 0)
    scale = matrix.diagonal().clamp(min=0).sqrt().mean()
    scale = scale + (scale == 0)
    matrix = matrix / scale / scale
    start = weights.detach().to(matrix)
    pull = lambda_ * preference_vector(preference, start)
    inner = start
    velocity = torch.zeros_like(inner)
    for _ in range(n_iter):
        velocity = momentum * velocity + matrix @ (inner + pull)
        inner = project_to_simplex(inner - lr * velocity)
    combined = torch.where(finite, (inner + pull) / (1 + lambda_), torch.nan)
    return combined.to(cross_gramian.dtype), torch.where(finite, inner, start).to(weights.dtype)
