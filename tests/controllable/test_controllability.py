"""Hypervolumes, and what sweeps of preferences reach."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lightning_mtl.controllable import controllability, hypervolume
from tests.controllable.test_search import batches, build, total


def by_inclusion_and_exclusion(points: np.ndarray, reference: np.ndarray) -> float:
    """Sum of the volumes of all intersections of the boxes, with alternating signs."""
    volume = 0.0
    for count in range(1, len(points) + 1):
        for chosen in itertools.combinations(points, count):
            sides = np.clip(np.min(chosen, axis=0) - reference, 0, None)
            volume -= (-1) ** count * float(np.prod(sides))
    return volume


@pytest.mark.parametrize("tasks", [1, 2, 3, 4])
def test_the_hypervolume_is_that_of_the_union_of_boxes(tasks: int) -> None:
    generator = np.random.default_rng(tasks)
    for _ in range(10):
        points = generator.normal(size=(7, tasks))
        points[3] = points[5]
        reference = np.full(tasks, -0.5)
        expected = by_inclusion_and_exclusion(points, reference)
        assert hypervolume(points, reference) == pytest.approx(expected, abs=1e-12)


def test_dominated_points_and_the_order_change_nothing() -> None:
    points = [(3.0, 1.0), (1.0, 2.0)]
    assert hypervolume([*points, (0.5, 0.5), (-1.0, 9.0)], (0, 0)) == hypervolume(points[::-1], (0, 0)) == 4.0
    assert hypervolume([], (0, 0)) == hypervolume([(0.0, 5.0)], (0, 0)) == 0
    with pytest.raises(ValueError, match=r"points must have 2 coordinates like the reference, got \(1.0,\)"):
        hypervolume([(1.0,)], (0, 0))


def test_controllability_is_the_mean_hypervolume_over_the_budgets() -> None:
    module, data = build((32,)), batches()
    full = total(module, module.full)
    preferences = [{"kind": 1.0, "size": 0.0}, {"kind": 0.0, "size": 1.0}]
    found = controllability(module, preferences, [0.4 * full, full], data, (6,))
    assert list(found.hypervolumes) == [0.4 * full, full]
    assert found.mean == pytest.approx(sum(found.hypervolumes.values()) / 2)
    least = module.evaluate(module.smallest, data)
    error = next(iter(least["size"]))
    for budget, results in found.results.items():
        assert all(result.flops <= budget for result in results)
        expected = [
            (
                result.metrics["kind"]["accuracy"] - least["kind"]["accuracy"],
                least["size"][error] - result.metrics["size"][error],
            )
            for result in results
        ]
        assert np.allclose(found.points[budget], expected)
        assert found.hypervolumes[budget] == pytest.approx(hypervolume(expected, (0, 0)))
    lower = {"kind": least["kind"]["accuracy"] - 0.1, "size": least["size"][error] + 0.1}
    wider = controllability(module, preferences[:1], [full], data, (6,), reference=lower)
    assert np.allclose(wider.points[full], np.array(found.points[full][:1]) + 0.1)
    with pytest.raises(ValueError, match=r"reference must name the tasks \['kind', 'size'\], got \['kind'\]"):
        controllability(module, preferences, [full], data, (6,), reference={"kind": 0.0})
    with pytest.raises(ValueError, match="preferences and budgets must not be empty, got 0 and 1"):
        controllability(module, [], [full], data, (6,))
