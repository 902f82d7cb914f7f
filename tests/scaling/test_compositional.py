"""The grid of pools and its summary, on models whose accuracy is known."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from lightning_mtl.data import CompositionRegistry, Triplet
from lightning_mtl.scaling import compare_conditions, compositional_report, spread

CONDITIONS = ("all", "related", "unrelated", "without:task", "random:task", "none")


@pytest.fixture
def registry() -> CompositionRegistry:
    registry = CompositionRegistry()
    for values in itertools.product("012", repeat=3):
        registry.add("".join(values), **Triplet(*values)._asdict())
    return registry


def knows(pool: Mapping[str, int], seed: int) -> dict[str, object]:
    return {"pool": dict(pool), "seed": seed}


def accuracy(model: Mapping[str, object], target: str) -> float:
    """Half, plus a sixth for every factor of the target that the pool holds, less a hundredth a seed."""
    pool = model["pool"]
    assert isinstance(pool, dict)
    held = sum(any(name[place] == target[place] for name in pool) for place in range(3))
    return 0.5 + held / 6 - 0.01 * int(str(model["seed"]))


def report(registry: CompositionRegistry, **options: object) -> list[dict[str, object]]:
    arguments = {
        "targets": ["201", "120"],
        "conditions": CONDITIONS,
        "seeds": [0, 1],
        "sizes": dict.fromkeys(registry, 30),
        "allow_shared": (1,),
        **options,
    }
    return compositional_report(knows, accuracy, registry, **arguments)  # type: ignore[arg-type]


def test_every_target_condition_and_seed_is_run_once(registry: CompositionRegistry) -> None:
    seen: list[dict[str, object]] = []
    rows = report(registry, on_run=seen.append)
    assert rows == seen
    keys = [(row["target"], row["condition"], row["seed"]) for row in rows]
    assert len(set(keys)) == len(keys) == 2 * len(CONDITIONS) * 2


def test_accuracy_falls_with_what_the_pool_lacks(registry: CompositionRegistry) -> None:
    found = {row["condition"]: row for row in report(registry) if row["target"] == "201" and row["seed"] == 1}
    expected = {"all": 1.0, "related": 1.0, "without:task": 0.5 + 2 / 6, "unrelated": 0.5, "none": 0.5}
    for condition, value in expected.items():
        assert found[condition]["accuracy"] == pytest.approx(value - 0.01)
        assert found[condition]["gain"] == pytest.approx(value - 1)
        assert found[condition]["above_chance"] == pytest.approx(value - 0.51)
        assert found[condition]["normalized"] == pytest.approx(2 * (value - 0.51))


def test_pools_are_cut_to_the_smallest_unless_told_otherwise(registry: CompositionRegistry) -> None:
    datasets = {"all": 20, "related": 12, "unrelated": 8, "without:task": 16, "random:task": 16, "none": 0}
    for row in report(registry):
        assert row["datasets"] == datasets[str(row["condition"])]
        assert row["items"] == (0 if row["condition"] == "none" else 240)
    for row in report(registry, equal_sizes=False):
        assert row["items"] == 30 * datasets[str(row["condition"])]


def test_samples_of_the_target_are_added_to_any_pool(registry: CompositionRegistry) -> None:
    pools: list[Mapping[str, int]] = []

    def train(pool: Mapping[str, int], seed: int) -> None:
        pools.append(dict(pool))

    compositional_report(
        train,
        lambda model, target: 0.5,
        registry,
        ["201"],
        ["related", "related+target", "none+target"],
        [0],
        sizes=dict.fromkeys(registry, 30),
        few_shot=7,
    )
    related, more, alone = pools
    assert "201" not in related
    assert more == {**related, "201": 7}
    assert alone == {"201": 7}


@pytest.mark.parametrize(("total", "expected"), [(0, [0, 0, 0]), (5, [1, 2, 2]), (12, [1, 5, 6]), (3, [1, 1, 1])])
def test_items_are_spread_evenly(total: int, expected: list[int]) -> None:
    sizes = {"a": 1, "b": 5, "c": 100}
    counts = spread(total, sizes)
    assert sum(counts.values()) == total
    assert sorted(counts.get(name, 0) for name in sizes) == expected
    with pytest.raises(ValueError, match="total must be at most the 106 items of all, got 107"):
        spread(107, sizes)


def test_chance_is_that_of_the_target(registry: CompositionRegistry) -> None:
    rows = report(registry, chance={"201": 0.25})
    assert all(row["above_chance"] == row["accuracy"] - (0.25 if row["target"] == "201" else 0.5) for row in rows)


def rows_of(accuracies: Mapping[str, Sequence[float]]) -> list[dict[str, object]]:
    return [
        {"condition": condition, "target": str(i // 2), "seed": i % 2, "accuracy": value, "normalized": 2 * value - 1}
        for condition, values in accuracies.items()
        for i, value in enumerate(values)
    ]


def test_the_summary_has_the_paired_test_of_the_literature() -> None:
    from scipy.stats import ttest_rel

    a, b = [0.9, 0.8, 0.95, 0.7], [0.6, 0.7, 0.65, 0.68]
    first, second = compare_conditions(rows_of({"all": a, "none": b}))
    assert first["accuracy"] == pytest.approx(np.mean(a))
    assert second["std"] == pytest.approx(np.std(b, ddof=1))
    assert second["gain"] == pytest.approx(np.mean(b) - np.mean(a))
    assert second["normalized"] == pytest.approx(2 * np.mean(b) - 1)
    assert second["p"] == pytest.approx(ttest_rel(b, a).pvalue)
    assert second["p_targets"] == pytest.approx(
        ttest_rel(np.reshape(b, (2, 2)).mean(1), np.reshape(a, (2, 2)).mean(1))[1]
    )
    assert math.isnan(first["p"])


def test_equal_differences_have_no_p_value() -> None:
    _, second = compare_conditions(rows_of({"all": [0.5, 0.5], "none": [0.25, 0.25]}))
    assert math.isnan(second["p"])


def test_without_scipy_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    with pytest.raises(ModuleNotFoundError, match=r"lightning-mtl\[scaling\]"):
        compare_conditions(rows_of({"all": [0.5, 0.6]}))


def test_wrong_arguments_say_what_is_wrong(registry: CompositionRegistry) -> None:
    with pytest.raises(ValueError, match="targets, conditions and seeds must not be empty"):
        report(registry, seeds=[])
    with pytest.raises(ValueError, match=r"few_shot must be positive for '\+target', got 0"):
        report(registry, conditions=["none+target"])
    small = CompositionRegistry()
    small.add("a", modality="x", area="y", task="z")
    small.add("b", modality="x", area="v", task="w")
    with pytest.raises(ValueError, match="pool of condition 'unrelated' for target 'a' must not be empty"):
        report(small, targets=["a"], conditions=["unrelated"])
    with pytest.raises(ValueError, match="rows must hold at least one run"):
        compare_conditions([])
    rows = rows_of({"all": [0.5, 0.6], "none": [0.5]})
    with pytest.raises(ValueError, match=r"condition 'none' must have the runs \(target, seed\) of the first"):
        compare_conditions(rows)
