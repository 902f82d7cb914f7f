from __future__ import annotations

import bisect
import itertools
import json
import math
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_mtl.data import (
    AnnealedSampling,
    DynamicSampling,
    FixedRatios,
    ResumableDataLoader,
    RoundRobinSampling,
    SequentialTaskSampler,
    TaskSampler,
    TemperatureSampling,
    UniformSampling,
)

LENGTHS = {"a": 70, "b": 23, "c": 5}
DYNAMIC = {"a": 0.9, "b": 0.9, "c": 0.9}


def sizes_of(lengths: dict[str, int]) -> dict[str, list[int]]:
    stream = torch.Generator().manual_seed(1)
    return {task: torch.randint(1, 60, (length,), generator=stream).tolist() for task, length in lengths.items()}


def sampler(**options: Any) -> TaskSampler:
    return TaskSampler(**{"lengths": LENGTHS, "batch_size": 4, **options})


def tasks_of(batch: list[int]) -> list[str]:
    return ["abc"[bisect.bisect_right([70, 93], index)] for index in batch]


def epochs(drawer: TaskSampler, number: int) -> list[list[list[tuple[int, int]]]]:
    found = []
    for epoch in range(number):
        drawer.set_epoch(epoch)
        batches = [[(int(index), index.seed) for index in batch] for batch in drawer]
        assert len(batches) == len(drawer)
        found.append(batches)
    return found


FORMS: dict[str, dict[str, Any]] = {
    "unmixed": {},
    "mixed": {"mixed": True},
    "unmixed-buckets": {"sizes": sizes_of(LENGTHS), "bucket_batches": 3},
    "mixed-buckets": {"mixed": True, "sizes": sizes_of(LENGTHS), "bucket_batches": 3},
    "round-robin": {"sampling": RoundRobinSampling()},
    "annealed-accumulated": {"sampling": AnnealedSampling(3), "batches_per_draw": 2},
}
forms = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS.keys())


@forms
def test_the_order_follows_from_seed_and_epoch_alone(form: dict[str, Any]) -> None:
    first, again, other = epochs(sampler(**form), 3), epochs(sampler(**form), 3), epochs(sampler(seed=1, **form), 3)
    assert first == again
    assert first != other
    assert first[0] != first[1]
    jumped = sampler(**form)
    jumped.set_epoch(2)
    assert epochs_at(jumped) == first[2]
    jumped.set_epoch(1)
    assert epochs_at(jumped) == first[1]


def epochs_at(drawer: TaskSampler) -> list[list[tuple[int, int]]]:
    return [[(int(index), index.seed) for index in batch] for batch in drawer]


@forms
def test_processes_share_the_very_samples_of_one(form: dict[str, Any]) -> None:
    whole = epochs(sampler(batch_size=6, **form), 3)
    ranks = [epochs(sampler(batch_size=2, num_replicas=3, rank=rank, **form), 3) for rank in range(3)]
    for epoch, batches in enumerate(whole):
        for step, batch in enumerate(batches):
            assert sorted(batch) == sorted(itertools.chain.from_iterable(rank[epoch][step] for rank in ranks))


@forms
def test_a_step_can_be_found_again_by_its_number(form: dict[str, Any]) -> None:
    whole = epochs(sampler(**form), 3)
    for cut in (0, 1, 7, len(whole[0]) - 1):
        state = {}
        first = sampler(**form)
        first.set_epoch(1)
        state = json.loads(json.dumps(first.state_dict()))
        resumed = sampler(**form)
        resumed.load_state_dict(state)
        resumed.seek(0, cut)
        assert epochs_at(resumed) == whole[1][cut:]
        resumed.set_epoch(2)
        assert epochs_at(resumed) == whole[2]


@pytest.mark.parametrize("form", [FORMS[name] for name in FORMS if name != "mixed-buckets"])
def test_each_pass_over_a_task_holds_every_sample_once(form: dict[str, Any]) -> None:
    drawn: dict[str, list[int]] = {task: [] for task in LENGTHS}
    for batches in epochs(sampler(**form), 40):
        for batch in batches:
            for task, (index, _) in zip(tasks_of([index for index, _ in batch]), batch, strict=True):
                drawn[task].append(index)
    begin = 0
    for task, length in LENGTHS.items():
        passes = [drawn[task][start : start + length] for start in range(0, len(drawn[task]) - length + 1, length)]
        assert len(passes) >= 2
        assert all(sorted(one) == list(range(begin, begin + length)) for one in passes)
        assert length < 9 or len({tuple(one) for one in passes}) == len(passes)  # few orders of few samples
        begin += length


def test_mixed_buckets_draw_every_sample_as_often_as_any_other_to_one_window() -> None:
    counts: Counter[int] = Counter()
    for batches in epochs(sampler(mixed=True, sizes=sizes_of(LENGTHS), bucket_batches=3), 40):
        counts.update(index for batch in batches for index, _ in batch)
    begin = 0
    for length in LENGTHS.values():
        own = [counts[index] for index in range(begin, begin + length)]
        assert min(own) > 0
        assert max(own) - min(own) <= 1
        begin += length


