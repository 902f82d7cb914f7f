"""Nash-MTL."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gramian import nash_mtl


class NashMTL(GradientWeighting):
    r"""Take the Nash bargaining solution between the tasks (Navon et al., ICML 2022).

    .. math:: G w = 1 / w, \quad w > 0 \qquad \Longleftrightarrow \qquad
        \hat g = \arg\max_{\|d\| \le \epsilon} \sum_k \log \langle g_k, d \rangle

    No state, except with ``every_n_steps``, by which the paper saves passes (their ``update_weights_every``): the
    weights of the last update are reused, and a checkpoint holds them.

    Args:
        max_norm: Longest update. A longer one is shortened to this length; None or 0 leaves it at
            :math:`\sqrt K` at any scale of the gradients. 1.0 is the authors' default.
        options: See :class:`GradientOptions`.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, positive.

    Raises:
        ValueError: If ``max_norm`` is negative.

    Note:
        The convex problem is solved to rounding errors by Newton's method. The authors, LibMTL and TorchJD iterate a
        general solver that has not converged for very different or small norms. The length of the update does not
        depend on that of the gradients: loss scaling of mixed precision is divided out before. With ``max_norm`` the
        direction alone counts. The authors weight the heads too: ``head_gradients="weighted"``. Gradients that have
        zero in their convex hull have no solution; weights are large then and the update is nearly zero before it is
        shortened.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = NashMTL(max_norm=None)
        >>> total = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([1., 1.])

    References:
        Navon, Shamsian, Achituve, Maron, Kawaguchi, Chechik, Fetaya. *Multi-Task Learning as a Bargaining Game*. ICML
        2022. https://arxiv.org/abs/2202.01017, Claim 3.1 and Alg. 1. Authors' code:
        https://github.com/AvivNavon/nash-mtl.
    """

    weight_degree: float | None = -1

    def __init__(self, max_norm: float | None = 1.0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if max_norm is not None and not max_norm >= 0:
            raise ValueError(f"NashMTL: max_norm must not be negative, got {max_norm}; use None for no limit.")
        self.max_norm = max_norm

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the bargaining solution."""
        return nash_mtl(gramian, self.max_norm)
