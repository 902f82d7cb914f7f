"""What the detector remembers of one task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass
class Curves:
    """A training and a validation curve on the same steps, and the kernel's measures on steps of their own.

    Args:
        steps: Step of every check.
        train: Value of the training metric at every check, NaN where it was not logged, infinity where it was NaN.
        val: Value of the validation metric at every check.
        train_reference: First value of the training metric, NaN as long as there is none.
        val_reference: First value of the validation metric.
        measured_at: Steps at which the kernel was measured.
        measures: Measure -> its values at these steps.
    """

    steps: list[int] = field(default_factory=list)
    train: list[float] = field(default_factory=list)
    val: list[float] = field(default_factory=list)
    train_reference: float = math.nan
    val_reference: float = math.nan
    measured_at: list[int] = field(default_factory=list)
    measures: dict[str, list[float]] = field(default_factory=dict)

    def record(self, step: int, train: float | None, val: float | None) -> None:
        """Add a check; a check at the step of the last one replaces it."""
        if self.steps and self.steps[-1] == step:
            for curve in (self.steps, self.train, self.val):
                curve.pop()
        self.steps.append(step)
        self.train.append(_stored(train))
        self.val.append(_stored(val))
        if math.isnan(self.train_reference) and math.isfinite(self.train[-1]):
            self.train_reference = self.train[-1]
        if math.isnan(self.val_reference) and math.isfinite(self.val[-1]):
            self.val_reference = self.val[-1]

    @property
    def non_finite(self) -> int:
        """How many logged values were NaN or infinite."""
        return sum(math.isinf(value) for value in (*self.train, *self.val))

    def add_measures(self, step: int, found: Mapping[str, float]) -> None:
        """Add a measurement of the kernel; one at the step of the last one replaces it."""
        again = bool(self.measured_at) and self.measured_at[-1] == step
        if not again:
            self.measured_at.append(step)
        for name, value in found.items():
            values = self.measures.setdefault(name, [math.nan] * (len(self.measured_at) - 1))
            if again and len(values) == len(self.measured_at):
                values.pop()
            values.append(value)

    def latest(self) -> dict[str, float]:
        """Return measure -> its last value."""
        return {name: values[-1] for name, values in self.measures.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return everything as tensors and plain data."""
        return {
            "steps": torch.tensor(self.steps, dtype=torch.int64),
            "train": torch.tensor(self.train, dtype=torch.float64),
            "val": torch.tensor(self.val, dtype=torch.float64),
            "train_reference": self.train_reference,
            "val_reference": self.val_reference,
            "measured_at": list(self.measured_at),
            "measures": {name: list(values) for name, values in self.measures.items()},
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Curves:
        """Return the curves of a state."""
        lists = {name: state[name].tolist() for name in ("steps", "train", "val")}
        return cls(**{**state, **lists})


def _stored(value: float | None) -> float:
    if value is None:
        return math.nan
    return value if math.isfinite(value) else math.inf
