"""Division into intervals against an exhaustive search."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mtl.functional import interval_clustering

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "interval-clustering.json").read_text())["cases"]


def divisions(size: int, k: int) -> list[list[tuple[int, int]]]:
    """Return all divisions, those whose last interval begins earliest first."""
    splits = itertools.combinations(range(1, size), k - 1)
    found = [list(zip((0, *s), (*(i - 1 for i in s), size - 1), strict=True)) for s in splits]
    return sorted(found, key=lambda division: [first for first, _ in reversed(division)])


def cost(division: list[tuple[int, int]], distances: Tensor) -> float:
    return sum(float(distances[(first + last + 1) // 2, t]) for first, last in division for t in range(first, last + 1))


def search(distances: Tensor, k: int) -> list[tuple[int, int]]:
    """Return the first of the cheapest divisions."""
    found = divisions(len(distances), k)
    costs = [cost(division, distances) for division in found]
    least = min(costs)
    return next(d for d, c in zip(found, costs, strict=True) if c <= least + 1e-10 * abs(least))


@pytest.mark.parametrize("case", GOLDEN, ids=[f"{c['args']}" for c in GOLDEN])
def test_golden_values(case: dict[str, Any]) -> None:
    args, inputs = case["args"], case["inputs"]
    options = {"power": args["power"]} if args["objective"] == "center" else {}
    found = interval_clustering(**inputs, k=args["k"], **options)
    assert [list(interval) for interval in found] == case["expected"]["intervals"]
    if args["objective"] == "center":
        values = torch.tensor(inputs["values"], dtype=torch.float64)
        distances = (values[:, None] - values).abs() ** args["power"]
    else:
        distances = -torch.tensor(inputs["affinity"], dtype=torch.float64)
    assert cost(found, distances) == pytest.approx(case["expected"]["cost"], rel=case["rtol"])


@pytest.mark.parametrize("size", [1, 2, 5, 9, 12])
@pytest.mark.parametrize("power", [1, 2, 1.5])
def test_values_are_divided_as_by_exhaustive_search(size: int, power: float) -> None:
    for values in (torch.randn(size, dtype=torch.float64), torch.randn(size, dtype=torch.float64).sort().values):
        distances = (values[:, None] - values).abs() ** power
        for k in range(1, size + 1):
            assert interval_clustering(values, k=k, power=power) == search(distances, k)


@pytest.mark.parametrize("size", [2, 7, 12])
def test_affinity_is_divided_as_by_exhaustive_search(size: int) -> None:
    affinity = torch.randn(size, size, dtype=torch.float64)  # not symmetric: rows are the centres
    for k in range(1, size + 1):
        assert interval_clustering(affinity=affinity, k=k) == search(-affinity, k)


@pytest.mark.parametrize("scale", [1.0, 0.1, 1 / 3])
def test_ties_go_to_the_earliest_split_whatever_the_rounding(scale: float) -> None:
    for size in (4, 7, 10):
        index = torch.arange(size, dtype=torch.float64)
        for values in (index, torch.zeros(size, dtype=torch.float64), index.div(2).floor()):
            for k in range(1, size + 1):
                found = interval_clustering(scale * values, k=k)
                assert found == search((values[:, None] - values).abs(), k)


def test_costs_of_zero_are_allowed_before_the_last_interval() -> None:
    assert interval_clustering([1.0, 1.0, 7.0, 8.0, 7.0], k=2) == [(0, 1), (2, 4)]


def test_as_many_intervals_as_indices_are_singletons() -> None:
    assert interval_clustering(torch.randn(6), k=6) == [(i, i) for i in range(6)]


def test_a_thousand_levels_of_the_linear_schedule() -> None:
    signal = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)).cumprod(0)
    log_snr = signal.log() - (-signal).log1p()
    found = interval_clustering(log_snr, k=5, power=2)
    assert found == [(0, 86), (87, 329), (330, 595), (596, 813), (814, 999)]


@pytest.mark.parametrize("power", [1, 2])
def test_intervals_of_equal_length_are_among_the_best_for_indices_as_values(power: int) -> None:
    index = torch.arange(100, dtype=torch.float64)
    distances = (index[:, None] - index).abs() ** power
    found = interval_clustering(index, k=5, power=power)
    assert cost(found, distances) == cost([(20 * i, 20 * i + 19) for i in range(5)], distances)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": [1.0, 2.0], "k": 3}, "k must be between 1 and the number of indices, 2, got 3"),
        ({"values": [1.0, 2.0], "k": 0}, "k must be between 1 and the number of indices, 2, got 0"),
        ({"values": [], "k": 1}, "k must be between 1 and the number of indices, 0, got 1"),
        ({"values": [1.0, float("inf")], "k": 1}, "values must be finite, got inf at index 1"),
        ({"affinity": [[1.0, float("nan")], [0.0, 1.0]], "k": 1}, "affinity must be finite, got nan at index 0, 1"),
        ({"values": [1.0, 2.0], "k": 1, "power": 0}, "power must be positive, got 0"),
        ({"values": [[1.0, 2.0]], "k": 1}, r"values must have the shape \(n,\), got \(1, 2\)"),
        ({"affinity": [[1.0, 2.0]], "k": 1}, r"affinity must have the shape \(n, n\), got \(1, 2\)"),
        ({"k": 1}, "give either values or affinity"),
        ({"values": [1.0], "affinity": [[1.0]], "k": 1}, "give either values or affinity"),
    ],
)
def test_errors_name_the_argument(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"interval_clustering: {message}"):
        interval_clustering(**arguments)
