"""Constant weights, as a gradient method."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions
from lightning_mtl.balancers.gradient_weighting.preference import PreferenceGradientWeighting
from lightning_mtl.functional.gramian import linear_scalarization


class LinearScalarization(PreferenceGradientWeighting):
    r"""Take the mean of the task gradients, or their sum with the weights of a preference.

    .. math:: \hat g = \sum_k p_k g_k

    The baseline of every gradient method, at the price of one: of use where gradients are to be watched (conflicts,
    norms) or where a wrapper asks for a gradient method; else :class:`EqualWeighting` and :class:`FixedWeighting` do
    the same in one backward pass. Here heads receive their own gradients unless ``head_gradients="weighted"``. No
    state.

    Args:
        preference: Task name -> weight, not negative; None takes 1/K for K present tasks.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``.

    Raises:
        ValueError: If a weight is negative or all are zero.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> total = LinearScalarization()({"a": x[0], "b": 3 * x[1]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([0.5000, 1.5000])

    References:
        Miettinen. *Nonlinear Multiobjective Optimization*. Springer 1998, Sec. 3.1.
        https://doi.org/10.1007/978-1-4615-5563-6
    """

    def __init__(self, preference: dict[str, float] | None = None, **options: Unpack[GradientOptions]) -> None:
        super().__init__(preference, **options)

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the preference."""
        return linear_scalarization(gramian, self.preference_of(rows))
