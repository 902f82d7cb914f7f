"""Aggregators that need the task gradients themselves, not only their inner products."""

from __future__ import annotations

import torch
from torch import Tensor


def graddrop(jacobian: Tensor, uniform: Tensor, leak: Tensor | None = None) -> Tensor:
    r"""Keep one sign per parameter, drawn by its share of the gradient (Chen et al., NeurIPS 2020).

    .. math:: P = \frac12 \Big( 1 + \frac{\sum_k g_k}{\sum_k |g_k|} \Big), \qquad
        M_k = [P > U][g_k > 0] + [P < U][g_k < 0], \qquad \hat g = \sum_k (\ell_k + (1 - \ell_k) M_k) g_k

    Args:
        jacobian: Task gradients, one a row.
        uniform: Uniform draws :math:`U` from [0, 1), one per column.
        leak: Fraction :math:`\ell_k` of every task's gradient that is always let through. Default: 0.

    Shape:
        - jacobian: ``(K, P)``.
        - uniform: ``(P,)``.
        - leak: ``(K,)``.
        - returns: ``(P,)``.

    Note:
        The paper masks the gradients of a layer's activations, see :func:`graddrop_features`. As in TorchJD, this form
        masks those of the parameters. Columns of zeros give 0.

    Example:
        >>> graddrop(torch.tensor([[2.0, 1.0], [-1.0, 1.0]]), torch.tensor([0.5, 0.5]))
        tensor([2., 2.])

    References:
        Z. Chen, J. Ngiam, Y. Huang, T. Luong, H. Kretzschmar, Y. Chai, D. Anguelov. *Just pick a sign: optimizing deep
        multitask models with gradient sign dropout*. NeurIPS, 2020, Eq. 1 and Alg. 1. https://arxiv.org/abs/2010.06808
    """
    kept = _sign_mask(jacobian, uniform)
    if leak is not None:
        share = leak.to(jacobian).unsqueeze(-1)
        kept = share + (1 - share) * kept
    return (kept * jacobian).sum(0)


def graddrop_features(features: Tensor, gradients: Tensor, uniform: Tensor, leak: Tensor | float = 0.0) -> Tensor:
    r"""Keep one sign per feature, summed over the batch (Chen et al., NeurIPS 2020).

    The form of the paper: the sign purity of a feature is that of :math:`\sum_b \operatorname{sign}(z_b) g_{k, b}`, the
    gradient with respect to a multiplier on the feature, and a task that loses the draw is masked in the whole batch.

    Args:
        features: Shared features :math:`z`.
        gradients: Gradients of the task losses at the features.
        uniform: Uniform draws from [0, 1), one per feature.
        leak: Fraction of every task's gradient that is always let through.

    Shape:
        - features: ``(B, *)``.
        - gradients: ``(K, B, *)``.
        - uniform: ``(*,)``.
        - leak: scalar or ``(K,)``.
        - returns: ``(B, *)``.

    Note:
        As in LibMTL. The leak is the fraction let through, as in the paper.

    Example:
        >>> features = torch.ones(1, 2)
        >>> gradients = torch.tensor([[[2.0, 1.0]], [[-1.0, 1.0]]])
        >>> graddrop_features(features, gradients, torch.tensor([0.5, 0.5]))
        tensor([[2., 2.]])

    References:
        Z. Chen, J. Ngiam, Y. Huang, T. Luong, H. Kretzschmar, Y. Chai, D. Anguelov. *Just pick a sign: optimizing deep
        multitask models with gradient sign dropout*. NeurIPS, 2020, Alg. 1. https://arxiv.org/abs/2010.06808
    """
    kept = _sign_mask((features.sign() * gradients).sum(1), uniform).unsqueeze(1)
    share = torch.as_tensor(leak, dtype=gradients.dtype, device=gradients.device)
    share = share.view(-1, *[1] * (gradients.ndim - 1))
    return ((share + (1 - share) * kept) * gradients).sum(0)


def _sign_mask(gradients: Tensor, uniform: Tensor) -> Tensor:
    """Return 1 where a task's sign wins the draw of its column, else 0."""
    total = gradients.abs().sum(0)
    purity = 0.5 * (1 + gradients.sum(0) / torch.where(total == 0, 1, total))
    kept = ((purity > uniform) & (gradients > 0)) | ((purity < uniform) & (gradients < 0))
    return kept.to(gradients.dtype)


def trimmed_mean(jacobian: Tensor, trim_number: int = 1) -> Tensor:
    r"""Average every column without its largest and smallest entries (Yin et al., ICML 2018).

    Args:
        jacobian: Task gradients, one a row.
        trim_number: Number of largest and of smallest entries that are left out of every column.

    Shape:
        - jacobian: ``(K, P)``; returns ``(P,)``.

    Raises:
        ValueError: If ``trim_number`` is negative or leaves nothing over.

    Example:
        >>> trimmed_mean(torch.tensor([[1.0], [2.0], [30.0]]))
        tensor([2.])

    References:
        D. Yin, Y. Chen, K. Ramchandran, P. Bartlett. *Byzantine-robust distributed learning: towards optimal
        statistical rates*. ICML, 2018, Def. 2. https://arxiv.org/abs/1803.01498
    """
    tasks = jacobian.shape[0]
    if trim_number < 0 or tasks <= 2 * trim_number:
        raise ValueError(
            f"trimmed_mean: trim_number must be at least 0 and below K / 2, "
            f"got {trim_number} with K = {tasks}; lower it."
        )
    return jacobian.sort(dim=0).values[trim_number : tasks - trim_number].mean(0)
