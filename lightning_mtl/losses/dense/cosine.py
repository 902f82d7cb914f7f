"""Cosine distance for surface normals."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.unit_vectors import unit_vectors
from lightning_mtl.losses.base import LabelledLoss


class CosineDistance(LabelledLoss):
    r"""One minus the cosine of the angle between predicted and true vectors.

    .. math:: L = \frac{1}{N} \sum_i 1 - \frac{\hat n_i^\top n_i}{\lVert \hat n_i \rVert \lVert n_i \rVert}

    over the :math:`N` labelled pixels; between 0 and 2, whatever the length of the predictions.

    Args:
        reduction: ``"mean"``, or ``"none"`` for the distance of every pixel.

    Shape:
        - prediction: vectors ``(B, D, ...)`` of any length.
        - target: vectors ``(B, D, ...)``; zero vectors and vectors with NaN or infinite components are unlabelled.
        - returns ``(B, ...)`` for ``"none"``.

    Raises:
        ValueError: If the shapes differ.

    Note:
        The multi-task benchmarks minimise the negative mean cosine; this is the same up to the constant 1, so that zero
        means perfect.

    Example:
        >>> CosineDistance()(torch.tensor([[0.0, 2.0]]), torch.tensor([[1.0, 0.0]]))
        tensor(1.)

    References:
        Shikun Liu, Edward Johns, Andrew J. Davison. *End-to-End Multi-Task Learning with Attention*. CVPR, 2019.
        https://arxiv.org/abs/1803.10704
    """

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless the shapes are equal."""
        self._check_same_shape(prediction, target)

    def labelled(self, target: Tensor) -> Tensor:
        """Return which vectors are finite and not zero, ``(B, ...)``."""
        return torch.isfinite(target).all(1) & (target != 0).any(1)

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the distance of every vector."""
        here = labelled.unsqueeze(1)
        prediction = torch.where(here, prediction, torch.zeros_like(prediction))
        true = unit_vectors(torch.where(here, target, torch.zeros_like(target)).to(prediction.dtype))
        return 1 - (unit_vectors(prediction) * true).sum(1)
