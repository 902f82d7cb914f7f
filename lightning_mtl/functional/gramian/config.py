"""ConFIG: the update that has the same cosine with every task's gradient."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.arrays import library, precision, to_array_like
from lightning_mtl.functional.gramian.eigen import pseudo_inverse_product
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def config(gramian: Tensor, preference: Tensor | None = None) -> Tensor:
    r"""Follow the conflict-free direction, as far as the gradients project on it (Liu et al., ICLR 2025).

    .. math:: \hat g = \Big( \sum_k \langle g_k, u \rangle \Big) u, \qquad
        u = \frac{U^{+} p}{\|U^{+} p\|}, \qquad U^{+} p = U^\top (U U^\top)^{+} p

    where the rows of :math:`U` are the unit gradients, so that :math:`U U^\top` is their matrix of cosines.

    Args:
        gramian: Inner products of the task gradients.
        preference: Positive direction weights :math:`p`: the cosines of the update are proportional to them. Default:
            equal.

    Shape:
        - gramian: ``(K, K)``.
        - preference: ``(K,)``.
        - returns: ``(K,)``, with the magnitude of the update included.

    Note:
        The authors' code and TorchJD take the pseudo-inverse of the K x P matrix of unit gradients; through its Gramian
        the result is the same for a fraction of the cost. A zero gradient takes no part, as in both. Where no common
        direction exists (:math:`U^{+} p = 0`, opposite gradients) the weights are zero.

    Example:
        >>> import torch
        >>> config(torch.eye(2))
        tensor([1., 1.])

    References:
        Q. Liu, M. Chu, N. Thuerey. *ConFIG: towards conflict-free training of physics informed neural networks*. ICLR,
        2025, Eq. 2-3. https://arxiv.org/abs/2408.11104
    """
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    positive = rows.norms > 0
    target = xp.ones_like(rows.norms) if preference is None else to_array_like(preference, rows.norms)
    value = pseudo_inverse_product(rows.cosines, target * positive, gramian.dtype)
    product = rows.cosines @ value
    square = value @ product
    # Cancellation to within rounding errors of the cosines is no direction.
    common = square > abs(value).sum() ** 2 * (4 * precision(value))
    magnitude = xp.where(common, (rows.norms @ product) / xp.where(common, square, 1), 0)
    return restore(rows.inverse * value * magnitude + ~positive.any(), rows, gramian)
