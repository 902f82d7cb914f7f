"""What the losses on a teacher's logits share."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.losses.base import LabelledLoss


class DistillationLoss(LabelledLoss):
    """A loss between the logits of a student and those of a teacher, over the classes that the teacher knows.

    A logit of minus infinity in the target is a class that the teacher did not know: it takes no part, and the student
    gets no gradient for it. A unit whose teacher logits hold NaN, or know no class, is unlabelled.
    """

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless both are logits ``(B, C, ...)`` of the same shape."""
        self._check_same_shape(prediction, target)
        if prediction.ndim < 2 or not target.is_floating_point():
            raise ValueError(
                f"{type(self).__name__}: target must be the logits (B, C, ...) of a teacher, got shape "
                f"{tuple(target.shape)} and {target.dtype}; give logits, not class labels."
            )

    def check_values(self, target: Tensor) -> None:
        """Raise ValueError if a teacher logit is plus infinity."""
        self._refuse(target == torch.inf, target, "finite logits, -inf for unknown classes, or NaN")

    def labelled(self, target: Tensor) -> Tensor:
        """Return where the teacher gave logits for at least one class."""
        return ~target.isnan().any(dim=1) & target.isfinite().any(dim=1)

    @staticmethod
    def known_classes(target: Tensor, labelled: Tensor) -> tuple[Tensor, Tensor]:
        """Return where a class is known, and the teacher's logits with zeros elsewhere; unlabelled units know all."""
        known = target.isfinite() | ~labelled.unsqueeze(1)
        return known, torch.where(target.isfinite(), target, torch.zeros_like(target))
