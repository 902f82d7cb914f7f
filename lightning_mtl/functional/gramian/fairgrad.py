"""FairGrad: alpha-fair allocation of the improvement over the tasks."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.pivoting import jittered
from lightning_mtl.functional.gramian.unit_rows import may_branch, restore, unit_rows

_NEWTON_STEPS = 50
_LENGTHS = (8.0, 4.0, 2.0, 1.0, 0.5, 0.2, 0.05)


def fairgrad(gramian: Tensor, alpha: float = 1.0) -> Tensor:
    r"""Weight the gradients by the alpha-fair solution (Ban & Ji, ICML 2024).

    .. math:: G w = w^{-1/\alpha}, \quad w > 0 \qquad \Longleftrightarrow \qquad
        w = \arg\min_{w > 0} \tfrac12 w^\top G w - \sum_k \frac{w_k^{1 - 1/\alpha}}{1 - 1/\alpha}

    with the logarithm as the utility for :math:`\alpha = 1`, the proportional fairness of Nash-MTL. Towards 0 the
    method becomes linear scalarization, towards infinity it maximizes the smallest improvement.

    Args:
        gramian: Inner products of the task gradients.
        alpha: Positive fairness parameter.

    Shape:
        - gramian: ``(K, K)``; returns ``(K,)``, positive. Multiplying the gradients by ``s`` multiplies the weights by
          :math:`s^{-2 \alpha / (1 + \alpha)}`.

    Raises:
        ValueError: If ``alpha`` is not positive.

    Note:
        Newton's method on the convex problem reaches rounding errors; the authors' code, LibMTL and TorchJD hand the
        equation to ``scipy.optimize.least_squares``, which stops early at small gradients. No solution exists when zero
        is a convex combination of the gradients: the weights are large then and the update is nearly zero. A zero
        gradient, for which none exists either, gets the mean of the other weights.

    Example:
        >>> fairgrad(torch.tensor([[1.0, 0.0], [0.0, 4.0]]), alpha=1.0)
        tensor([1.0000, 0.5000])

    References:
        H. Ban, K. Ji. *Fair resource allocation in multi-task learning*. ICML, 2024, Eq. 4 and Alg. 1.
        https://arxiv.org/abs/2402.15638
    """
    if not alpha > 0:
        raise ValueError(f"fairgrad: alpha must be positive, got {alpha}; use linear_scalarization for alpha = 0.")
    rows = unit_rows(gramian)
    power = 1 / alpha
    # In v = norms * w the equation reads C v = norms^(power - 1) v^(-power).
    target = torch.where(rows.norms > 0, rows.norms, 1) ** (power - 1)
    value = fair_weights(rows.cosines, target, power)
    weights = value * rows.inverse * rows.scale ** (-2 / (1 + power))
    return restore(mean_for_zero_rows(weights, rows.norms), rows, gramian)


def fair_weights(cosines: Tensor, target: Tensor, power: float) -> Tensor:
    """Solve ``cosines @ v = target * v ** -power`` for positive ``v`` by Newton's method.

    Steps are taken in the logarithm of ``v``, which keeps it positive, with the length that decreases the convex
    potential most; close to the solution the length is 1.

    Args:
        cosines: Matrix of cosines.
        target: Positive factors of the right-hand side.
        power: Positive exponent.

    Shape:
        - cosines: ``(K, K)``.
        - target: ``(K,)``; returns ``(K,)``.
    """
    eps = torch.finfo(cosines.dtype).eps
    matrix = jittered(cosines, 4 * eps)
    shift = power * torch.eye(cosines.shape[-1], dtype=cosines.dtype, device=cosines.device)
    lengths = torch.tensor(_LENGTHS, dtype=cosines.dtype, device=cosines.device).unsqueeze(-1)
    early_exit = may_branch(cosines)
    magnitude = matrix.abs()
    log = target.log() / (1 + power)  # the solution for orthogonal rows

    def potential(log: Tensor) -> Tensor:
        value = log.exp()
        utility = log if power == 1 else value * (-power * log).exp() / (1 - power)
        return (0.5 * value * (value @ matrix) - target * utility).sum(-1).nan_to_num(nan=torch.inf)

    for _ in range(_NEWTON_STEPS):
        value = log.exp()
        right = target * ((1 - power) * log).exp()
        residual = right - value * (matrix @ value)
        if early_exit and bool((residual.abs() <= 4 * eps * (right + value * (magnitude @ value))).all()):
            break
        scaling = right.rsqrt()
        scaled = value * scaling
        factor = torch.linalg.cholesky_ex(torch.addcmul(shift, matrix, torch.outer(scaled, scaled))).L
        step = scaling * torch.cholesky_solve((scaling * residual).unsqueeze(-1), factor).squeeze(-1)
        step = step.nan_to_num().clamp(-4, 4)
        small = step.abs().amax() < 0.1
        if early_exit and bool(small):
            log = log + step
            continue
        trials = log + lengths * step
        best = trials.index_select(0, potential(trials).argmin(0, keepdim=True)).squeeze(0)
        log = torch.where(small, log + step, best)
    return log.exp()


def mean_for_zero_rows(weights: Tensor, norms: Tensor) -> Tensor:
    """Give tasks with a zero gradient the mean weight of the others, or 1 if there are none."""
    positive = norms > 0
    count = positive.sum()
    mean = torch.where(positive, weights, 0).sum() / count.clamp(min=1)
    return torch.where(positive, weights, torch.where(count > 0, mean, 1))
