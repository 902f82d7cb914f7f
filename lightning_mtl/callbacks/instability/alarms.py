"""When to raise an alarm."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

AlarmKind = Literal["attention", "forecast", "log_z", "epsilon", "loss_spike", "nonfinite"]
ALARM_KINDS: tuple[AlarmKind, ...] = ("attention", "forecast", "log_z", "epsilon", "loss_spike", "nonfinite")

_MAD_TO_STD = 1.4826


class InstabilityWarning(UserWarning):
    """Training shows a sign of instability."""


class InstabilityError(FloatingPointError):
    """Training became unstable and was to be stopped."""


@dataclass(frozen=True)
class Alarm:
    """One sign of instability.

    Args:
        kind: What it is about.
        step: Optimizer step, counted from 0, at which it was seen.
        where: Module, block or output concerned.
        value: The number that raised it.
        critical: Whether it calls for action.
        message: What a person should know.
    """

    kind: AlarmKind
    step: int
    where: str
    value: float
    critical: bool
    message: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return dataclasses.asdict(self)


class LossSpikes:
    """Finds losses that stand out from those just before.

    A loss is a spike if it exceeds the median of the window by ``threshold`` robust standard deviations (1.4826 times
    the median absolute deviation) and every loss in the window. A spike does not enter the window. If the next loss
    stands out too, both are a new level, with which the window starts again.

    Args:
        threshold: Number of standard deviations.
        window: Number of losses remembered.
        smallest: Number of losses needed before the first judgement.
    """

    def __init__(self, threshold: float, window: int, smallest: int = 20) -> None:
        self.threshold = threshold
        self.window = window
        self.smallest = min(smallest, window)
        self.losses: list[float] = []
        self.held: float | None = None

    def update(self, loss: float) -> bool:
        """Take the next loss and say whether it is a spike."""
        if not math.isfinite(loss):
            return False
        spike = self.stands_out(loss)
        if spike and self.held is None:
            self.held = loss
            return True
        if self.held is not None and spike:
            self.losses = [self.held]
        self.held = None
        self.losses = [*self.losses, loss][-self.window :]
        return False

    def stands_out(self, loss: float) -> bool:
        """Say whether a loss is far above those remembered, without taking it."""
        if len(self.losses) < self.smallest or loss <= max(self.losses):
            return False
        median = statistics.median(self.losses)
        spread = _MAD_TO_STD * statistics.median(abs(value - median) for value in self.losses)
        return loss > median + self.threshold * max(spread, 1e-3 * abs(median))


def extrapolate_growth(points: Sequence[tuple[int, float]], step: float, smallest: int = 6) -> float:
    r"""Extend a growing quantity as a power of the step, by the median of all pairwise slopes.

    Args:
        points: (step, positive value), steps increasing; step 0 and values that are not positive are left out.
        step: Step to extend to.
        smallest: Number of points needed.

    Returns:
        The value expected at ``step``; NaN with too few points, the last value if it does not grow.

    Example:
        >>> round(extrapolate_growth([(step, 2.0 * step**1.5) for step in range(1, 9)], 100))
        2000

    References:
        Theil. *A rank-invariant method of linear and polynomial regression analysis*. 1950; Sen. *Estimates of the
        regression coefficient based on Kendall's tau*. JASA 63, 1968. https://doi.org/10.1080/01621459.1968.10480934
    """
    usable = [(math.log(at), math.log(value)) for at, value in points if at > 0 and 0 < value < math.inf]
    if len(usable) < smallest:
        return math.nan
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(usable) for x2, y2 in usable[i + 1 :] if x2 > x1]
    slope = statistics.median(slopes)
    if slope <= 0:
        return math.exp(usable[-1][1])
    level = statistics.median(y - slope * x for x, y in usable)
    power = level + slope * math.log(step)
    return math.exp(power) if power < 700 else math.inf
