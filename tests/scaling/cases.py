"""Laws with known parameters, and the fits that should find them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_mtl.scaling import (
    AttentionLogitForecast,
    AttentionPrediction,
    LawFit,
    LRSensitivity,
    LRSensitivityResult,
    PowerLaw,
    fit_law,
    fit_power_law,
)

Array = NDArray[np.float64]
SIZES: Array = np.geomspace(1e5, 1e9, 12)


@dataclass(frozen=True)
class FitCase:
    """A law, its true parameters, and how it is fitted to measurements."""

    id: str
    inputs: Array
    law: Callable[[Array], Array]
    truth: dict[str, float]
    fit: Callable[[Array, Array], Any]
    read: Callable[[Any], dict[str, float]]
    fewest: int
    residual: str = "log"


def _power(fit: PowerLaw) -> dict[str, float]:
    return {"coefficient": fit.coefficient, "exponent": fit.exponent, "offset": fit.offset}


def _two_inputs(values: Array, inputs: Array) -> Array:
    return np.asarray(values[0] * (inputs[0] / 1e7) ** values[1] * (inputs[1] / 1e7) ** values[2])


FITS = [
    FitCase(
        "falling to an offset",
        SIZES,
        lambda x: 1.7 + 300 * x**-0.35,
        {"coefficient": 300.0, "exponent": -0.35, "offset": 1.7},
        lambda x, y: fit_power_law(x, y),
        _power,
        3,
    ),
    FitCase(
        "falling to zero",
        SIZES,
        lambda x: 4 * x**-0.08,
        {"coefficient": 4.0, "exponent": -0.08, "offset": 0.0},
        lambda x, y: fit_power_law(x, y, offset=0.0),
        _power,
        2,
    ),
    FitCase(
        "rising",
        SIZES,
        lambda x: 2e-4 * x**0.6,
        {"coefficient": 2e-4, "exponent": 0.6, "offset": 0.0},
        lambda x, y: fit_power_law(x, y, offset=0.0, residual="difference"),
        _power,
        2,
        "difference",
    ),
    FitCase(
        "two inputs",
        np.stack([SIZES, SIZES[[3, 1, 7, 0, 5, 9, 2, 11, 4, 8, 6, 10]]]),
        lambda x: 50 * (x[0] / 1e7) ** -0.2 * (x[1] / 1e7) ** -0.1,
        {"scale": 50.0, "first": -0.2, "second": -0.1},
        lambda x, y: fit_law(
            _two_inputs, x, y, [{"scale": 10.0, "first": e, "second": e} for e in (-0.5, -0.1)], {"scale": (1e-6, 1e6)}
        ),
        lambda fit: dict(fit.parameters),
        3,
    ),
]

# PowerLaw and LawFit are what the fits above return; AttentionLogitForecast and its AttentionPrediction are tested in
# test_attention_forecast.py, LRSensitivity and its LRSensitivityResult in test_lr_sensitivity.py.
_ELSEWHERE = (AttentionLogitForecast, AttentionPrediction, LawFit, LRSensitivity, LRSensitivityResult)
