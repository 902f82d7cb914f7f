"""Scale-invariant logarithmic error for depth."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.losses.base import LabelledLoss, Reduction


class SILog(LabelledLoss):
    r"""Scale-invariant error of the logarithm of depth (Eigen et al., NeurIPS 2014).

    .. math::
        L = \frac{1}{n} \sum_i d_i^2 - \frac{\lambda}{n^2} \Bigl(\sum_i d_i\Bigr)^2, \qquad
        d_i = \log \hat y_i - \log y_i

    for each image with :math:`n` labelled pixels, then the mean over the images that have any. With
    :math:`\lambda = 1` a common factor of all depths costs nothing, with 0 it is the squared error of the logarithm.

    Args:
        variance_focus: The factor :math:`\lambda` in ``[0, 1]``. The paper trains with 0.5.
        eps: Predictions below it are taken as ``eps``, in the unit of the target.
        reduction: ``"mean"``, or ``"none"`` for one value per image.

    Shape:
        - prediction: positive depths ``(B, ...)``.
        - target: ``(B, ...)``; pixels that are not positive and finite are unlabelled.

    Raises:
        ValueError: If an argument is out of range or the shapes differ.

    Note:
        Computed as the variance of d plus :math:`(1-\lambda)` times its squared mean, which cannot turn negative by
        rounding. The square root and the factor 10 that later works put around it are not in the paper.

    Example:
        >>> target = torch.tensor([[1.0, 2.0, 4.0]])
        >>> SILog(variance_focus=1.0)(3 * target, target).abs() < 1e-6
        tensor(True)

    References:
        David Eigen, Christian Puhrsch, Rob Fergus. *Depth Map Prediction from a Single Image using a Multi-Scale Deep
        Network*. NeurIPS, 2014. https://arxiv.org/abs/1406.2283, Eq. 4.
    """

    def __init__(self, variance_focus: float = 0.5, eps: float = 1e-6, reduction: Reduction = "mean") -> None:
        super().__init__(reduction)
        if not 0 <= variance_focus <= 1:
            raise ValueError(f"{type(self).__name__}: variance_focus must be in [0, 1], got {variance_focus}.")
        if eps <= 0:
            raise ValueError(f"{type(self).__name__}: eps must be positive, got {eps}.")
        self.variance_focus = variance_focus
        self.eps = eps

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless the shapes are equal."""
        self._check_same_shape(prediction, target)

    def labelled(self, target: Tensor) -> Tensor:
        """Return which images have a labelled pixel, ``(B,)``."""
        return self._pixels(target).flatten(1).any(1)

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the error of every image."""
        pixels = self._pixels(target)
        one = torch.ones_like(prediction)
        log_prediction = torch.where(pixels, prediction, one).clamp_min(self.eps).log()
        log_target = torch.where(pixels, target.to(prediction.dtype), one).log()
        difference = (log_prediction - log_target).flatten(1)
        pixels = pixels.flatten(1)
        count = pixels.sum(1, keepdim=True).clamp(min=1)
        mean = difference.sum(1, keepdim=True) / count
        centred = torch.where(pixels, difference - mean, torch.zeros_like(difference))
        variance = centred.square().sum(1) / count.squeeze(1)
        return variance + (1 - self.variance_focus) * mean.squeeze(1).square()

    @staticmethod
    def _pixels(target: Tensor) -> Tensor:
        return torch.isfinite(target) & (target > 0)
