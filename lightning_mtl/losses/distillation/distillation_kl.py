"""Knowledge distillation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_mtl.losses.base import Reduction
from lightning_mtl.losses.distillation.base import DistillationLoss


class DistillationKL(DistillationLoss):
    r"""Kullback-Leibler divergence of a student's softened softmax from a teacher's (Hinton et al., 2015).

    .. math:: L = \frac{T^2}{N} \sum_i \sum_{c \in K_i} p_{ic} \left(\log p_{ic} - \log q_{ic}\right), \qquad
        p_i = \mathrm{softmax}_{K_i}(v_i / T),\; q_i = \mathrm{softmax}_{K_i}(z_i / T)

    with logits :math:`z` of the student and :math:`v` of the teacher, temperature :math:`T`, the sum over the :math:`N`
    labelled units (samples or pixels), and :math:`K_i` the classes that the teacher knew, which are those with a finite
    logit. The factor :math:`T^2` keeps the gradient's size independent of the temperature.

    Args:
        temperature: T, positive.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction: the student's logits ``(B, C, ...)``.
        - target: the teacher's logits, same shape; minus infinity for a class that it does not know, NaN for a unit
          without teacher.

    Raises:
        ValueError: If the temperature is not positive, or the shapes do not fit.

    Note:
        The gradient does not flow into the target unless it requires one. Only the divergence is taken; add the cross
        entropy with the labels yourself.

    Example:
        >>> loss = DistillationKL(temperature=2.0)
        >>> loss(torch.zeros(1, 2), torch.tensor([[0.0, 2.0]]))
        tensor(0.4438)

    References:
        Hinton, Vinyals, Dean. *Distilling the Knowledge in a Neural Network*. NIPS 2014 Deep Learning Workshop.
        https://arxiv.org/abs/1503.02531, Sec. 2.
    """

    def __init__(self, temperature: float = 1.0, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if not temperature > 0:
            raise ValueError(f"DistillationKL: temperature must be positive, got {temperature}.")
        self.temperature = temperature

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the divergence of every unit."""
        known, teacher = self.known_classes(target.to(prediction.dtype), labelled)
        student_log = F.log_softmax((prediction / self.temperature).masked_fill(~known, -torch.inf), dim=1)
        teacher_log = F.log_softmax((teacher / self.temperature).masked_fill(~known, -torch.inf), dim=1)
        gap = torch.where(known, teacher_log - student_log, torch.zeros_like(student_log))
        return self.temperature**2 * (teacher_log.exp() * gap).sum(dim=1)
