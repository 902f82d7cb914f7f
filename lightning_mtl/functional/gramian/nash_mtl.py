"""Nash-MTL: the Nash bargaining solution between the tasks."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.arrays import library
from lightning_mtl.functional.gramian.fairgrad import fair_weights, mean_for_zero_rows
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def nash_mtl(gramian: Tensor, max_norm: float | None = None) -> Tensor:
    r"""Weight the gradients by the Nash bargaining solution (Navon et al., ICML 2022).

    .. math:: G w = 1 / w, \quad w > 0 \qquad \Longleftrightarrow \qquad
        w = \arg\min_{w > 0} \tfrac12 w^\top G w - \sum_k \log w_k

    Args:
        gramian: Inner products of the task gradients.
        max_norm: Longest update. A longer one is shortened to this length; ``None`` or 0 leaves it alone. Without it,
            the update's length is :math:`\sqrt K`, at any scale of the gradients.

    Shape:
        - gramian: ``(K, K)``; returns ``(K,)``, positive. Multiplying the gradients by ``s`` divides the weights by
          ``s``.

    Raises:
        ValueError: If ``max_norm`` is negative.

    Note:
        The convex problem is solved by Newton's method; it is solved in the norms times the weights, in which it does
        not depend on the norms at all. The authors' code, LibMTL and TorchJD instead iterate a sequence of
        convex-concave approximations with a general solver, which is 100 times slower and does not converge for very
        different norms or small gradients. No solution exists when zero is a convex combination of the gradients: the
        weights are large then and the update is nearly zero. A zero gradient, for which none exists either, gets the
        mean of the other weights.

    Example:
        >>> import torch
        >>> nash_mtl(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([1.0000, 0.5000])

    References:
        A. Navon, A. Shamsian, I. Achituve, H. Maron, K. Kawaguchi, G. Chechik, E. Fetaya. *Multi-task learning as a
        bargaining game*. ICML, 2022, Claim 3.1 and Alg. 1. https://arxiv.org/abs/2202.01017
    """
    if max_norm is not None and max_norm < 0:
        raise ValueError(f"nash_mtl: max_norm must not be negative, got {max_norm}; use None for no limit.")
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    weights = fair_weights(rows.cosines, xp.ones_like(rows.norms), 1.0)
    weights = mean_for_zero_rows(weights * rows.inverse / rows.scale, rows.norms)
    if max_norm:
        value = weights * rows.norms * rows.scale
        length = xp.sqrt(xp.clip(value @ rows.cosines @ value, 0, None))
        weights = weights * (max_norm / xp.clip(length, max_norm, None))
    return restore(weights, rows, gramian)
