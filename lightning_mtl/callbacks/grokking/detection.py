"""When a curve falls, and what two such times say: fitting, memorised, generalised or grokked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

State = Literal["fitting", "memorised", "generalised", "grokked"]
Threshold = float | Literal["auto", "change_point"]
Curve = npt.NDArray[np.float64]

STATES: tuple[State, ...] = ("fitting", "memorised", "generalised", "grokked")
"""The states in order; the number that is logged is the position."""

_MIN_SHIFT = 0.5
"""Smallest change of level, as a share of the larger level, that counts as a fall where no threshold is given."""
_AUTO_SHARE = 0.1
_MEDIAN_WINDOW = 5


@dataclass(frozen=True)
class GrokkingTimes:
    """When a task was memorised, when it generalised, and what that makes of it.

    Args:
        state: ``"fitting"``: the training curve has not fallen. ``"memorised"``: it has, the validation curve has not.
            ``"generalised"``: the validation curve has fallen. ``"grokked"``: it fell much later than the training
            curve.
        memorised_at: Step at which the training curve had fallen, or None.
        generalised_at: Step at which the validation curve had fallen, or None.
        lag: Steps between the two; None unless both are known.
        ratio: ``generalised_at / memorised_at``; None unless both are known.
    """

    state: State
    memorised_at: int | None
    generalised_at: int | None
    lag: int | None
    ratio: float | None


def detect_grokking(
    steps: Sequence[int],
    train: Sequence[float],
    val: Sequence[float],
    train_threshold: Threshold = 0.1,
    val_threshold: Threshold = 0.1,
    patience: int = 2,
    min_ratio: float = 2.5,
    mode: Literal["min", "max"] = "min",
    smoothing: int = 1,
) -> GrokkingTimes:
    """Find memorization and generalization in a pair of curves.

    A curve has *fallen* at the first of ``patience`` consecutive checks at or beyond its threshold. Values that are not
    finite break such a row and are otherwise left out.

    Args:
        steps: Step of every check, increasing.
        train: Training curve.
        val: Validation curve, of the same length.
        train_threshold: A number; ``"change_point"`` for the step at which the level of the curve changed, found
            without a threshold (:func:`change_point`); or ``"auto"`` for a tenth of the way back from the best value
            to the first one, which serves where label noise keeps every curve away from zero. The last two ask for a
            curve that changes by half of its level, look at the whole curve, and may move as it grows.
        val_threshold: The same for the validation curve.
        patience: How many checks in a row must be beyond the threshold.
        min_ratio: How many times later than the training curve the validation curve must fall to be called grokking.
        mode: Whether a curve gets better by falling (losses) or by rising (accuracies).
        smoothing: Every value is replaced by the median of this many checks up to it. 1 leaves the curves as they
            are.

    Raises:
        ValueError: If the lengths differ, steps do not increase, or an argument is out of range.

    Example:
        >>> train = [1.0, 0.3, 0.05, 0.01, 0.01, 0.01, 0.01, 0.01]
        >>> val = [1.0, 1.1, 1.2, 1.1, 0.9, 0.4, 0.05, 0.02]
        >>> detect_grokking(range(10, 90, 10), train, val, min_ratio=2.0)
        GrokkingTimes(state='grokked', memorised_at=30, generalised_at=70, lag=40, ratio=2.3333333333333335)
    """
    if not len(steps) == len(train) == len(val):
        raise ValueError(
            f"detect_grokking: steps, train and val must have one length, got {len(steps)}, {len(train)}, {len(val)}."
        )
    for argument, value in (("patience", patience), ("smoothing", smoothing)):
        if value < 1:
            raise ValueError(f"detect_grokking: {argument} must be at least 1, got {value}.")
    if len(steps) and (np.diff(steps) <= 0).any():
        place = int((np.diff(steps) <= 0).argmax())
        raise ValueError(f"detect_grokking: steps must increase, got {steps[place + 1]} after {steps[place]}.")
    sign = 1.0 if mode == "min" else -1.0
    times = [
        _fallen(sign * _finite(curve), threshold, patience, smoothing, sign)
        for curve, threshold in ((train, train_threshold), (val, val_threshold))
    ]
    memorised, generalised = (None if index is None else int(steps[index]) for index in times)
    lag = ratio = None
    if memorised is not None and generalised is not None:
        lag = generalised - memorised
        ratio = generalised / memorised if memorised else math.inf if generalised else 1.0
    state: State = "fitting"
    if ratio is not None and ratio >= min_ratio:
        state = "grokked"
    elif generalised is not None:
        state = "generalised"
    elif memorised is not None:
        state = "memorised"
    return GrokkingTimes(state, memorised, generalised, lag, ratio)


def _finite(curve: Sequence[float]) -> Curve:
    """Return a curve with NaN in place of every value that is not finite."""
    values = np.asarray(curve, dtype=np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _fallen(curve: Curve, threshold: Threshold, patience: int, smoothing: int, sign: float) -> int | None:
    """Return the index at which a curve that gets better by falling had fallen."""
    curve = _running_median(curve, smoothing)
    if threshold == "change_point":
        return change_point(curve, patience)
    if threshold == "auto":
        finite = curve[np.isfinite(curve)]
        if not len(finite) or not _shifted(finite[0], finite.min()):
            return None
        return first_crossing(curve, finite.min() + _AUTO_SHARE * (finite[0] - finite.min()), patience)
    return first_crossing(curve, float(threshold) * sign, patience)


def first_crossing(curve: Curve, threshold: float, patience: int) -> int | None:
    """Return the index of the first of ``patience`` consecutive values at or below a threshold, or None.

    Example:
        >>> first_crossing(np.array([3.0, 1.0, 2.0, 1.0, 0.5]), threshold=1.0, patience=2)
        3
    """
    below = np.asarray(curve <= threshold)  # False for NaN
    if len(below) < patience:
        return None
    rows = np.lib.stride_tricks.sliding_window_view(below, patience).all(axis=1)
    return int(rows.argmax()) if rows.any() else None


def change_point(curve: Curve, patience: int = 2) -> int | None:
    r"""Return the index of the first value behind the largest fall of level, or None where there is none.

    The curve, after a running median of five against single spikes, is described by two levels; the split is that of
    least squares. It counts if the level changes by at least half of the larger one, if the second level has lasted for
    ``patience`` values, and if the change exceeds what noise would make of a constant curve of this length,
    :math:`\hat\sigma (2 + \sqrt{2 \log 2n})` in units of the standard error, with :math:`\hat\sigma` from the median
    absolute difference of neighbours.

    Args:
        curve: Values that get better by falling.
        patience: Smallest number of values behind the fall.

    Example:
        >>> noise = np.random.default_rng(0).normal(0, 0.1, 100)
        >>> change_point(np.where(np.arange(100) < 40, 1.0, 0.2) + noise), change_point(1.0 + noise)
        (40, None)

    References:
        Bai. *Estimation of a Change Point in Multiple Regression Models*. Review of Economics and Statistics 79, 1997
        (the split of least squares and its consistency).
        https://doi.org/10.1162/003465397557132
    """
    kept = np.flatnonzero(np.isfinite(curve))
    values = _centred_median(curve[kept], _MEDIAN_WINDOW)
    count = len(values)
    if count < 2 + patience:
        return None
    sizes = np.arange(1, count - patience + 1)
    sums = np.cumsum(values)
    before = sums[sizes - 1] / sizes
    after = (sums[-1] - sums[sizes - 1]) / (count - sizes)
    gains = np.where(after < before, (before - after) ** 2 * sizes * (count - sizes) / count, 0.0)
    best = int(gains.argmax())
    raw = curve[kept]
    noise = 1.4826 * float(np.median(np.abs(np.diff(raw)))) / math.sqrt(2)
    significant = math.sqrt(float(gains[best])) > noise * (2 + math.sqrt(2 * math.log(2 * count)))
    if not significant or not _shifted(float(before[best]), float(after[best])):
        return None
    return int(kept[sizes[best]])


def _shifted(before: float, after: float) -> bool:
    """Whether a fall from one level to another is at least half of the larger of the two."""
    return before - after >= _MIN_SHIFT * max(abs(before), abs(after)) and before > after


def _running_median(curve: Curve, window: int) -> Curve:
    """Return the median of the last ``window`` finite values at every place, NaN where the value is not finite."""
    if window == 1:
        return curve
    kept = np.flatnonzero(np.isfinite(curve))
    smooth = np.full_like(curve, np.nan)
    if len(kept):
        padded = np.concatenate([np.full(window - 1, curve[kept[0]]), curve[kept]])
        smooth[kept] = np.median(np.lib.stride_tricks.sliding_window_view(padded, window), axis=1)
    return smooth


def _centred_median(values: Curve, window: int) -> Curve:
    """Return the median around every place; windows at the ends are shorter."""
    if len(values) < window:
        return values
    half = window // 2
    middle = np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=1)
    ends = [np.median(values[: 2 * i + 1]) for i in range(half)]
    starts = [np.median(values[len(values) - 2 * i - 1 :]) for i in reversed(range(half))]
    return np.concatenate([ends, middle, starts])
