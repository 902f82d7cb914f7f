"""Orders of samples that follow from a seed, and random streams that follow from a sample."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Generator
from torch.utils.data.distributed import DistributedSampler

_MASK = (1 << 64) - 1


def mix_seed(*values: int) -> int:
    """Hash integers into one 63-bit seed, so that streams of neighbouring seeds have nothing in common.

    Example:
        >>> mix_seed(0, 1) == mix_seed(0, 1), mix_seed(0, 1) == mix_seed(1, 0)
        (True, False)

    References:
        Steele, Lea, Flood. *Fast Splittable Pseudorandom Number Generators*. OOPSLA 2014.
        https://doi.org/10.1145/2660193.2660195 (the output function of SplitMix64).
    """
    state = 0
    for value in values:
        state = (state + (value & _MASK) + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


class SampleIndex(int):
    """Index of a sample that also carries the seed of the sample's random stream in this epoch.

    It is an ``int`` everywhere, so any map-style dataset takes it; a dataset that augments reads the stream with
    :func:`sample_generator`.

    Args:
        value: The index.
        seed: Seed of the random stream.
    """

    seed: int

    def __new__(cls, value: int, seed: int = 0) -> SampleIndex:  # noqa: D102
        index = super().__new__(cls, value)
        index.seed = seed
        return index


def sample_generator(index: int) -> Generator:
    """Return the random stream of this sample: from :class:`SampleIndex` its own, from a plain ``int`` a fixed one.

    Example:
        >>> a, b = sample_generator(SampleIndex(3, seed=7)), sample_generator(SampleIndex(3, seed=7))
        >>> bool(torch.rand(2, generator=a).equal(torch.rand(2, generator=b)))
        True
    """
    seed = index.seed if isinstance(index, SampleIndex) else mix_seed(int(index))
    return Generator().manual_seed(seed)


def resolve_shard(owner: str, num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """Return the number of processes and the number of this one; what is None is asked of ``torch.distributed``.

    Raises:
        ValueError: If ``rank`` is not in ``[0, num_replicas)``.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if num_replicas is None:
        num_replicas = torch.distributed.get_world_size() if distributed else 1
    if rank is None:
        rank = torch.distributed.get_rank() if distributed else 0
    if not 0 <= rank < num_replicas:
        raise ValueError(f"{owner}: rank must be in [0, {num_replicas}), got {rank}; give both or neither.")
    return num_replicas, rank


class SeededSampler(DistributedSampler[Any]):
    """Order of samples as a function of (seed, epoch, cycle), sharded over processes.

    Yields :class:`SampleIndex`, whose seed follows from (seed, epoch, cycle, index): augmentation drawn from it does
    not depend on the number of workers, the number of processes, or any global generator. ``cycle`` counts repeated
    passes within one epoch. Process r of W takes every W-th sample of the common order, so a step of W processes with
    batches of B sees the very samples of a step of one process with a batch of W·B.

    It is a :class:`~torch.utils.data.distributed.DistributedSampler`, hence Lightning leaves it in place and calls
    ``set_epoch``.

    Args:
        dataset: Anything with a length.
        seed: Seed of the order.
        shuffle: Whether to permute; otherwise the order is 0, 1, 2, ...
        pad: Repeat samples until every process has the same number, which training needs. Without it each sample is
            seen exactly once over all processes and their numbers may differ by one: right for evaluation.
        fixed_streams: Give every sample the same random stream in all epochs and cycles: right for evaluation.
        num_replicas: Number of processes; None asks ``torch.distributed`` (1 where that is not initialised).
        rank: Number of this process; None asks ``torch.distributed``.

    Raises:
        ValueError: If ``rank`` is not in ``[0, num_replicas)``.

    Example:
        >>> [int(i) for i in SeededSampler(range(5), shuffle=False, num_replicas=2, rank=1)]
        [1, 3, 0]
        >>> [int(i) for i in SeededSampler(range(5), shuffle=False, pad=False, num_replicas=2, rank=1)]
        [1, 3]
    """

    def __init__(
        self,
        dataset: Sized,
        seed: int = 0,
        shuffle: bool = True,
        pad: bool = True,
        fixed_streams: bool = False,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        num_replicas, rank = resolve_shard("SeededSampler", num_replicas, rank)
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)  # type: ignore[arg-type]
        self.pad = pad
        self.fixed_streams = fixed_streams
        self.cycle = 0
        self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; the order and every sample's stream change with it."""
        self.epoch = epoch

    def seek(self, cycle: int, skip: int) -> None:
        """Let the next iteration be pass ``cycle`` of this epoch, from the sample after ``skip`` samples."""
        self.cycle = cycle
        self.skip = skip

    def __len__(self) -> int:
        """Return how many samples this process draws in a full pass."""
        length = len(self.dataset)  # type: ignore[arg-type]
        if self.pad:
            return math.ceil(length / self.num_replicas)
        return (length - self.rank + self.num_replicas - 1) // self.num_replicas

    def __iter__(self) -> Iterator[SampleIndex]:
        """Iterate over this process's samples."""
        length = len(self.dataset)  # type: ignore[arg-type]
        stream = (self.seed, self.epoch, self.cycle)
        samples = (self.seed, 0, 0) if self.fixed_streams else stream
        if self.shuffle:
            order = torch.randperm(length, generator=Generator().manual_seed(mix_seed(*stream))).tolist()
        else:
            order = list(range(length))
        if self.pad and length:
            missing = -length % self.num_replicas
            order += (order * math.ceil(missing / length))[:missing]
        own = order[self.rank :: self.num_replicas]
        start, self.skip = self.skip, 0
        for index in own[start:]:
            yield SampleIndex(index, mix_seed(*samples, index))
