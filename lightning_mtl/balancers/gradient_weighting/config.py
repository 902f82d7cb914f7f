"""ConFIG."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions
from lightning_mtl.balancers.gradient_weighting.preference import PreferenceGradientWeighting
from lightning_mtl.functional.gramian import config


class ConFIG(PreferenceGradientWeighting):
    r"""Follow the direction that has the same cosine with every gradient (Liu et al., ICLR 2025).

    .. math:: \hat g = \Big( \sum_k \langle g_k, u \rangle \Big) u, \qquad u = \frac{U^{+} p}{\|U^{+} p\|}

    with the unit gradients as the rows of :math:`U`. No state.

    Args:
        preference: Task name -> :math:`p_k`, to which the cosine of the update is proportional; None is equal.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, possibly negative.

    Raises:
        ValueError: If a preference is negative.

    Note:
        The authors and TorchJD take the pseudo-inverse of the K × P matrix, here it is that of the K × K cosines, with
        the same result. A zero gradient takes no part. Where no common direction exists the update is zero. The
        paper's cheaper variant with momentum (M-ConFIG), which refreshes one gradient a step, is not included.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = ConFIG()
        >>> total = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([1.5000, 1.5000])

    References:
        Liu, Chu, Thuerey. *ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks*. ICLR 2025.
        https://arxiv.org/abs/2408.11104, Eq. 2-3. Authors' code: https://github.com/tum-pbs/ConFIG, MIT.
    """

    def __init__(self, preference: dict[str, float] | None = None, **options: Unpack[GradientOptions]) -> None:
        super().__init__(preference, **options)

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the conflict-free direction."""
        return config(gramian, self.preference_of(rows))
