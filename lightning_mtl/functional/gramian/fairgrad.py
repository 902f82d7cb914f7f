"""FairGrad: alpha-fair allocation of the improvement over the tasks."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from lightning_mtl.functional.gramian.arrays import Array, identity, library, precision, quiet, solve_positive
from lightning_mtl.functional.gramian.pivoting import jittered
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows

_NEWTON_STEPS = 30
_NEWTON_STEPS_ON_HOST = 100


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
        >>> import torch
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
    target = library(rows.norms).where(rows.norms > 0, rows.norms, 1) ** (power - 1)
    value = fair_weights(rows.cosines, target, power)
    weights = value * rows.inverse * rows.scale ** (-2 / (1 + power))
    return restore(mean_for_zero_rows(weights, rows.norms), rows, gramian)


def fair_weights(cosines: Array, target: Array, power: float) -> Array:
    """Solve ``cosines @ v = target * v ** -power`` for positive ``v`` by Newton's method.

    The steps are relative to ``v``, in which the Newton matrix has no eigenvalue below ``power``, and end at nine
    tenths of the way to the boundary.

    Args:
        cosines: Matrix of cosines.
        target: Positive factors of the right-hand side.
        power: Positive exponent.

    Shape:
        - cosines: ``(K, K)``.
        - target: ``(K,)``; returns ``(K,)``.
    """
    xp = library(cosines)
    matrix = jittered(cosines, 4 * precision(cosines))
    shift = power * identity(cosines)
    previous = float("inf")
    with quiet(cosines):
        value = target ** (1 / (1 + power))  # the solution for orthogonal rows
        right = target * value ** (1 - power)
        value = value * (right.sum() / (value @ matrix @ value)) ** (1 / (1 + power))  # its best multiple
        for _ in range(_NEWTON_STEPS_ON_HOST if isinstance(value, np.ndarray) else _NEWTON_STEPS):
            right = target * value ** (1 - power)
            scaling = 1 / xp.sqrt(right)
            scaled = value * scaling
            residual = scaling * (right - value * (matrix @ value))
            step = solve_positive(shift + matrix * scaled * scaled[:, None], residual[:, None])[:, 0]
            step = scaling * step
            if isinstance(step, np.ndarray):
                shortest, largest = step.min(), abs(step).max()
                if not largest < np.inf:
                    break
                value = value * (1 + step * min(1.0, 0.9 / max(-shortest, 0.9)))
                # The quadratic convergence has ended at rounding errors of the solution or, if worse, of the step.
                if largest < 1e-7 or 0.5 * previous < largest < 1e-3:
                    break
                previous = largest
            else:
                step = step.nan_to_num()
                value = value * (1 + step * (0.9 / (-step.amin()).clamp(min=0.9)))
    return value


def mean_for_zero_rows(weights: Array, norms: Array) -> Array:
    """Give tasks with a zero gradient the mean weight of the others, or 1 if there are none."""
    xp = library(norms)
    positive = norms > 0
    count = positive.sum()
    mean = (weights * positive).sum() / xp.clip(count, 1, None)
    return xp.where(positive, weights, xp.where(count > 0, mean, 1))
