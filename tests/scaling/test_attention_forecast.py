"""Predictions of attention logits from smaller models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lightning_mtl.scaling import AttentionLogitForecast, extrapolate_polynomial

GOLDEN = [
    case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "instability.json").read_text())["cases"]
    if case["inputs"]["function"] == "extrapolate_quadratic_loglog"
]


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_quadratic_extrapolations(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    found = extrapolate_polynomial(inputs["n_params"], inputs["value"], inputs["target_n_params"])
    assert found == pytest.approx(case["expected"], rel=case["rtol"])


def rows(logit: Any, rates: tuple[float, ...] = (1e-3, 1e-1), sizes: tuple[float, ...] = (1e3, 1e4, 1e5)) -> Any:
    return [
        {"num_params": n, "learning_rate": rate, "max_attention_logit": logit(n, rate)} for n in sizes for rate in rates
    ]


def test_a_law_in_size_and_learning_rate_is_extended_exactly() -> None:
    forecast = AttentionLogitForecast(rows(lambda n, rate: 100 * n**0.5 * rate))
    for rate in (1e-3, 1e-2, 1e-1):
        prediction = forecast.predict(1e7, rate)
        assert prediction.quadratic == pytest.approx(100 * 1e7**0.5 * rate, rel=1e-6)
        assert prediction.line == pytest.approx(prediction.quadratic, rel=1e-6)
    assert [forecast.predict(1e7, rate).verdict for rate in (1e-3, 1e-1)] == ["stable", "unstable"]


def test_fits_that_disagree_are_uncertain() -> None:
    curved = AttentionLogitForecast(rows(lambda n, _: 10 ** (0.1 * (math.log10(n) - 3) ** 2 + 1)))
    prediction = curved.predict(1e9, 0.1)
    assert prediction.quadratic > 1e4 > prediction.line
    assert prediction.verdict == "uncertain"


def test_seeds_are_averaged_and_diverged_rows_left_out() -> None:
    table = rows(lambda n, _: n / 2) + rows(lambda n, _: n * 2) + rows(lambda *_: math.nan)
    assert AttentionLogitForecast(table).predict(1e6, 1e-3).line == pytest.approx(1e6, rel=1e-6)


def test_a_csv_file_of_a_sweep_is_read(tmp_path: Path) -> None:
    lines = ["num_params,learning_rate,seed,loss,max_attention_logit"]
    lines += [f"{row['num_params']},{row['learning_rate']},0,1.0,{row['max_attention_logit']}" for row in rows(max)]
    (tmp_path / "sweep.csv").write_text("\n".join([*lines, "1e6,0.1,0,nan,"]))
    assert AttentionLogitForecast(tmp_path / "sweep.csv").predict(1e6, 0.1).line == pytest.approx(1e6, rel=1e-6)


def test_what_cannot_be_predicted_is_refused() -> None:
    with pytest.raises(ValueError, match=r"runs must have the columns \['max_attention_logit'\].*return num_params"):
        AttentionLogitForecast([{"num_params": 1.0, "learning_rate": 1.0}])
    with pytest.raises(ValueError, match="at least 3 sizes at some learning rate"):
        AttentionLogitForecast(rows(max, sizes=(1.0, 2.0)))
    with pytest.raises(ValueError, match=r"learning_rate must be within 0.001..0.1, .* got 1.0"):
        AttentionLogitForecast(rows(max)).predict(1e6, 1.0)
    with pytest.raises(ValueError, match="threshold must be positive"):
        AttentionLogitForecast(rows(max), threshold=0)
    with pytest.raises(ValueError, match="degree 2 needs at least 3 different sizes"):
        extrapolate_polynomial([1, 1, 2], [1, 2, 3], 4)
    with pytest.raises(ValueError, match="must be positive and finite"):
        extrapolate_polynomial([1, 2, 3], [1, 2, math.inf], 4)
