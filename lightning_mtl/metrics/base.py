"""What the metrics of this package share."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection


class ExactMetric(Metric):
    """A metric whose floating-point sums are kept in float64.

    A float32 sum over the pixels of a data set stops growing after some ten million of them. The states keep their type
    when a module is cast to half precision; they are float32 on devices without float64.
    """

    is_differentiable = False
    full_state_update = False

    def add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.float64) -> None:
        """Add a state of zeros that is summed over batches and processes."""
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[..., Any], exclude_state: Sequence[str] = "") -> nn.Module:
        """Move the states as ``fn`` moves a tensor, and leave their types alone."""
        super()._apply(fn, exclude_state=tuple(self._defaults))
        for name, default in self._defaults.items():
            self._defaults[name] = self._placed(default)
            setattr(self, name, self._placed(getattr(self, name)))
        return self

    def _placed(self, state: Any) -> Any:
        if isinstance(state, list):
            return [self._placed(part) for part in state]
        no_float64 = self.device.type == "mps"
        dtype = torch.float32 if state.dtype == torch.float64 and no_float64 else state.dtype
        return state.to(self.device, dtype)


class TaskMetrics(MetricCollection):
    """The metrics of one task, by the names under which they are logged.

    Computing them before any update is no mistake here: a data set may hold no label for a task, or none on this
    process. The metrics of this package then give NaN, without a warning. Metrics share their state only where it is
    declared: the automatic grouping of torchmetrics joins metrics whose states happen to be equal after the first
    batch, which a batch without labels makes true of unrelated ones.

    Args:
        metrics: Metric for every name.
        shared: Groups of names whose metrics have the same states and the same update.
    """

    def __init__(self, metrics: dict[str, Metric], shared: Sequence[Sequence[str]] = ()) -> None:
        super().__init__(dict(metrics), compute_groups=[list(group) for group in shared] or False)

    def compute(self) -> dict[str, Any]:
        """Return the value of every metric since the last reset."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The ``compute`` method of metric", category=UserWarning)
            return super().compute()


def directions(metrics: MetricCollection) -> dict[str, bool]:
    """Return the name of every value that the metrics compute -> whether higher is better.

    A metric that computes several values says so in an attribute ``directions`` of the same form.
    """
    found: dict[str, bool] = {}
    for name, metric in metrics.items():
        found |= getattr(metric, "directions", {name: bool(metric.higher_is_better)})
    return found


def nan_unless(defined: Tensor, value: Tensor) -> Tensor:
    """Return ``value`` where it is defined, NaN elsewhere, in float32."""
    return torch.where(defined, value, torch.full_like(value, torch.nan)).float()


def mean_or_nan(values: list[Tensor], device: torch.device) -> Tensor:
    """Return the mean of the values, NaN if there are none, in float32 on the device."""
    mean = torch.stack(values).mean() if values else torch.tensor(torch.nan)
    return mean.float().to(device)
