"""BerHu: the reverse Huber loss for depth."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.losses.regression.errors import AbsoluteError


class BerHu(AbsoluteError):  # noqa: N818 - no exception
    r"""Absolute error where it is small, squared beyond a threshold set by the largest error (Laina et al., 3DV 2016).

    .. math::
        B(e) = |e| \text{ for } |e| \le c, \quad \frac{e^2 + c^2}{2c} \text{ otherwise}, \qquad
        c = \tfrac{1}{5} \max_i |e_i|

    with the error :math:`e` of a pixel and the maximum over the labelled pixels of its image. The threshold is a
    constant for the gradient.

    Args:
        missing: Which targets are no labels: ``"nan"``, or ``"nonpositive"`` for depth.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction, target: ``(B, ...)``, the same for both.

    Raises:
        ValueError: If the shapes differ or a label is infinite.

    Note:
        The paper takes the maximum over the batch; over the image, the loss of an image does not depend on its
        neighbours in the batch, nor on how many processes share the batch.

    Example:
        >>> BerHu(reduction="none")(torch.tensor([[0.0, 1.0, 10.0]]), torch.zeros(1, 3))
        tensor([[ 0.,  1., 26.]])

    References:
        Iro Laina, Christian Rupprecht, Vasileios Belagiannis, Federico Tombari, Nassir Navab. *Deeper Depth Prediction
        with Fully Convolutional Residual Networks*. 3DV, 2016. https://arxiv.org/abs/1606.00373, Eq. 1.
    """

    def penalty(self, error: Tensor) -> Tensor:
        """Return the reverse Huber loss of the differences; unlabelled ones are zero and never the largest."""
        size = error.abs()
        threshold = size.detach().flatten(1).amax(1).div(5).view(-1, *[1] * (error.ndim - 1))
        safe = threshold.clamp_min(torch.finfo(error.dtype).tiny)
        # e * (e / c) does not overflow where e * e would: |e| <= 5c.
        return torch.where(size <= threshold, size, (size * (size / safe) + threshold) / 2)
