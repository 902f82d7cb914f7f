"""Nash-MTL."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import is_distributed, mean_over_ranks
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gramian import nash_mtl


class NashMTL(GradientWeighting):
    r"""Take the Nash bargaining solution between the tasks (Navon et al., ICML 2022).

    .. math:: G w = 1 / w, \quad w > 0 \qquad \Longleftrightarrow \qquad
        \hat g = \arg\max_{\|d\| \le \epsilon} \sum_k \log \langle g_k, d \rangle

    No state, except with ``every_n_steps``, by which the paper saves passes (their ``update_weights_every``): the
    weights of the last update are reused, and a checkpoint holds them. ``max_norm`` acts in every step; with several
    processes this costs another reduction of the update in the steps between.

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
    shortened_by: Tensor

    def __init__(self, max_norm: float | None = 1.0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if max_norm is not None and not max_norm >= 0:
            raise ValueError(f"NashMTL: max_norm must not be negative, got {max_norm}; use None for no limit.")
        self.max_norm = max_norm

    def _create_state(self, num_tasks: int) -> None:
        if self.every_n_steps > 1 and self.max_norm:
            self.register_buffer("shortened_by", torch.ones(()))

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the bargaining solution."""
        if self.every_n_steps == 1 or not self.max_norm:
            return nash_mtl(gramian, self.max_norm)
        weights = nash_mtl(gramian)
        length = (weights @ (gramian @ weights)).clamp(min=0).sqrt()
        ratio = (self.max_norm / length).clamp(max=1)
        self.shortened_by.copy_(ratio)
        return weights * ratio

    def _reuse_ratio(self, update: list[Tensor], scale: Tensor | None) -> Tensor | None:
        if not self.max_norm:
            return None
        flat = torch.cat([part.flatten().to(torch.promote_types(part.dtype, torch.float32)) for part in update])
        if scale is not None:
            flat = flat / scale
        if not is_distributed():
            length = flat.norm()
        elif self.at == "parameters":
            length = mean_over_ranks(flat).norm()
        else:  # features belong to samples
            length = (mean_over_ranks(flat.square().sum()) / dist.get_world_size()).sqrt()
        # the reused weights were shortened in their own step; where that was not needed now, it is undone
        return torch.minimum(1 / self.shortened_by.to(length.dtype), self.max_norm / length)
