"""What is special to the fits of power laws."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from lightning_mtl.scaling import fit_law, fit_power_law


def test_all_starting_points_of_a_clean_law_agree() -> None:
    x = np.geomspace(1, 1e4, 8)
    assert fit_power_law(x, 2 + 3 * x**-0.5).fit.agreement > 0.9


def test_a_fitted_offset_stays_between_zero_and_the_smallest_measurement() -> None:
    fit = fit_power_law([1.0, 2.0, 4.0, 8.0], [1.0, 1.01, 0.99, 1.0])
    assert 0 <= fit.offset <= 0.99


@pytest.mark.parametrize(
    ("x", "y", "options", "message"),
    [
        ([1, 2, 3], [1, 2], {}, "must have one length"),
        ([1, 2, 3], [1, -2, 3], {}, "must be positive to be compared by logarithms"),
        ([1, 2, 3], [1, float("nan"), 3], {}, "must be finite; leave out the runs that diverged"),
        ([0, 2, 3], [1, 2, 3], {}, "x must be positive"),
        ([1, 2, 3], [1, 2, 3], {"offset": 1.5}, "offset must be below the smallest y=1.0, got 1.5"),
    ],
    ids=["lengths", "negative", "nan", "zero", "offset"],
)
def test_points_that_cannot_be_fitted_are_refused(x: Any, y: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_power_law(x, y, **options)


def test_starts_without_a_finite_value_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the 1 starting points gives finite residuals"):
        fit_law(lambda p, x: p[0] * x * np.nan, [1.0, 2.0], [1.0, 2.0], [{"a": 1.0}], {})
    with pytest.raises(ValueError, match="starts must hold at least one starting point"):
        fit_law(lambda p, x: x, [1.0], [1.0], [], {})


def test_intervals_need_more_points_than_parameters() -> None:
    with pytest.raises(ValueError, match=r"intervals need more points than the 3 parameters .*, got 3"):
        fit_power_law([1, 10, 100], [3, 2, 1.5]).confidence()
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 2"):
        fit_power_law([1, 10, 100, 1000], [3, 2, 1.5, 1.2]).confidence(level=2, num_resamples=2)


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("scipy"):
            raise ModuleNotFoundError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install lightning-mtl\[scaling\]"):
        fit_power_law([1, 2, 3], [3, 2, 1])
