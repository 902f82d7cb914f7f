"""Learning-rate sensitivity and its sweep."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from lightning_mtl.scaling import LRSensitivity, LRSensitivityResult, lr_sensitivity

GOLDEN = [
    case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "instability.json").read_text())["cases"]
    if case["inputs"]["function"] == "lr_sensitivity"
]


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_values(case: dict[str, Any]) -> None:
    found = lr_sensitivity(case["inputs"]["losses"], case["inputs"]["init_loss"])
    assert found == pytest.approx(case["expected"], rel=case["rtol"])


def test_runs_at_chance_and_diverged_runs_count_as_the_initial_loss() -> None:
    assert lr_sensitivity([5.0, 9.0, None], 4.0) == 0.0
    assert lr_sensitivity([1.0, math.nan], 4.0) == lr_sensitivity([1.0, math.inf], 4.0) == 1.5


def test_what_gives_no_sensitivity_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 learning rates, got 1"):
        lr_sensitivity([1.0], 4.0)
    with pytest.raises(ValueError, match="initial_loss must be finite, got nan"):
        lr_sensitivity([1.0, 2.0], math.nan)


def bowl(scale: int, rate: float, seed: int) -> dict[str, float]:
    """A bowl around 0.1 whose width falls with the scale; the largest rate diverges at scale 2."""
    if scale == 2 and rate == 1.0:
        raise FloatingPointError("diverged")
    return {"loss": scale * math.log10(rate / 0.1) ** 2 + 0.01 * seed, "initial_loss": 5.0, "num_params": 100.0 * scale}


def sweep(**options: Any) -> LRSensitivity:
    return LRSensitivity(bowl, [1, 2], [0.01, 0.1, 1.0], seeds=[0, 1], **options)


def test_a_sweep_reports_every_scale() -> None:
    table = sweep().run().table()
    assert [row["scale"] for row in table] == ["1", "2"]
    assert [row["lr_sensitivity"] for row in table] == pytest.approx([2 / 3, (2 + 4.995) / 3])
    assert [row["best_learning_rate"] for row in table] == [0.1, 0.1]
    assert [row["diverged"] for row in table] == [0, 2]
    assert [row["runs"] for row in table] == [6, 6]


def test_the_curve_of_a_scale_is_the_mean_over_seeds() -> None:
    result = sweep().run()
    assert result.curve("2") == pytest.approx({0.01: 2.005, 0.1: 0.005, 1.0: 5.0})
    assert result.curve("1", seed=1) == pytest.approx({0.01: 1.01, 0.1: 0.01, 1.0: 1.01})
    with pytest.raises(ValueError, match=r"no run of scale '3' and seed None; known: \['1', '2'\]"):
        result.curve("3")


def test_a_killed_sweep_goes_on_after_the_last_finished_run(tmp_path: Path) -> None:
    path, calls = tmp_path / "runs" / "sweep.csv", []

    def dying(scale: int, rate: float, seed: int) -> dict[str, float]:
        calls.append((scale, rate, seed))
        if len(calls) == 5:
            raise KeyboardInterrupt
        return bowl(scale, rate, seed)

    with pytest.raises(KeyboardInterrupt):
        LRSensitivity(dying, [1, 2], [0.01, 0.1, 1.0], seeds=[0, 1], path=path).run()
    resumed = LRSensitivity(dying, [1, 2], [0.01, 0.1, 1.0], seeds=[0, 1], path=path).run()
    assert len(calls) == 13
    assert calls[5] == calls[4]
    assert resumed.table() == sweep().run().table()
    again = LRSensitivity(dying, [1, 2], [0.01, 0.1, 1.0], seeds=[0, 1], path=path).run()
    assert len(calls) == 13
    assert again.table() == resumed.table()
    assert not list(path.parent.glob("*.partial"))


def test_a_plain_loss_and_one_initial_loss_are_enough() -> None:
    result = LRSensitivity(lambda scale, rate, seed: rate, ["a"], [1.0, 2.0], initial_loss=3.0).run()
    assert result.sensitivity("a") == 0.5
    without = LRSensitivityResult(result.rows, None)
    with pytest.raises(ValueError, match="initial_loss must be given"):
        without.sensitivity("a")


def test_the_plot_shows_the_curves_and_the_sensitivity_over_the_size() -> None:
    left, right = sweep().run().plot().axes
    assert [line.get_label() for line in left.lines] == ["1", "2"]
    assert right.get_xlabel() == "parameters"
    assert list(right.lines[0].get_xdata()) == [100.0, 200.0]
    variants = LRSensitivity(lambda s, rate, _: {"loss": rate, "num_params": 9.0}, ["a", "b"], [1.0, 2.0], (0,), 3.0)
    bars = variants.run().plot().axes[1]
    assert bars.get_xlabel() == "scale"
    assert [bar.get_height() for bar in bars.patches] == [0.5, 0.5]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rates": [0.1]}, "learning_rates must hold at least 2 different positive values"),
        ({"scales": []}, "scales must hold different values, at least one"),
        ({"seeds": [0, 0]}, "seeds must hold different values"),
    ],
    ids=["rates", "scales", "seeds"],
)
def test_wrong_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"LRSensitivity: {message}"):
        LRSensitivity(**({"train": bowl, "scales": [1]} | options))


def test_what_is_no_sweep_is_refused(tmp_path: Path) -> None:
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"must have the columns \['scale'.*choose another path"):
        sweep(path=tmp_path / "other.csv").run()
    with pytest.raises(ValueError, match=r"train must return a mapping with 'loss', got \['accuracy'\]"):
        LRSensitivity(lambda *_: {"accuracy": 1.0}, ["a"], [1.0, 2.0]).run()
