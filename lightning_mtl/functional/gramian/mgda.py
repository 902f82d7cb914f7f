"""MGDA: the common descent direction of smallest norm."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from lightning_mtl.functional.gramian.arrays import library, to_array_like
from lightning_mtl.functional.gramian.min_norm import min_norm_of_rows
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def mgda(
    gramian: Tensor,
    normalization: Literal["none", "l2", "loss", "loss+"] = "none",
    losses: Tensor | None = None,
) -> Tensor:
    r"""Weight the gradients by the point of smallest norm in their convex hull (Désidéri 2012; Sener & Koltun 2018).

    .. math:: \alpha = \arg\min_{\alpha \ge 0, \sum_k \alpha_k = 1} \Big\| \sum_k \alpha_k \frac{g_k}{n_k} \Big\|^2,
        \qquad w_k = \alpha_k / n_k

    with :math:`n_k = 1` (``"none"``), :math:`\|g_k\|` (``"l2"``), the loss :math:`L_k` (``"loss"``), or
    :math:`L_k \|g_k\|` (``"loss+"``). The update :math:`\sum_k w_k g_k` is a descent direction of every task, or zero.

    Args:
        gramian: Inner products of the task gradients.
        normalization: What the gradients are divided by.
        losses: Positive task losses, for ``"loss"`` and ``"loss+"``.

    Shape:
        - gramian: ``(K, K)``.
        - losses: ``(K,)``.
        - returns: ``(K,)``, non-negative; the sum is 1 for ``"none"``.

    Raises:
        ValueError: If the normalization is unknown, or needs losses that are not given.

    Note:
        A zero gradient lies in the hull, so the exact minimum is the zero update: all weight goes to that task.
        The solution is exact; the Frank-Wolfe iterations of Sener & Koltun and of TorchJD stop with weights that are
        off by 1 to 10 %, and LibMTL clamps the weights of two tasks to 0.001 and 0.999. As in LibMTL, the weights of
        the normalized forms multiply the normalized gradients, for which the descent property is proved; the code of
        Sener & Koltun multiplies the raw gradients by :math:`\alpha`. A normalizer of zero counts as 1.

    Example:
        >>> import torch
        >>> mgda(torch.tensor([[1.0, 0.0], [0.0, 4.0]]))
        tensor([0.8000, 0.2000])

    References:
        J.-A. Désidéri. *Multiple-gradient descent algorithm (MGDA) for multiobjective optimization*. Comptes Rendus
        Mathématique, 2012. https://doi.org/10.1016/j.crma.2012.03.014
        O. Sener, V. Koltun. *Multi-task learning as multi-objective optimization*. NeurIPS, 2018, Eq. 3 and Sec. 3.2.
        https://arxiv.org/abs/1810.04650
    """
    if normalization not in ("none", "l2", "loss", "loss+"):
        raise ValueError(
            f"mgda: normalization must be 'none', 'l2', 'loss' or 'loss+', got {normalization!r}; choose one of them."
        )
    if normalization in ("loss", "loss+") and losses is None:
        raise ValueError(f"mgda: losses must be given for normalization {normalization!r}, got None; pass them.")
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    divisor = xp.ones_like(rows.norms)
    if normalization in ("l2", "loss+"):
        divisor = divisor * rows.norms
    if losses is not None and normalization in ("loss", "loss+"):
        divisor = divisor * to_array_like(losses, divisor)
    divisor = xp.where(divisor == 0, 1, divisor)
    weights = min_norm_of_rows(rows.cosines, rows.norms / divisor, rows.norms >= 0) / divisor
    if normalization in ("l2", "loss+"):
        weights = weights / rows.scale
    return restore(weights, rows, gramian)
