"""GradVac: gradients pulled to the cosine similarity that their tasks usually have."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.gramian.arrays import library, to_array_like
from lightning_mtl.functional.gramian.unit_rows import restore, unit_rows


def gradvac(gramian: Tensor, targets: Tensor, order: Tensor, beta: float = 0.5) -> tuple[Tensor, Tensor]:
    r"""Sum the gradients after gradient vaccination (Wang et al., ICLR 2021).

    For every task :math:`i`, starting from :math:`g_i' = g_i`, and for the other tasks :math:`j` in random order, with
    :math:`\phi = \cos(g_i', g_j)` and the goal :math:`\hat\phi = \hat\phi_{ij}`:

    .. math:: g_i' \leftarrow g_i' + \frac{\|g_i'\| (\hat\phi \sqrt{1 - \phi^2} - \phi \sqrt{1 - \hat\phi^2})}
        {\|g_j\| \sqrt{1 - \hat\phi^2}} g_j \quad \text{if } \phi < \hat\phi, \qquad
        \hat\phi_{ij} \leftarrow (1 - \beta) \hat\phi_{ij} + \beta \phi

    Args:
        gramian: Inner products of the task gradients.
        targets: Similarity goals :math:`\hat\phi`, which start at zero and are given back at the next call.
        order: ``order[i]`` is the sequence in which task ``i`` visits the tasks; its own index is skipped.
        beta: Step of the moving average of the similarities, between 0 and 1. The paper uses 0.01, the public codes
            0.5.

    Shape:
        - gramian, targets: ``(K, K)``.
        - order: ``(K, K)`` int64, every row a permutation.
        - returns: weights ``(K,)`` and the new targets ``(K, K)`` in the dtype of ``targets``.

    Raises:
        ValueError: If ``beta`` is outside of [0, 1].

    Note:
        As in LibMTL and TorchJD, the similarity is measured to the gradient :math:`g_i'` as modified so far. Both add
        1e-8 to their denominators; here only the sine of the goal is kept above 1e-8, which no gradient scale can
        reach, and pairs with a zero gradient, whose similarity is undefined, are left alone together with their goal. A
        Gramian with NaN or infinity leaves the targets as they are.

    Example:
        >>> weights, targets = gradvac(torch.eye(2), torch.zeros(2, 2), torch.tensor([[0, 1], [0, 1]]))
        >>> weights
        tensor([1., 1.])

    References:
        Z. Wang, Y. Tsvetkov, O. Firat, Y. Cao. *Gradient vaccine: investigating and improving multi-task optimization
        in massively multilingual models*. ICLR, 2021, Eq. 2-4 and Alg. 1. https://arxiv.org/abs/2010.05874
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"gradvac: beta must be between 0 and 1, got {beta}; choose a step such as 0.5.")
    rows = unit_rows(gramian)
    xp = library(rows.norms)
    sequence = xp.asarray(order)
    own = xp.cumsum(xp.ones_like(sequence[:, 0]), 0) - 1
    goals = 1 * to_array_like(targets, rows.norms)  # a copy
    nonzero = rows.norms > 0
    products = rows.norms[:, None] * rows.cosines  # <g_i', unit row of j>
    added = xp.zeros_like(products)  # coefficients on the unit rows
    square = rows.norms * rows.norms  # ||g_i'||^2
    for position in range(sequence.shape[-1]):
        visited = sequence[:, position]
        product = products[own, visited]
        goal = goals[own, visited]
        norm = xp.sqrt(xp.clip(square, 0, None))
        defined = (visited != own) & (norm > 0) & nonzero[visited]
        cosine = xp.clip(xp.where(defined, product / xp.where(defined, norm, 1), 0), -1, 1)
        sine = xp.sqrt(1 - cosine * cosine)
        goal_sine = xp.clip(xp.sqrt(xp.clip(1 - goal * goal, 0, None)), 1e-8, None)
        step = norm * (goal * sine / goal_sine - cosine)
        step = xp.where(defined & (cosine < goal), step, 0)
        square = square + step * (2 * product + step)
        added[own, visited] += step
        products = products + step[:, None] * rows.cosines[visited]
        goals[own, visited] = xp.where(defined, goal + beta * (cosine - goal), goal)
    weights = restore(1 + rows.inverse * added.sum(0), rows, gramian)
    kept = torch.as_tensor(rows.finite, device=targets.device)
    return weights, torch.where(kept, torch.as_tensor(goals).to(targets), targets.detach())
