"""Krum: the gradients that are closest to their neighbours."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.functional.gramian.arrays import library
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def krum(gramian: Tensor, n_byzantine: int = 1, n_selected: int = 1) -> Tensor:
    r"""Average the gradients with the smallest sum of distances to their neighbours (Blanchard et al., NeurIPS 2017).

    The score of a gradient is the sum of its distances to its :math:`K - f - 2` nearest neighbours; the ``n_selected``
    gradients with the lowest score are averaged (Multi-Krum).

    Args:
        gramian: Inner products of the task gradients.
        n_byzantine: Number :math:`f` of gradients that may be arbitrary.
        n_selected: Number of gradients that are averaged.

    Shape:
        - gramian: ``(K, K)``; returns ``(K,)`` with sum 1.

    Raises:
        ValueError: If there are fewer than ``n_byzantine + 3`` or ``n_selected`` tasks.

    Note:
        The paper sums squared distances. As in TorchJD the distances themselves are summed.

    Example:
        >>> import torch
        >>> krum(torch.diag(torch.tensor([1.0, 1.0, 1.0, 100.0])) + 1.0, n_byzantine=1, n_selected=3)
        tensor([0.3333, 0.3333, 0.3333, 0.0000])

    References:
        P. Blanchard, E. M. El Mhamdi, R. Guerraoui, J. Stainer. *Machine learning with adversaries: Byzantine tolerant
        gradient descent*. NeurIPS, 2017, Sec. 4.
        https://papers.nips.cc/paper/2017/hash/f4b9ec30ad9f68f89b29639786cb62ef-Abstract.html
    """
    tasks = gramian.shape[-1]
    if n_byzantine < 0 or tasks < n_byzantine + 3:
        raise ValueError(
            f"krum: n_byzantine must be between 0 and K - 3, got {n_byzantine} with K = {tasks}; "
            "lower it or use more tasks."
        )
    if not 1 <= n_selected <= tasks:
        raise ValueError(f"krum: n_selected must be between 1 and K, got {n_selected} with K = {tasks}; change it.")
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    norms = rows.norms
    square = (norms - norms[:, None]) ** 2 + 2 * norms * norms[:, None] * (1 - rows.cosines)
    distances = xp.sqrt(xp.clip(square, 0, None))
    # The nearest neighbour of a gradient is itself, at distance 0.
    place = xp.argsort(xp.argsort(distances, -1), -1)
    scores = (distances * (place < tasks - n_byzantine - 1)).sum(-1)
    place = xp.argsort(xp.argsort(scores, -1), -1)
    return restore((place < n_selected) / n_selected, rows, gramian)
