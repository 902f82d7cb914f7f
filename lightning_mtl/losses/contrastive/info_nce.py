"""InfoNCE: find the right one among candidates."""

from __future__ import annotations

import torch
from torch import Tensor


def info_nce(
    queries: Tensor, candidates: Tensor, query_groups: Tensor, candidate_groups: Tensor, scale: Tensor | float
) -> Tensor:
    r"""Return how badly every query tells its own candidates from the others.

    .. math::
        \ell_i = -\frac{1}{|P_i|} \sum_{j \in P_i} \log \frac{\exp(s\, q_i^\top c_j)}{\sum_k \exp(s\, q_i^\top c_k)}

    with the candidates :math:`P_i` of the query's group and the scale :math:`s`, one over the temperature. With one
    candidate a group this is InfoNCE; with several it is the form of supervised contrastive learning with the sum
    outside of the logarithm.

    Args:
        queries: Vectors, usually of unit length.
        candidates: Vectors to compare them with.
        query_groups: Group of every query, which must have at least one candidate.
        candidate_groups: Group of every candidate.
        scale: Factor on the inner products.

    Shape:
        - queries: ``(N, D)``; candidates: ``(M, D)``; query_groups: ``(N,)``; candidate_groups: ``(M,)``.
        - returns ``(N,)``.

    Example:
        >>> vectors = torch.eye(2)
        >>> info_nce(vectors, vectors, torch.tensor([0, 1]), torch.tensor([0, 1]), scale=1.0)
        tensor([0.3133, 0.3133])

    References:
        van den Oord, Li, Vinyals. *Representation Learning with Contrastive Predictive Coding*. 2018.
        https://arxiv.org/abs/1807.03748
        Khosla et al. *Supervised Contrastive Learning*. NeurIPS 2020. https://arxiv.org/abs/2004.11362, Eq. 2.
    """
    with torch.autocast(queries.device.type, enabled=False):  # a small temperature would magnify bfloat16's rounding
        scores = scale * (queries @ candidates.T)
        right = (query_groups[:, None] == candidate_groups[None, :]).to(scores.dtype)
        return -(scores.log_softmax(1) * right).sum(1) / right.sum(1)
