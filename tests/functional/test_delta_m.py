"""The multi-task performance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_mtl.functional.delta_m import delta_m

UP = {"a": {"x": True, "y": False}, "b": {"z": False}}
BASE = {"a": {"x": 0.5, "y": 2.0}, "b": {"z": 4.0}}


def test_mean_is_over_tasks_of_the_mean_over_their_metrics() -> None:
    metrics = {"a": {"x": 0.55, "y": 1.0}, "b": {"z": 5.0}}
    # task a: +10 % and +50 %, task b: -25 %
    assert delta_m(metrics, BASE, UP) == pytest.approx(((10 + 50) / 2 - 25) / 2)


def test_single_task_models_have_none() -> None:
    assert delta_m(BASE, BASE, UP) == 0


def test_metrics_without_a_baseline_are_left_out() -> None:
    metrics = {"a": {"x": 0.55, "other": 9.0}, "c": {"z": 5.0}}
    assert delta_m(metrics, {"a": {"x": 0.5}}, UP) == pytest.approx(10)


@pytest.mark.parametrize("baselines", [{}, {"c": {"x": 1.0}}, {"a": {"x": 0.0}}], ids=["none", "other", "zero"])
def test_without_any_baseline_there_is_no_value(baselines: dict[str, dict[str, float]]) -> None:
    assert delta_m({"a": {"x": 0.55}}, baselines, UP) is None


def test_negative_baseline_keeps_the_direction() -> None:
    assert delta_m({"a": {"x": -1.0}}, {"a": {"x": -2.0}}, UP) == pytest.approx(50)


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.floats(0.01, 100))
def test_better_is_positive_and_units_do_not_matter(value: float, baseline: float, unit: float) -> None:
    for metric, sign in (("x", 1), ("y", -1)):
        change = delta_m({"a": {metric: value}}, {"a": {metric: baseline}}, UP)
        scaled = delta_m({"a": {metric: unit * value}}, {"a": {metric: unit * baseline}}, UP)
        assert change == pytest.approx(sign * 100 * (value / baseline - 1), abs=1e-9)
        assert scaled == pytest.approx(change, rel=1e-6, abs=1e-6)
