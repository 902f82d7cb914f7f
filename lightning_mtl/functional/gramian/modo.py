"""MoDo: one projected step of the task weights from two independent batches."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.arrays import solver_dtype
from lightning_mtl.functional.gramian.simplex import project_to_simplex


def modo(cross_gramian: Tensor, weights: Tensor, gamma: float = 0.1, rho: float = 0.1) -> Tensor:
    r"""Take one step of multi-objective gradient with double sampling (Chen et al., NeurIPS 2023).

    .. math:: w \leftarrow \Pi_\Delta\big( w - \gamma (J_1 J_2^\top w + \rho w) \big)

    Args:
        cross_gramian: :math:`J_1 J_2^\top`, inner products of gradients from two independent batches.
        weights: The weights that the last call returned; 1/K each at the start.
        gamma: Step size, positive.
        rho: Strength of the l2 regularization, not negative.

    Shape:
        - cross_gramian: ``(K, K)``.
        - weights: ``(K,)``; returns ``(K,)`` on the simplex.

    Raises:
        ValueError: If ``gamma`` is not positive or ``rho`` is negative.

    Note:
        The step depends on the scale of the gradients, by definition. A NaN or infinity gives NaN weights.

    Example:
        >>> modo(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), torch.tensor([0.5, 0.5]), gamma=0.1, rho=0.0)
        tensor([0.5750, 0.4250])

    References:
        L. Chen, H. Fernando, Y. Ying, T. Chen. *Three-way trade-off in multi-objective learning: optimization,
        generalization and conflict-avoidance*. NeurIPS, 2023, Eq. 6 and Alg. 1. https://arxiv.org/abs/2305.20057
    """
    if gamma <= 0 or rho < 0:
        raise ValueError(f"modo: gamma must be positive and rho not negative, got {gamma} and {rho}; correct them.")
    matrix = cross_gramian.detach().to(solver_dtype(cross_gramian.device))
    finite = matrix.isfinite().all()
    start = weights.detach().to(matrix)
    moved = project_to_simplex(start - gamma * (torch.where(finite, matrix, 0) @ start + rho * start))
    return torch.where(finite, moved, torch.nan).to(weights.dtype)
