"""Aligned-MTL."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions
from lightning_mtl.balancers.gradient_weighting.preference import PreferenceGradientWeighting
from lightning_mtl.functional.gramian import aligned_mtl


class AlignedMTL(PreferenceGradientWeighting):
    r"""Make the gradients orthogonal and equally long before they are combined (Senushkin et al., CVPR 2023).

    .. math:: w = \sigma V \Sigma^{-1} V^\top p, \qquad G = V \Sigma^2 V^\top

    No state. ``at="features"`` is the paper's upper bound, Aligned-MTL-UB.

    Args:
        scale_mode: Common length :math:`\sigma` of the aligned gradients: the smallest singular value of the gradient
            matrix (``"min"``, the paper), or the root of the median (``"median"``) or mean (``"rmse"``) eigenvalue of
            the Gramian, as in the authors' code.
        preference: Task name -> weight :math:`p_k` of its aligned gradient; None is 1/K each.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, possibly negative.

    Raises:
        ValueError: If ``scale_mode`` is unknown or a preference negative.

    Note:
        Averages the aligned gradients as the paper and TorchJD do; LibMTL sums them, K times as much, and fails on
        current versions of torch. Eigenvalues that are zero up to rounding errors are left out.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = AlignedMTL()
        >>> total = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([0.5000, 0.5000])

    References:
        Senushkin, Patakin, Kuznetsov, Konushin. *Independent Component Alignment for Multi-Task Learning*. CVPR 2023.
        https://arxiv.org/abs/2305.19000, Eq. 11-12 and Alg. 1. Authors' code: https://github.com/SamsungLabs/MTL.
    """

    def __init__(
        self,
        scale_mode: Literal["min", "median", "rmse"] = "min",
        preference: dict[str, float] | None = None,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(preference, **options)
        if scale_mode not in ("min", "median", "rmse"):
            raise ValueError(f"AlignedMTL: scale_mode must be 'min', 'median' or 'rmse', got {scale_mode!r}.")
        self.scale_mode = scale_mode

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the average of the aligned gradients."""
        return aligned_mtl(gramian, self.scale_mode, self.preference_of(rows))
