"""Scaling: numbers fitted from finished runs. Imports no Lightning; fits need the extra ``scaling`` (scipy)."""

from lightning_mtl.scaling.attention_forecast import (
    AttentionLogitForecast,
    AttentionPrediction,
    extrapolate_polynomial,
)
from lightning_mtl.scaling.compositional import compare_conditions, compositional_report, spread
from lightning_mtl.scaling.lr_sensitivity import LRSensitivity, LRSensitivityResult, lr_sensitivity
from lightning_mtl.scaling.power_law import LawFit, PowerLaw, fit_law, fit_power_law

__all__ = [
    "AttentionLogitForecast",
    "AttentionPrediction",
    "LRSensitivity",
    "LRSensitivityResult",
    "LawFit",
    "PowerLaw",
    "compare_conditions",
    "compositional_report",
    "extrapolate_polynomial",
    "fit_law",
    "fit_power_law",
    "lr_sensitivity",
    "spread",
]
