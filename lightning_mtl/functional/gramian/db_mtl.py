"""DB-MTL: all gradients brought to the largest norm."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def db_mtl(gramian: Tensor) -> Tensor:
    r"""Balance the gradient magnitudes (Lin et al., 2023).

    .. math:: w_k = \frac{\max_j \|g_j\|}{\|g_k\|}

    Args:
        gramian: Inner products of the task gradients; the method takes those of the logarithms of the losses, smoothed
            by a moving average.

    Shape:
        - gramian: ``(K, K)``; returns ``(K,)``, not below 1. A zero gradient has weight 1.

    Note:
        LibMTL adds 1e-8 to the norms.

    Example:
        >>> import torch
        >>> db_mtl(torch.tensor([[1.0, 0.5], [0.5, 4.0]]))
        tensor([2., 1.])

    References:
        B. Lin, W. Jiang, F. Ye, Y. Zhang, P. Chen, Y.-C. Chen, S. Liu, J. Kwok. *Dual-balancing for multi-task
        learning*. 2023, Sec. 3.2. https://arxiv.org/abs/2308.12029
    """
    rows = unit_rows(gramian)
    return restore(rows.inverse + (rows.norms == 0), rows, gramian)
