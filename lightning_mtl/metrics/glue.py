"""The metrics of the GLUE benchmark that torchmetrics defines otherwise."""

from __future__ import annotations

from torch import Tensor

from lightning_mtl.metrics.base import ExactMetric, nan_unless


class LabelledBinaryF1(ExactMetric):
    """F1 of one class against all others over the labelled samples: what GLUE reports for MRPC and QQP.

    Args:
        positive: The class.
        ignore_index: Target of unlabelled samples.

    Shape:
        - prediction: class ids ``(B, ...)`` or class scores ``(B, C, ...)``.
        - target: integers ``(B, ...)``.

    Note:
        0 where the class is neither predicted nor there, as scikit-learn has it; NaN without labels.

    Example:
        >>> import torch
        >>> metric = LabelledBinaryF1()
        >>> metric.update(torch.tensor([1, 1, 0, 1]), torch.tensor([1, 0, 0, -100]))
        >>> metric.compute()
        tensor(0.6667)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    hits: Tensor
    listed: Tensor
    labelled: Tensor

    def __init__(self, positive: int = 1, ignore_index: int = -100) -> None:
        super().__init__()
        self.positive = positive
        self.ignore_index = ignore_index
        for name in ("hits", "listed", "labelled"):
            self.add_sum(name)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if prediction.ndim == target.ndim + 1:
            prediction = prediction.argmax(1)
        labelled = target != self.ignore_index
        predicted, there = (prediction == self.positive) & labelled, (target == self.positive) & labelled
        self.hits += (predicted & there).sum()
        self.listed += predicted.sum() + there.sum()
        self.labelled += labelled.sum()

    def compute(self) -> Tensor:
        """Return the F1 score."""
        return nan_unless(self.labelled > 0, 2 * self.hits / self.listed.clamp(min=1))


class LabelledMatthews(ExactMetric):
    r"""Matthews' correlation over the labelled samples: what GLUE reports for CoLA.

    .. math::
        \frac{c\,s - \sum_k p_k t_k}{\sqrt{s^2 - \sum_k p_k^2}\,\sqrt{s^2 - \sum_k t_k^2}}

    with :math:`s` samples, :math:`c` of them right; class :math:`k` is predicted :math:`p_k` times and there
    :math:`t_k` times.

    Args:
        num_classes: Number of classes.
        ignore_index: Target of unlabelled samples.

    Shape:
        - prediction: class ids ``(B, ...)`` or class scores ``(B, C, ...)``.
        - target: integers ``(B, ...)``.

    Note:
        0 where predictions or labels are all of one class, as scikit-learn has it; NaN without labels.

    Example:
        >>> import torch
        >>> metric = LabelledMatthews(num_classes=2)
        >>> metric.update(torch.tensor([1, 1, 0, 0]), torch.tensor([1, 1, 0, 1]))
        >>> metric.compute()
        tensor(0.5774)

    References:
        Gorodkin. *Comparing two K-category assignments by a K-category correlation coefficient*. Computational Biology
        and Chemistry 28, 2004. https://doi.org/10.1016/j.compbiolchem.2004.09.006
    """

    higher_is_better = True
    plot_lower_bound = -1.0
    plot_upper_bound = 1.0
    right: Tensor
    predicted: Tensor
    there: Tensor

    def __init__(self, num_classes: int, ignore_index: int = -100) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.add_sum("right")
        self.add_sum("predicted", num_classes)
        self.add_sum("there", num_classes)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if prediction.ndim == target.ndim + 1:
            prediction = prediction.argmax(1)
        labelled = target != self.ignore_index
        prediction, target = prediction[labelled].long(), target[labelled].long()
        self.right += (prediction == target).sum()
        self.predicted += prediction.bincount(minlength=self.num_classes)
        self.there += target.bincount(minlength=self.num_classes)

    def compute(self) -> Tensor:
        """Return the correlation."""
        samples = self.there.sum()
        together = self.right * samples - (self.predicted * self.there).sum()
        spread = (samples**2 - self.predicted.square().sum()) * (samples**2 - self.there.square().sum())
        correlation = together / spread.sqrt().clamp(min=1)  # counts: a spread that is not 0 is at least 1
        return nan_unless(samples > 0, correlation)
