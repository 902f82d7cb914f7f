"""Task groups are the best there are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_mtl.functional.task_grouping import (
    TaskGrouping,
    affinities_onto,
    select_task_groups,
    spectral_task_groups,
)


def random_affinity(count: int, seed: int, kind: str = "any") -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(count, count, generator=generator, dtype=torch.float64)
    if kind == "positive":
        return matrix.abs()
    if kind == "negative":
        return -matrix.abs()
    if kind == "ties":
        return (2 * matrix).round()
    if kind == "tiny":
        return 1e-9 * matrix
    return matrix


def scores_of_all_groups(affinity: Tensor, alone: Sequence[float] | None) -> np.ndarray:
    """Return for every non-empty subset, in the order of its bit mask, the affinity onto each task in it."""
    count = len(affinity)
    table = np.full((2**count - 1, count), -np.inf)
    for mask in range(1, 2**count):
        members = [i for i in range(count) if mask >> i & 1]
        for j in members:
            others = [float(affinity[i, j]) for i in members if i != j]
            table[mask - 1, j] = np.mean(others) if others else (-np.inf if alone is None else alone[j])
    return table


def exhaustive(affinity: Tensor, budget: int, alone: Sequence[float] | None = None) -> float:
    """Try every set of at most ``budget`` groups."""
    table = scores_of_all_groups(affinity, alone)
    best = -np.inf
    for number in range(1, budget + 1):
        for first in itertools.combinations(range(len(table)), number - 1):
            taken = table[list(first)].max(0, initial=-np.inf) if first else np.full(len(affinity), -np.inf)
            rest = table[(first[-1] + 1 if first else 0) :]
            if len(rest):
                best = max(best, np.maximum(rest, taken).sum(1).max())
    return float(best)


def score_of(affinity: Tensor, grouping: TaskGrouping, alone: Sequence[float] | None = None) -> float:
    onto = [affinities_onto(affinity, group, alone) for group in grouping.groups]
    return sum(max(found[j] for found in onto if j in found) for j in range(len(affinity)))


CASES = [(count, budget) for count in range(2, 9) for budget in range(1, count + 1) if (2**count) ** budget < 2e7]


@pytest.mark.parametrize(("count", "budget"), CASES)
def test_branch_and_bound_equals_exhaustive_search(count: int, budget: int) -> None:
    kinds = ("any", "positive", "negative", "ties", "tiny")
    instances = [(kind, alone) for kind in kinds for alone in ("none", "zero", "diagonal")]
    groups = (2**count) ** budget  # the search over many groups takes a second each
    for seed, (kind, alone) in enumerate(
        instances if groups < 1e4 else instances[::7] if groups < 1e6 else [instances[2]]
    ):
        affinity = random_affinity(count, 20 * count + seed, kind)
        each = {"none": None, "zero": [0.0] * count, "diagonal": affinity.diagonal().tolist()}[alone]
        found = select_task_groups(affinity, budget, each)
        assert found.score == pytest.approx(exhaustive(affinity, budget, each), rel=1e-9, abs=1e-18)


def partitions(items: list[int], most: int) -> list[list[list[int]]]:
    """Return all divisions of the items into at most so many parts."""
    if not items:
        return [[]]
    found = []
    for rest in partitions(items[1:], most):
        found += [[*rest[:k], [items[0], *rest[k]], *rest[k + 1 :]] for k in range(len(rest))]
        if len(rest) < most:
            found.append([[items[0]], *rest])
    return found


@pytest.mark.parametrize("budget", [4, 5, 7, 8])
def test_eight_tasks_with_larger_budgets_equal_an_exhaustive_search_over_who_serves_whom(budget: int) -> None:
    affinity = random_affinity(8, budget)
    table = scores_of_all_groups(affinity, None)
    best_for = {}
    for served in range(1, 256):
        columns = [j for j in range(8) if served >> j & 1]
        best_for[served] = table[[m - 1 for m in range(1, 256) if m & served == served]][:, columns].sum(1).max()
    best = max(
        sum(best_for[sum(1 << j for j in part)] for part in division) for division in partitions(list(range(8)), budget)
    )
    assert select_task_groups(affinity, budget).score == pytest.approx(best, rel=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    values=st.integers(2, 5).flatmap(
        lambda k: st.lists(st.lists(st.floats(-5, 5), min_size=k, max_size=k), min_size=k, max_size=k)
    ),
    budget=st.integers(1, 3),
    alone=st.none() | st.floats(-5, 5),
)
def test_any_affinities_give_the_exhaustive_optimum(
    values: list[list[float]], budget: int, alone: float | None
) -> None:
    affinity = torch.tensor(values, dtype=torch.float64)
    budget = min(budget, len(affinity))
    found = select_task_groups(affinity, budget, alone)
    each = None if alone is None else [alone] * len(affinity)
    assert found.score == pytest.approx(exhaustive(affinity, budget, each), rel=1e-9, abs=1e-9)
    assert len(found.groups) <= budget
    assert sorted(j for served in found.serves for j in served) == list(range(len(affinity)))
    assert all(set(served) <= set(group) for group, served in zip(found.groups, found.serves, strict=True))
    assert score_of(affinity, found, each) == pytest.approx(found.score, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("count", [3, 6])
def test_the_order_of_the_tasks_does_not_matter(count: int) -> None:
    affinity = random_affinity(count, 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    moved = select_task_groups(affinity[order][:, order], 2)
    groups = {frozenset(int(order[i]) for i in group) for group in moved.groups}
    assert groups == {frozenset(group) for group in select_task_groups(affinity, 2).groups}
    clusters = {frozenset(int(order[i]) for i in group) for group in spectral_task_groups(affinity[order][:, order], 2)}
    assert clusters == {frozenset(group) for group in spectral_task_groups(affinity, 2)}


def test_a_larger_budget_is_never_worse_and_the_last_gives_each_task_its_best_partner() -> None:
    affinity = random_affinity(7, 4)
    scores = [select_task_groups(affinity, budget).score for budget in range(1, 8)]
    assert scores == sorted(scores)
    assert scores[-1] == pytest.approx(float(affinity.clone().fill_diagonal_(-torch.inf).amax(0).sum()))


def test_one_network_trains_all_that_helps() -> None:
    assert select_task_groups(random_affinity(5, 0, "positive"), 1).groups == ((0, 1, 2, 3, 4),)


def test_a_lone_task_needs_a_self_affinity() -> None:
    harmful = random_affinity(4, 0, "negative")
    assert all(len(group) > 1 for group in select_task_groups(harmful, 4).groups)
    assert select_task_groups(harmful, 4, self_affinity=0.0).groups == ((0,), (1,), (2,), (3,))


def test_the_diagonal_is_not_used() -> None:
    affinity = random_affinity(5, 2)
    other = affinity.clone().fill_diagonal_(torch.nan)
    assert select_task_groups(other, 3) == select_task_groups(affinity, 3)
    assert spectral_task_groups(other, 3) == spectral_task_groups(affinity, 3)


def test_the_given_affinities_are_left_as_they_are() -> None:
    affinity = random_affinity(4, 3)
    kept = affinity.clone()
    select_task_groups(affinity, 2)
    assert affinity.equal(kept)


# Inter-task affinities on Taskonomy in the authors' notebook, rounded; their rows are the tasks that are helped.
TASKONOMY = ["segmentation", "depth", "normals", "keypoints", "edges"]
HELPED = [
    [0, 0.11537, 0.04891, 0.00455, 0.00878],
    [0.41356, 0, 0.29141, 0.01354, 0.07396],
    [0.13982, 0.22096, 0, 0.01049, 0.07646],
    [0.02110, 0.01337, 0.01073, 0, 0.68974],
    [0.05669, 0.03668, 0.03601, 0.30372, 0],
]


@pytest.mark.parametrize("budget", [2, 3, 4])
def test_affinities_of_taskonomy_are_grouped_as_by_exhaustive_search(budget: int) -> None:
    affinity = torch.tensor(HELPED, dtype=torch.float64).T
    found = select_task_groups(affinity, budget)
    assert found.score == pytest.approx(exhaustive(affinity, budget), rel=1e-12)
    named = [{TASKONOMY[i] for i in group} for group in found.groups]
    assert {"keypoints", "edges"} in named


# ---------------------------------------------------------------------- spectral
@pytest.mark.parametrize("sizes", [(2, 3), (3, 3, 2), (5, 4, 6, 5)])
@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_spectral_clustering_finds_blocks(sizes: tuple[int, ...], shift: float) -> None:
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    noise = 0.2 * random_affinity(len(labels), 0).clamp(-1, 1)
    affinity = (labels[:, None] == labels).double() + noise + shift
    found = {frozenset(group) for group in spectral_task_groups(affinity, len(sizes))}
    assert found == {frozenset(torch.where(labels == k)[0].tolist()) for k in range(len(sizes))}


@pytest.mark.parametrize("matrix", [torch.zeros(4, 4), -torch.ones(4, 4), torch.eye(4)], ids=["zero", "equal", "self"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_spectral_clustering_of_affinities_that_say_nothing_still_covers_all(matrix: Tensor, k: int) -> None:
    found = spectral_task_groups(matrix, k)
    assert len(found) == k
    assert sorted(i for group in found for i in group) == [0, 1, 2, 3]


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("affinity", "budget", "alone", "message"),
    [
        (torch.zeros(3, 2), 1, None, r"affinity must have the shape \(K, K\), got \(3, 2\)"),
        (torch.zeros(1, 1), 1, None, "affinity must be between at least 2 tasks, got 1"),
        (torch.full((2, 2), torch.nan), 1, None, "affinity must be finite, got nan of task 0 onto task 1; measure"),
        (torch.full((2, 2), torch.inf), 1, None, "affinity must be finite, got inf"),
        (torch.zeros(3, 3), 0, None, "budget must be between 1 and the number of tasks, 3, got 0"),
        (torch.zeros(3, 3), 4, None, "budget must be between 1 and the number of tasks, 3, got 4"),
        (torch.zeros(3, 3), 2, [0.0], "self_affinity must be None, a finite number, or one for each of the 3 tasks"),
        (torch.zeros(3, 3), 2, torch.nan, "self_affinity must be None, a finite number"),
    ],
)
def test_wrong_arguments_are_refused(affinity: Tensor, budget: int, alone: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_task_groups(affinity, budget, alone)  # type: ignore[arg-type]


def test_a_wrong_number_of_clusters_is_refused() -> None:
    with pytest.raises(ValueError, match="spectral_task_groups: k must be between 1 and the number of tasks, 3, got 4"):
        spectral_task_groups(torch.zeros(3, 3), 4)
