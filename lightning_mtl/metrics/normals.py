"""Metrics of surface normals."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.functional.unit_vectors import unit_vectors
from lightning_mtl.metrics.base import ExactMetric

BINS_PER_DEGREE = 100


class AngleErrors(ExactMetric):
    """A histogram of angles between predicted and true normals; the normal metrics share one update in a collection.

    All metrics are over the labelled pixels of the data set together, as in the public codes of multi-task benchmarks
    that report a median. The histogram has bins of 0.01 degrees, so it can be summed over processes and needs no
    storage that grows with the data.

    Shape:
        - prediction: ``(B, 3, ...)``, of any length.
        - target: ``(B, 3, ...)``; zero vectors and vectors with NaN or infinite components are unlabelled.
    """

    histogram: Tensor
    total: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum("histogram", 180 * BINS_PER_DEGREE, dtype=torch.int64)
        self.add_sum("total")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if prediction.shape != target.shape:
            raise ValueError(
                f"{type(self).__name__}: prediction and target must have the same shape, got {tuple(prediction.shape)} "
                f"and {tuple(target.shape)}; resize the prediction to the target."
            )
        labelled = torch.isfinite(target).all(1) & (target != 0).any(1)
        guess = unit_vectors(prediction.detach().float())
        truth = unit_vectors(torch.where(labelled.unsqueeze(1), target.float(), torch.zeros_like(guess)))
        # atan2 is exact for small angles, where acos of the dot product loses half of the digits; a zero prediction has
        # no direction and counts as 90 degrees.
        sine = torch.linalg.cross(guess, truth, dim=1).square().sum(1).sqrt()
        dot = (guess * truth).sum(1)
        sine = torch.where(guess.square().sum(1) > 0, sine, torch.ones_like(sine))
        angle = torch.atan2(sine, dot).rad2deg()[labelled]
        bins = (angle * BINS_PER_DEGREE).long().clamp(max=len(self.histogram) - 1)
        self.histogram += torch.bincount(bins, minlength=len(self.histogram))
        self.total += angle.sum(dtype=self.total.dtype)


class MeanAngle(AngleErrors):
    """Mean angle between predicted and true normals, in degrees.

    Shape:
        - prediction: ``(B, 3, ...)``, of any length.
        - target: ``(B, 3, ...)``; zero vectors and vectors with NaN or infinite components are unlabelled.

    Example:
        >>> metric = MeanAngle()
        >>> metric.update(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]), torch.tensor([[1.0, 0.0, 0.0]] * 2))
        >>> metric.compute()
        tensor(45.)

    References:
        David F. Fouhey, Abhinav Gupta, Martial Hebert. *Data-Driven 3D Primitives for Single Image Understanding*.
        ICCV, 2013. https://doi.org/10.1109/ICCV.2013.421: the measures of normals.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 180.0

    def compute(self) -> Tensor:
        """Return the mean angle."""
        return (self.total / self.histogram.sum()).float()


class MedianAngle(AngleErrors):
    """Median angle between predicted and true normals, in degrees.

    Shape:
        - prediction: ``(B, 3, ...)``, of any length.
        - target: ``(B, 3, ...)``; zero vectors and vectors with NaN or infinite components are unlabelled.

    Note:
        The middle of the bin that holds the median (the mean of two for an even count), so right to 0.005 degrees.

    Example:
        >>> metric = MedianAngle()
        >>> metric.update(torch.eye(3), torch.tensor([[1.0, 0.0, 0.0]] * 3))
        >>> metric.compute()
        tensor(90.0050)

    References:
        David F. Fouhey, Abhinav Gupta, Martial Hebert. *Data-Driven 3D Primitives for Single Image Understanding*.
        ICCV, 2013. https://doi.org/10.1109/ICCV.2013.421: the measures of normals.
    """

    higher_is_better = False
    plot_lower_bound = 0.0
    plot_upper_bound = 180.0

    def compute(self) -> Tensor:
        """Return the median angle."""
        below = self.histogram.cumsum(0)
        count = below[-1:]
        middle = torch.searchsorted(below, torch.cat([(count + 1) // 2, count // 2 + 1])).float()
        median = (middle + 0.5).mean() / BINS_PER_DEGREE
        return torch.where(count[0] > 0, median, torch.full_like(median, torch.nan))


class WithinAngle(AngleErrors):
    """Share of pixels whose normal is less than so many degrees off.

    Args:
        degrees: The bound; a multiple of 0.01 between 0 and 180.

    Shape:
        - prediction: ``(B, 3, ...)``, of any length.
        - target: ``(B, 3, ...)``; zero vectors and vectors with NaN or infinite components are unlabelled.

    Raises:
        ValueError: If ``degrees`` is out of range or falls between two bins.

    Example:
        >>> metric = WithinAngle(degrees=30)
        >>> metric.update(torch.eye(3), torch.tensor([[1.0, 0.0, 0.0]] * 3))
        >>> metric.compute()
        tensor(0.3333)

    References:
        David F. Fouhey, Abhinav Gupta, Martial Hebert. *Data-Driven 3D Primitives for Single Image Understanding*.
        ICCV, 2013. https://doi.org/10.1109/ICCV.2013.421: the measures of normals.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    def __init__(self, degrees: float) -> None:
        super().__init__()
        bins = degrees * BINS_PER_DEGREE
        if not 0 < degrees <= 180 or abs(bins - round(bins)) > 1e-6:
            raise ValueError(
                f"{type(self).__name__}: degrees must be a multiple of 0.01 between 0 and 180, got {degrees}."
            )
        self.degrees = degrees

    def compute(self) -> Tensor:
        """Return the share."""
        return (self.histogram[: round(self.degrees * BINS_PER_DEGREE)].sum() / self.histogram.sum()).float()
