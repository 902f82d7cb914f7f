from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_mtl.data import SampleIndex, SeededSampler, sample_generator


def order(length: int, epoch: int = 0, **options: object) -> list[int]:
    sampler = SeededSampler(range(length), **options)  # type: ignore[arg-type]
    sampler.set_epoch(epoch)
    indices = [int(i) for i in sampler]
    assert len(indices) == len(sampler)
    return indices


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 3), st.booleans())
def test_evaluation_shards_hold_every_sample_exactly_once(length: int, world: int, epoch: int, shuffle: bool) -> None:
    shards = [order(length, epoch, shuffle=shuffle, pad=False, num_replicas=world, rank=r) for r in range(world)]
    assert sorted(index for shard in shards for index in shard) == list(range(length))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 3))
def test_training_shards_have_one_length_and_repeat_as_little_as_possible(length: int, world: int, epoch: int) -> None:
    shards = [order(length, epoch, num_replicas=world, rank=r) for r in range(world)]
    assert len({len(shard) for shard in shards}) == 1
    drawn = [index for shard in shards for index in shard]
    assert set(drawn) == set(range(length))
    assert len(drawn) - length < world


def test_two_processes_see_disjoint_halves_of_the_order_of_one() -> None:
    whole = order(20, epoch=3, seed=5)
    first, second = (order(20, epoch=3, seed=5, num_replicas=2, rank=r) for r in range(2))
    assert not set(first) & set(second)
    for i in range(0, 10, 2):  # a step of two processes with batches of 2 is a step of one with a batch of 4
        assert set(whole[2 * i : 2 * i + 4]) == {*first[i : i + 2], *second[i : i + 2]}


def test_the_order_changes_with_seed_epoch_and_cycle() -> None:
    sampler = SeededSampler(range(50), seed=1)
    orders = []
    for epoch, cycle in ((0, 0), (0, 1), (1, 0)):
        sampler.set_epoch(epoch)
        sampler.seek(cycle, 0)
        orders.append(tuple(map(int, sampler)))
    orders.append(tuple(order(50, seed=2)))
    assert len(set(orders)) == 4


def test_fixed_streams_are_the_same_in_every_epoch_and_cycle() -> None:
    found = []
    for epoch, cycle in ((0, 0), (0, 1), (2, 0)):
        sampler = SeededSampler(range(20), seed=1, fixed_streams=True)
        sampler.set_epoch(epoch)
        sampler.seek(cycle, 0)
        found.append([(int(index), index.seed) for index in sampler])
    assert sorted(found[0]) == sorted(found[1]) == sorted(found[2])
    assert found[0] != found[2]  # the order is another matter
    assert len({seed for _, seed in found[0]}) == 20


def test_skipping_continues_the_order_once() -> None:
    sampler = SeededSampler(range(10), seed=1)
    whole = [(int(i), i.seed) for i in sampler]
    sampler.seek(0, 7)
    assert [(int(i), i.seed) for i in sampler] == whole[7:]
    assert [(int(i), i.seed) for i in sampler] == whole


def test_a_samples_stream_depends_on_the_epoch_and_not_on_the_rank() -> None:
    def seeds(epoch: int, world: int) -> dict[int, int]:
        found = {}
        for rank in range(world):
            sampler = SeededSampler(range(12), num_replicas=world, rank=rank)
            sampler.set_epoch(epoch)
            found.update({int(i): i.seed for i in sampler})
        return found

    assert seeds(0, 1) == seeds(0, 3)
    assert not set(seeds(0, 1).values()) & set(seeds(1, 1).values())
    assert len(set(seeds(0, 1).values())) == 12


def test_an_index_travels_to_a_worker_with_its_seed() -> None:
    index = pickle.loads(pickle.dumps(SampleIndex(4, seed=99)))
    assert index == 4
    assert [10, 11, 12, 13, 14][index] == 14
    assert index.seed == 99


def test_a_plain_index_has_a_fixed_stream() -> None:
    draws = [torch.rand(3, generator=sample_generator(index)) for index in (3, 3, 4)]
    assert draws[0].equal(draws[1])
    assert not draws[0].equal(draws[2])


def test_a_rank_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"SeededSampler: rank must be in \[0, 2\), got 2"):
        SeededSampler(range(4), num_replicas=2, rank=2)
