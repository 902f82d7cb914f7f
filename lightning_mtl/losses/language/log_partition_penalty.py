"""Keep the softmax normaliser near one."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.losses.base import LabelledLoss


def log_partition_penalty(logits: Tensor, labelled: Tensor | None = None, dim: int = 1) -> Tensor:
    r"""Return the mean of :math:`\log^2 Z` with :math:`Z = \sum_c e^{z_c}`, the auxiliary z-loss of language models.

    Args:
        logits: Class scores z.
        labelled: Which units count; all by default.
        dim: Dimension of the classes.

    Shape:
        - logits: ``(B, C, ...)`` for ``dim=1``; returns a scalar, float32 for half precision.
        - labelled: the shape of ``logits`` without ``dim``, boolean.

    Raises:
        ValueError: If ``labelled`` has another shape.

    Note:
        Not the Z-loss of the spherical family (de Brébisson, Vincent 2016), which replaces the softmax.

    Example:
        >>> log_partition_penalty(torch.zeros(3, 8))  # log(8) ** 2
        tensor(4.3241)

    References:
        Chowdhery et al. *PaLM: Scaling Language Modeling with Pathways*. JMLR 24, 2023.
        https://arxiv.org/abs/2204.02311, Sec. 5.
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 3.1.2.
    """
    log_z = torch.logsumexp(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=dim)
    if labelled is None:
        return log_z.square().mean()
    if labelled.shape != log_z.shape:
        raise ValueError(
            f"log_partition_penalty: labelled must have the shape {tuple(log_z.shape)} of the logits without dimension "
            f"{dim}, got {tuple(labelled.shape)}."
        )
    squares = torch.where(labelled, log_z, torch.zeros_like(log_z)).square()
    return squares.sum() / labelled.sum().clamp(min=1)


class LogPartitionPenalty(LabelledLoss):
    r"""Add the log-partition penalty (z-loss) to a softmax loss.

    .. math:: L = \frac{1}{N} \sum_i \left(\ell_i + c\, \log^2 Z_i\right), \qquad Z_i = \sum_c e^{z_{ic}}

    with the wrapped loss :math:`\ell`, logits :math:`z` and the sum over its :math:`N` labelled units.

    Args:
        loss: Loss on logits ``(B, C, ...)`` with one unit per sample or pixel, such as
            :class:`~lightning_mtl.losses.CrossEntropy`. Its own ``reduction`` is ignored.
        coefficient: c, not negative. The papers use 1e-4; runs of a few hundred steps need about 1e-2 to show it.

    Shape:
        - as the wrapped loss.

    Raises:
        ValueError: If the coefficient is negative, or the units of the loss are not those of the logits.

    Example:
        >>> from lightning_mtl.losses import CrossEntropy
        >>> loss = LogPartitionPenalty(CrossEntropy(num_classes=2), coefficient=1.0)
        >>> loss(torch.zeros(3, 2), torch.tensor([0, 1, -100]))  # log(2) + log(2) ** 2
        tensor(1.1736)

    References:
        Chowdhery et al. *PaLM: Scaling Language Modeling with Pathways*. JMLR 24, 2023.
        https://arxiv.org/abs/2204.02311, Sec. 5.
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 3.1.2.
    """

    def __init__(self, loss: LabelledLoss, coefficient: float = 1e-4) -> None:
        super().__init__(loss.reduction)
        if not coefficient >= 0:
            raise ValueError(f"LogPartitionPenalty: coefficient must not be negative, got {coefficient}.")
        self.loss = loss
        self.coefficient = coefficient

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless the shapes fit the wrapped loss."""
        self.loss.check_shapes(prediction, target)

    def check_values(self, target: Tensor) -> None:
        """Raise ValueError if the wrapped loss refuses a label."""
        self.loss.check_values(target)

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the wrapped loss has labels."""
        return self.loss.labelled(target)

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the wrapped loss of every unit and its penalty."""
        log_z = torch.logsumexp(prediction, dim=1)
        if log_z.shape != labelled.shape:
            raise ValueError(
                "LogPartitionPenalty: loss must have one unit per softmax, got units of shape "
                f"{tuple(labelled.shape)} for logits {tuple(prediction.shape)}; wrap a cross entropy."
            )
        return self.loss.units(prediction, target, labelled) + self.coefficient * log_z.square()
