"""Regression of logits."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.losses.distillation.base import DistillationLoss


class LogitMatching(DistillationLoss):
    r"""Mean squared difference between a student's logits and a teacher's (Ba and Caruana, NIPS 2014).

    .. math:: L = \frac{1}{N} \sum_i \frac{1}{C} \sum_{c \in K_i} (z_{ic} - v_{ic})^2

    with logits :math:`z` of the student and :math:`v` of the teacher, the sum over the :math:`N` labelled units,
    :math:`C` classes and :math:`K_i` those that the teacher knew, which have a finite logit. Half of it is the limit of
    :class:`DistillationKL` at high temperature for logits of zero mean. Dark experience replay distils with it.

    Args:
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction: the student's logits ``(B, C, ...)``.
        - target: the teacher's logits, same shape; minus infinity for a class that it does not know, NaN for a unit
          without teacher.

    Raises:
        ValueError: If the shapes do not fit.

    Example:
        >>> LogitMatching()(torch.zeros(1, 3), torch.tensor([[1.0, 2.0, -torch.inf]]))
        tensor(1.6667)

    References:
        Ba, Caruana. *Do Deep Nets Really Need to be Deep?* NIPS 2014. https://arxiv.org/abs/1312.6184, Eq. 1.
        Buzzega, Boschini, Porrello, Abati, Calderara. *Dark Experience for General Continual Learning*. NeurIPS 2020.
        https://arxiv.org/abs/2004.07211, Eq. 5.
    """

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the mean squared difference of every unit."""
        known, teacher = self.known_classes(target.to(prediction.dtype), labelled)
        squared = torch.where(known, (prediction - teacher).square(), torch.zeros_like(prediction))
        return squared.mean(dim=1)
