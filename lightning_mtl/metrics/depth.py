"""Metrics of depth."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.metrics.base import ExactMetric


class DepthErrors(ExactMetric):
    """The sums that the depth metrics are made of; they share one update in a collection.

    All metrics are means over the labelled pixels of the data set, so images with few labels count less.

    Shape:
        - prediction, target: any, the same for both; targets that are not positive and finite are unlabelled.

    Note:
        Public multi-task codes average the means of batches; the two agree where every batch has as many labelled
        pixels.
    """

    totals: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("totals", 6)  # absolute, relative, squared, and the three shares within 1.25^k
        self.add_sum("count", dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if prediction.shape != target.shape:
            raise ValueError(
                f"{type(self).__name__}: prediction and target must have the same shape, got {tuple(prediction.shape)} "
                f"and {tuple(target.shape)}; resize the prediction to the target."
            )
        labelled = torch.isfinite(target) & (target > 0)
        one = torch.ones_like(target, dtype=torch.float32)
        guess = torch.where(labelled, prediction.detach().float(), one)
        truth = torch.where(labelled, target.float(), one)
        error = (guess - truth).abs()
        # A prediction that is not positive has no ratio and is within no threshold.
        ratio = torch.where(guess > 0, torch.maximum(guess / truth, truth / guess), torch.full_like(guess, torch.inf))
        values = [error, error / truth, error.square(), *((ratio < 1.25**power) & labelled for power in (1, 2, 3))]
        self.totals += torch.stack([value.sum(dtype=self.totals.dtype) for value in values])
        self.count += labelled.sum()

    def _mean(self, index: int) -> Tensor:
        return self.totals[index] / self.count


class DepthAbsError(DepthErrors):
    """Mean absolute error of depth, in the unit of the target.

    Shape:
        - prediction, target: any, the same for both; targets that are not positive and finite are unlabelled.

    Example:
        >>> metric = DepthAbsError()
        >>> metric.update(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([2.0, 2.0, 0.0]))
        >>> metric.compute()
        tensor(1.)

    References:
        David Eigen, Christian Puhrsch, Rob Fergus. *Depth Map Prediction from a Single Image using a Multi-Scale Deep
        Network*. NeurIPS, 2014. https://arxiv.org/abs/1406.2283, Sec. 4: the measures of depth.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def compute(self) -> Tensor:
        """Return the mean absolute error."""
        return self._mean(0).float()


class DepthRelError(DepthErrors):
    """Mean of the absolute error of depth divided by the true depth.

    Shape:
        - prediction, target: any, the same for both; targets that are not positive and finite are unlabelled.

    Example:
        >>> metric = DepthRelError()
        >>> metric.update(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([2.0, 2.0, 0.0]))
        >>> metric.compute()
        tensor(0.5000)

    References:
        David Eigen, Christian Puhrsch, Rob Fergus. *Depth Map Prediction from a Single Image using a Multi-Scale Deep
        Network*. NeurIPS, 2014. https://arxiv.org/abs/1406.2283, Sec. 4: the measures of depth.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def compute(self) -> Tensor:
        """Return the mean relative error."""
        return self._mean(1).float()


class DepthRMSE(DepthErrors):
    """Root of the mean squared error of depth, in the unit of the target.

    Shape:
        - prediction, target: any, the same for both; targets that are not positive and finite are unlabelled.

    Note:
        One root over all pixels, not the mean of the roots of images.

    Example:
        >>> metric = DepthRMSE()
        >>> metric.update(torch.tensor([5.0, 1.0]), torch.tensor([1.0, 1.0]))
        >>> metric.compute()
        tensor(2.8284)

    References:
        David Eigen, Christian Puhrsch, Rob Fergus. *Depth Map Prediction from a Single Image using a Multi-Scale Deep
        Network*. NeurIPS, 2014. https://arxiv.org/abs/1406.2283, Sec. 4: the measures of depth.
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def compute(self) -> Tensor:
        """Return the root mean squared error."""
        return self._mean(2).sqrt().float()


class DepthWithin(DepthErrors):
    r"""Share of pixels whose depth is right up to a factor of :math:`1.25^k`.

    Args:
        power: The exponent k: 1, 2 or 3.

    Shape:
        - prediction, target: any, the same for both; targets that are not positive and finite are unlabelled.

    Raises:
        ValueError: If ``power`` is not 1, 2 or 3.

    Example:
        >>> metric = DepthWithin(power=1)
        >>> metric.update(torch.tensor([1.2, 1.3, -1.0]), torch.tensor([1.0, 1.0, 1.0]))
        >>> metric.compute()
        tensor(0.3333)

    References:
        David Eigen, Christian Puhrsch, Rob Fergus. *Depth Map Prediction from a Single Image using a Multi-Scale Deep
        Network*. NeurIPS, 2014. https://arxiv.org/abs/1406.2283, Sec. 4: the measures of depth.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, power: int = 1) -> None:
        super().__init__()
        if power not in (1, 2, 3):
            raise ValueError(f"{type(self).__name__}: power must be 1, 2 or 3, got {power}.")
        self.power = power

    def compute(self) -> Tensor:
        """Return the share."""
        return self._mean(2 + self.power).float()
