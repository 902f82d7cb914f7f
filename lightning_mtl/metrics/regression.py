"""Metrics of numbers that may be missing."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lightning_mtl.functional.ranks import average_ranks
from lightning_mtl.metrics.base import ExactMetric, mean_or_nan, nan_unless


class RegressionMoments(ExactMetric):
    """The sums that the regression metrics are made of, for every output; they share one update in a collection.

    Entries whose target is NaN are missing, each for itself: an output is judged on its own labelled entries, which the
    metrics of torchmetrics cannot do for several outputs.

    Args:
        num_outputs: Number of outputs.

    Shape:
        - prediction: ``(B, num_outputs)``, or ``(B,)`` for one output.
        - target: the same; NaN marks missing entries.
    """

    moments: Tensor
    count: Tensor

    def __init__(self, num_outputs: int = 1) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.add_sum("count", num_outputs, dtype=torch.int64)
        self.add_sum("moments", 7, num_outputs)  # |p-t|, (p-t)^2, p, t, p^2, t^2, pt

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        target = target.reshape(-1, self.num_outputs).to(self.moments.dtype)
        labelled = ~torch.isnan(target)
        zero = torch.zeros_like(target)
        p = torch.where(labelled, prediction.detach().reshape(-1, self.num_outputs).to(self.moments.dtype), zero)
        t = torch.where(labelled, target, zero)
        self.count += labelled.sum(0)
        error = p - t  # summed one by one: a dense target has millions of entries
        self.moments += torch.stack(
            [
                error.abs().sum(0),
                error.square().sum(0),
                p.sum(0),
                t.sum(0),
                (p * p).sum(0),
                (t * t).sum(0),
                (p * t).sum(0),
            ]
        )

    def _spread(self, total: Tensor, total_of_squares: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum of squared deviations from the mean, and whether it is more than rounding."""
        spread = total_of_squares - total.square() / self.count
        rounding = 1e4 * torch.finfo(self.moments.dtype).eps
        return spread, (spread > rounding * total_of_squares) & (self.count > 1)


class LabelledMAE(RegressionMoments):
    """Mean absolute error over the labelled entries of the data set, NaN without any.

    Args:
        num_outputs: Number of outputs.

    Shape:
        - prediction: ``(B, num_outputs)``, or ``(B,)`` for one output.
        - target: the same; NaN marks missing entries.

    Example:
        >>> metric = LabelledMAE()
        >>> metric.update(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 4.0, float("nan")]))
        >>> metric.compute()
        tensor(1.5000)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def compute(self) -> Tensor:
        """Return the mean absolute error."""
        return (self.moments[0].sum() / self.count.sum()).float()


class LabelledRMSE(RegressionMoments):
    """Root of the mean squared error over the labelled entries of the data set, NaN without any.

    Args:
        num_outputs: Number of outputs.

    Shape:
        - prediction: ``(B, num_outputs)``, or ``(B,)`` for one output.
        - target: the same; NaN marks missing entries.

    Example:
        >>> metric = LabelledRMSE()
        >>> metric.update(torch.tensor([3.0, 4.0]), torch.tensor([0.0, 0.0]))
        >>> metric.compute()
        tensor(3.5355)
    """

    higher_is_better = False
    plot_lower_bound = 0.0

    def compute(self) -> Tensor:
        """Return the root mean squared error."""
        return (self.moments[1].sum() / self.count.sum()).sqrt().float()


class LabelledR2(RegressionMoments):
    """Coefficient of determination, averaged over the outputs that have one.

    Args:
        num_outputs: Number of outputs.

    Shape:
        - prediction: ``(B, num_outputs)``, or ``(B,)`` for one output.
        - target: the same; NaN marks missing entries.

    Note:
        Outputs with less than two labels or a constant target have none and are left out; NaN if none is left.

    Example:
        >>> metric = LabelledR2()
        >>> metric.update(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0]))
        >>> metric.compute()
        tensor(0.5000)
    """

    higher_is_better = True
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """Return the mean coefficient."""
        spread, defined = self._spread(self.moments[3], self.moments[5])
        return nan_unless(defined, 1 - self.moments[1] / spread).nanmean()


class LabelledPearson(RegressionMoments):
    """Pearson's correlation, averaged over the outputs that have one.

    Args:
        num_outputs: Number of outputs.

    Shape:
        - prediction: ``(B, num_outputs)``, or ``(B,)`` for one output.
        - target: the same; NaN marks missing entries.

    Note:
        Outputs with less than two labels, or constant on either side, have none and are left out; NaN if none is left.

    Example:
        >>> metric = LabelledPearson()
        >>> metric.update(torch.tensor([2.0, 4.0, 6.0]), torch.tensor([1.0, 2.0, 3.0]))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0

    def compute(self) -> Tensor:
        """Return the mean correlation."""
        of_prediction, varies = self._spread(self.moments[2], self.moments[4])
        of_target, varies_too = self._spread(self.moments[3], self.moments[5])
        together = self.moments[6] - self.moments[2] * self.moments[3] / self.count
        correlation = (together / of_prediction.sqrt() / of_target.sqrt()).clamp(-1, 1)
        return nan_unless(varies & varies_too, correlation).nanmean()


class LabelledSpearman(ExactMetric):
    """Spearman's rank correlation, averaged over the outputs that have one.

    Args:
        num_outputs: Number of outputs.

    Shape:
        - prediction: ``(B, num_outputs)``, or ``(B,)`` for one output.
        - target: the same; NaN marks missing entries.

    Note:
        Keeps all values. Outputs with less than two labels, or constant on either side, have no correlation and are
        left out; NaN if none is left.

    Example:
        >>> metric = LabelledSpearman()
        >>> metric.update(torch.tensor([1.0, 2.0, 9.0]), torch.tensor([0.0, 0.1, 0.2]))
        >>> metric.compute()
        tensor(1.)
    """

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    prediction: list[Tensor]
    target: list[Tensor]

    def __init__(self, num_outputs: int = 1) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        self.add_state("prediction", [], dist_reduce_fx="cat")
        self.add_state("target", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        self.prediction.append(prediction.detach().float().flatten())
        self.target.append(target.float().flatten())

    def compute(self) -> Tensor:
        """Return the mean correlation."""
        correlations = []
        if len(self.prediction) > 0:
            prediction = dim_zero_cat(self.prediction).view(-1, self.num_outputs).cpu()
            target = dim_zero_cat(self.target).view(-1, self.num_outputs).cpu()
            for guess, truth in zip(prediction.T, target.T, strict=True):
                labelled = ~torch.isnan(truth)
                ranks = torch.stack([average_ranks(guess[labelled]), average_ranks(truth[labelled])])
                centred = ranks - ranks.mean(1, keepdim=True)
                norms = centred.square().sum(1).sqrt()
                if len(ranks.T) > 1 and bool((norms > 0).all()):
                    correlations.append((centred[0] @ centred[1]) / norms.prod())
        return mean_or_nan(correlations, self.device)
