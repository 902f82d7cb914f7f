"""Say from small runs whether the attention logits of a large one will blow up."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np


def extrapolate_polynomial(
    num_params: Sequence[float], values: Sequence[float], target: float, degree: Literal[1, 2] = 2
) -> float:
    r"""Extend a polynomial of :math:`\log_{10}` value over :math:`\log_{10}` size to another size.

    Args:
        num_params: Sizes of the measured models.
        values: What was measured, positive.
        target: Size of the model that is asked about.
        degree: 2 for the paper's quadratic, 1 for a power law.

    Returns:
        The value at the target; infinite where it exceeds the numbers.

    Raises:
        ValueError: If there are fewer than ``degree + 1`` different sizes, or a number is not positive and finite.

    Example:
        >>> round(extrapolate_polynomial([1e4, 1e5, 1e6], [1.0, 10.0, 100.0], 1e7), 3)
        1000.0

    References:
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 3.3.
    """
    sizes, measured = np.asarray(num_params, dtype=np.float64), np.asarray(values, dtype=np.float64)
    if sizes.shape != measured.shape or len(np.unique(sizes)) < degree + 1:
        raise ValueError(
            f"extrapolate_polynomial: degree {degree} needs at least {degree + 1} different sizes with one value each, "
            f"got {sizes.size} sizes ({len(np.unique(sizes))} different) and {measured.size} values."
        )
    everything = np.concatenate([sizes, measured, [target]])
    if not (np.isfinite(everything).all() and (everything > 0).all()):
        raise ValueError(
            "extrapolate_polynomial: sizes, values and target must be positive and finite; leave out runs that "
            "diverged before the step at which they are compared."
        )
    centre = float(np.log10(sizes).mean())
    coefficients = np.polyfit(np.log10(sizes) - centre, np.log10(measured), degree)
    power = float(np.polyval(coefficients, math.log10(target) - centre))
    return 10.0**power if power < 300 else math.inf


@dataclass(frozen=True)
class AttentionPrediction:
    """Predicted largest attention logit of a model that has not been trained.

    Args:
        num_params: Size of the model.
        learning_rate: Its learning rate.
        quadratic: Prediction of the paper's quadratic.
        line: Prediction of a power law.
        threshold: Logit from which on runs diverge.
    """

    num_params: float
    learning_rate: float
    quadratic: float
    line: float
    threshold: float

    @property
    def verdict(self) -> Literal["stable", "uncertain", "unstable"]:
        """``unstable`` if both fits reach the threshold, ``uncertain`` if one does."""
        reached = (self.quadratic >= self.threshold) + (self.line >= self.threshold)
        return ("stable", "uncertain", "unstable")[reached]


class AttentionLogitForecast:
    r"""Predict the largest attention logit of a model from smaller ones, before it is trained.

    At every learning rate a quadratic and a line are fitted to :math:`\log_{10}` of the largest logit over
    :math:`\log_{10}` of the number of parameters, all read at the same early step, and extended to the model that is
    asked about. Between two learning rates the predictions are interpolated in their logarithms. Treat the numbers as
    orders of magnitude: with sizes within a factor of 100, a quadratic has missed by a factor of three.

    Args:
        runs: Rows with ``num_params``, ``learning_rate`` and ``max_attention_logit``, or the path of a CSV file with
            these columns, such as :class:`~lightning_mtl.scaling.LRSensitivity` writes when the training function
            returns them. Rows of one size and learning rate (seeds) are averaged in the logarithm; rows whose logit is
            not finite are left out.
        threshold: Logit from which on runs diverge; the paper saw divergence in every run above 1e4.

    Raises:
        ValueError: If a column is missing, or no learning rate has three sizes.
        FileNotFoundError: If the file does not exist.

    Note:
        The paper reads the logits at step 2000 of 100,000: earlier they say little, later unstable runs are gone.

    Example:
        >>> rows = [
        ...     {"num_params": n, "learning_rate": 0.1, "max_attention_logit": n**0.5 / 10}
        ...     for n in (1e4, 1e5, 1e6, 1e7)
        ... ]
        >>> prediction = AttentionLogitForecast(rows).predict(num_params=1e11, learning_rate=0.1)
        >>> round(prediction.quadratic), prediction.verdict
        (31623, 'unstable')

    References:
        Wortsman et al. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322, Sec. 3.3.
    """

    def __init__(self, runs: str | Path | Sequence[Mapping[str, float]], threshold: float = 1e4) -> None:
        if not threshold > 0:
            raise ValueError(f"AttentionLogitForecast: threshold must be positive, got {threshold}.")
        self.threshold = threshold
        rows: Iterable[Mapping[str, float | str]] = _read_csv(runs) if isinstance(runs, str | Path) else runs
        logarithms: dict[float, dict[float, list[float]]] = {}
        for row in rows:
            missing = [name for name in ("num_params", "learning_rate", "max_attention_logit") if name not in row]
            if missing:
                raise ValueError(
                    f"AttentionLogitForecast: runs must have the columns {missing}, got {sorted(row)}; return "
                    "num_params and max_attention_logit from the training function of the sweep."
                )
            logit = float(row["max_attention_logit"] or math.nan)
            if math.isfinite(logit) and logit > 0:
                sizes = logarithms.setdefault(float(row["learning_rate"]), {})
                sizes.setdefault(float(row["num_params"]), []).append(math.log(logit))
        self.runs: dict[float, dict[float, float]] = {
            rate: {size: math.exp(sum(logs) / len(logs)) for size, logs in sorted(sizes.items())}
            for rate, sizes in sorted(logarithms.items())
            if len(sizes) >= 3
        }
        if not self.runs:
            found = {rate: len(sizes) for rate, sizes in logarithms.items()}
            raise ValueError(
                "AttentionLogitForecast: runs must have at least 3 sizes at some learning rate, got (learning rate -> "
                f"sizes) {found}; add smaller models to the sweep."
            )

    def predict(self, num_params: float, learning_rate: float) -> AttentionPrediction:
        """Predict the largest logit of a model.

        Args:
            num_params: Its size, counted as in the runs.
            learning_rate: Its peak learning rate.

        Raises:
            ValueError: If the learning rate lies outside those of the runs.
        """
        rates = list(self.runs)
        if not rates[0] * (1 - 1e-6) <= learning_rate <= rates[-1] * (1 + 1e-6):
            raise ValueError(
                f"AttentionLogitForecast: learning_rate must be within {rates[0]}..{rates[-1]}, where runs with 3 "
                f"sizes exist, got {learning_rate}; add runs at that learning rate."
            )
        above = min((rate for rate in rates if rate >= learning_rate * (1 - 1e-6)), default=rates[-1])
        below = max((rate for rate in rates if rate <= learning_rate * (1 + 1e-6)), default=rates[0])
        share = 0.0 if above == below else math.log(learning_rate / below) / math.log(above / below)
        predicted = []
        degrees: tuple[Literal[1, 2], ...] = (2, 1)
        for degree in degrees:
            first, second = (
                extrapolate_polynomial(list(self.runs[rate]), list(self.runs[rate].values()), num_params, degree)
                for rate in (below, above)
            )
            if share == 0.0 or math.isinf(first) or math.isinf(second):
                predicted.append(first if share < 0.5 else second)
            else:
                predicted.append(math.exp((1 - share) * math.log(first) + share * math.log(second)))
        return AttentionPrediction(num_params, learning_rate, predicted[0], predicted[1], self.threshold)


def _read_csv(path: str | os.PathLike[str]) -> list[dict[str, float | str]]:
    with open(path, newline="") as file:
        return [dict(row) for row in csv.DictReader(file)]