def test_an_unmixed_batch_is_of_one_task_on_all_processes() -> None:
    ranks = [epochs(sampler(batch_size=3, num_replicas=2, rank=rank), 2) for rank in range(2)]
    for epoch in range(2):
        for batches in zip(*(rank[epoch] for rank in ranks), strict=True):
            assert len({task for batch in batches for task in tasks_of([index for index, _ in batch])}) == 1


@pytest.mark.parametrize(
    ("sampling", "world", "mixed"),
    [
        pytest.param(FixedRatios({"a": 0.6, "b": 0.3, "c": 0.1}), 1, False, id="fixed-1-unmixed"),
        pytest.param(FixedRatios({"a": 0.6, "b": 0.3, "c": 0.1}), 2, True, id="fixed-2-mixed"),
        pytest.param(TemperatureSampling(2.0), 2, False, id="square-root-2-unmixed"),
        pytest.param(UniformSampling(), 1, True, id="uniform-1-mixed"),
        pytest.param(None, 2, True, id="proportional-2-mixed"),
    ],
)
def test_frequencies_are_the_ratios_across_processes_and_across_a_kill(sampling: Any, world: int, mixed: bool) -> None:
    """10,000 draws; the bound is four standard deviations of a binomial, met with a probability above 0.9999."""
    steps, batch = (10_000, 1) if not mixed else (10_000 // (2 * world), 2)
    options = {
        "batch_size": batch,
        "mixed": mixed,
        "sampling": sampling,
        "steps_per_epoch": steps,
        "num_replicas": world,
    }
    counts: Counter[str] = Counter()
    for rank in range(world):
        first = sampler(rank=rank, **options)
        iterator = iter(first)
        for _ in range(steps // 3):
            counts.update(tasks_of(next(iterator))[: batch if mixed else 1])
        resumed = sampler(rank=rank, **options)  # killed after a third of the epoch
        resumed.load_state_dict(first.state_dict())
        resumed.seek(0, steps // 3)
        for drawn in resumed:
            counts.update(tasks_of(drawn)[: batch if mixed else 1])
    draws = 10_000 if mixed else 10_000 * world  # unmixed: every process sees the same draw
    assert sum(counts.values()) == draws
    for task, ratio in first.ratios.items():
        share = counts[task] / draws
        assert abs(share - ratio) < 4 * math.sqrt(ratio * (1 - ratio) / 10_000), (task, share, ratio)


def test_round_robin_goes_on_from_epoch_to_epoch() -> None:
    found = epochs(sampler(sampling=RoundRobinSampling(), steps_per_epoch=4), 2)
    assert [tasks_of([batch[0][0]])[0] for epoch in found for batch in epoch] == [*"abcabcab"]
    mixed = epochs(sampler(sampling=RoundRobinSampling(), mixed=True, steps_per_epoch=3), 1)
    assert [Counter(tasks_of([i for i, _ in batch])) for batch in mixed[0]] == [
        {"a": 2, "b": 1, "c": 1},
        {"a": 1, "b": 2, "c": 1},
        {"a": 1, "b": 1, "c": 2},
    ]


def test_the_default_epoch_has_the_full_batches_of_one_pass_over_everything() -> None:
    assert len(sampler()) == 98 // 4
    assert len(sampler(num_replicas=2, rank=0)) == 98 // 8
    assert len(sampler(mixed=True)) == 98 // 4
    assert len(sampler(batch_size={"a": 7, "b": 23, "c": 1})) == 10 + 1 + 5
    assert len(sampler(batch_size=200)) == 1
    assert len(sampler(steps_per_epoch=7)) == 7


def test_every_task_has_its_own_batch_size() -> None:
    own = {"a": 7, "b": 2, "c": 1}
    for batch in sampler(batch_size=own, sampling=UniformSampling()):
        assert len(batch) == own[tasks_of(batch)[0]]


def test_a_drawn_task_stays_for_the_batches_of_an_accumulation() -> None:
    batches = epochs(sampler(sampling=UniformSampling(), batches_per_draw=3, steps_per_epoch=20), 2)
    for epoch in batches:
        names = [tasks_of([batch[0][0]])[0] for batch in epoch]
        assert len(names) == 20
        assert all(len(set(names[start : start + 3])) == 1 for start in range(0, 20, 3))
        assert len(set(names)) == 3


def test_buckets_hold_batches_of_similar_sizes_in_no_order() -> None:
    lengths = {"a": 600}
    sizes = sizes_of(lengths)

    def spread(**options: Any) -> tuple[float, list[float]]:
        batches = list(TaskSampler(lengths, 8, **options))
        values = [[sizes["a"][index] for index in batch] for batch in batches]
        return sum(max(v) - min(v) for v in values) / len(values), [sum(v) / len(v) for v in values]

    plain, _ = spread()
    sorted_, means = spread(sizes=sizes, bucket_batches=25)
    assert sorted_ < plain / 8
    correlation = torch.corrcoef(torch.tensor([means, list(range(len(means)))]))[0, 1]
    assert abs(correlation) < 0.4
    mixed, _ = spread(sizes=sizes, bucket_batches=25, mixed=True)
    assert mixed < plain / 8


def test_buckets_have_whole_batches_in_every_pass() -> None:
    """A pass of 23 samples does not divide by 4, so that batches of later passes begin inside the pass."""
    lengths, sizes = {"b": 23}, {"b": list(range(23))}
    batches = [list(map(int, batch)) for batch in TaskSampler(lengths, 4, sizes=sizes, steps_per_epoch=23)]
    close = [batch for batch in batches if max(batch) - min(batch) < 6]
    assert len(close) >= 23 - 4  # all but those that hold the end of one pass and the beginning of the next


def test_dynamic_probabilities_change_at_the_next_epoch_and_are_in_the_state() -> None:
    policy = DynamicSampling(DYNAMIC, "accuracy")
    first = sampler(sampling=policy, steps_per_epoch=300)
    before = epochs_at(first)
    policy.observe({"a": {"accuracy": 0.9}, "b": {"accuracy": 0.1}, "c": {"accuracy": 0.5}})
    assert epochs_at(first) == before  # this epoch stays as it was
    state = json.loads(json.dumps(first.state_dict()))
    first.set_epoch(1)
    after = epochs_at(first)
    assert Counter(tasks_of([b[0][0]])[0] for b in after)["b"] > 150
    resumed = sampler(sampling=DynamicSampling(DYNAMIC, "accuracy"), steps_per_epoch=300)
    resumed.load_state_dict(state)
    assert epochs_at(resumed) == before
    resumed.set_epoch(1)
    assert resumed.ratios == first.ratios
    assert epochs_at(resumed) == after


class Rows(torch.utils.data.Dataset[list[int]]):
    def __len__(self) -> int:
        return sum(LENGTHS.values())

    def __getitem__(self, index: list[int]) -> list[int]:
        return [int(one) for one in index]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumes_whatever_its_workers_prepared(workers: int) -> None:
    def loader() -> ResumableDataLoader:
        return ResumableDataLoader(Rows(), batch_size=None, sampler=sampler(), num_workers=workers)

    whole = list(loader())
    first = loader()
    iterator = iter(first)
    head = [next(iterator) for _ in range(5)]
    state = json.loads(json.dumps(first.state_dict()))
    resumed = loader()
    resumed.load_state_dict(state)
    assert len(first) == len(whole) == 24
    rest = list(resumed)
    assert head + rest == whole
    following = list(iterator) and list(first)  # a second pass by hand goes on in the streams
    assert list(resumed) == following


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 5))
def test_evaluation_holds_every_sample_exactly_once(lengths: list[int], world: int, batch: int) -> None:
    named = {str(number): length for number, length in enumerate(lengths)}
    edges = torch.tensor(lengths).cumsum(0)
    seen = []
    for rank in range(world):
        drawer = SequentialTaskSampler(named, batch, num_replicas=world, rank=rank)
        batches = list(drawer)
        assert len(batches) == len(drawer)
        assert all(0 < len(one) <= batch for one in batches)
        for one in batches:
            assert len(set(torch.searchsorted(edges, torch.tensor(one), right=True).tolist())) == 1
        seen += [int(index) for one in batches for index in one]
    assert sorted(seen) == list(range(sum(lengths)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lengths": {}}, "lengths must name at least one task, got none"),
        ({"lengths": {"a": 3, "b": 0}}, "lengths must be at least 1, got 0 for task 'b'"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0 for task 'a'"),
        ({"batch_size": {"a": 1}}, r"batch_size must name the tasks \['a', 'b', 'c'\], got \['a'\]"),
        ({"batch_size": {"a": 1, "b": 1, "c": 1}, "mixed": True}, "batch_size must be one number for mixed batches"),
        ({"mixed": True, "batches_per_draw": 2}, "batches_per_draw must be 1 for mixed batches, got 2"),
        ({"batches_per_draw": 0}, "batches_per_draw must be at least 1, got 0"),
        ({"bucket_batches": 0}, "bucket_batches must be at least 1, got 0"),
        ({"steps_per_epoch": 0}, "steps_per_epoch must be at least 1, got 0"),
        ({"sizes": {"a": [1]}}, r"sizes must name the tasks \['a', 'b', 'c'\]"),
        (
            {"sizes": {"a": [1], "b": [1], "c": [1]}},
            "sizes must hold one number for each of the 70 samples of task 'a', got 1",
        ),
        ({"num_replicas": 2, "rank": 2}, r"rank must be in \[0, 2\), got 2"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"TaskSampler: {message}"):
        sampler(**options)


def test_the_state_of_other_tasks_is_refused() -> None:
    state = TaskSampler({"x": 3}, 1).state_dict()
    with pytest.raises(ValueError, match=r"the tasks of the checkpoint must name the tasks \['a', 'b', 'c'\]"):
        sampler().load_state_dict(state)
