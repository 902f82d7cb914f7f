"""Batches out of several tasks' data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Generator, Tensor
from torch.utils.data.distributed import DistributedSampler

from lightning_mtl.data.samplers.sampling import ProportionalSampling, TaskSampling, check_tasks
from lightning_mtl.data.samplers.seeded import SampleIndex, mix_seed, resolve_shard

_DRAWS, _ORDERS, _WINDOWS, _SAMPLES = range(4)  # what a random stream is for


def _stream(*values: int) -> Generator:
    return Generator().manual_seed(mix_seed(*values))


def _offsets(owner: str, lengths: Mapping[str, int]) -> list[int]:
    """Return where the data set of every task begins in the concatenation."""
    if not lengths:
        raise ValueError(f"{owner}: lengths must name at least one task, got none.")
    for task, length in lengths.items():
        if length < 1:
            raise ValueError(f"{owner}: lengths must be at least 1, got {length} for task {task!r}; leave it out.")
    values = list(lengths.values())
    return [sum(values[:number]) for number in range(len(values))]


def _batch_sizes(owner: str, batch_size: int | Mapping[str, int], tasks: Sequence[str]) -> dict[str, int]:
    if isinstance(batch_size, Mapping):
        check_tasks(owner, "batch_size", batch_size, tasks)
    sizes = {task: batch_size[task] if isinstance(batch_size, Mapping) else batch_size for task in tasks}
    for task, size in sizes.items():
        if size < 1:
            raise ValueError(f"{owner}: batch_size must be at least 1, got {size} for task {task!r}.")
    return sizes


def _bucketed(order: Tensor, sizes: Tensor, batch: int, window: int, stream: Generator) -> Tensor:
    """Sort whole batches of an order by size within windows of batches, then shuffle the batches of each window."""
    windows = torch.arange(len(order)) // (batch * window)
    by_size = sizes.argsort(stable=True)
    batches = order[by_size[windows[by_size].argsort(stable=True)]].view(-1, batch)
    windows = torch.arange(len(batches)) // window
    return batches[(windows + torch.rand(len(batches), generator=stream, dtype=torch.float64)).argsort()].flatten()


class _BatchesOfTasks(DistributedSampler[Any]):
    """Batches of this process out of the concatenation of several tasks' data sets."""

    def __init__(self, lengths: Mapping[str, int], seed: int, num_replicas: int | None, rank: int | None) -> None:
        name = type(self).__name__
        num_replicas, rank = resolve_shard(name, num_replicas, rank)
        self.offsets = _offsets(name, lengths)
        super().__init__(range(sum(lengths.values())), num_replicas=num_replicas, rank=rank, seed=seed)  # type: ignore[arg-type]
        self.lengths = dict(lengths)


class TaskSampler(_BatchesOfTasks):
    """Batches out of several tasks' data sets, drawn by a policy, the same on any number of processes.

    An item is a whole batch of this process, a list of :class:`SampleIndex` into the concatenation of the data sets
    in the order of ``lengths``. It goes to a loader as ``sampler=`` with ``batch_size=None``; the data set is then
    asked for a list (:class:`~lightning_mtl.data.TaskConcat` answers). Being a ``DistributedSampler``, Lightning leaves
    it in place.

    - ``mixed=False`` (unmixed): a step draws one task, and the batches of all processes are of it.
    - ``mixed=True``: every sample of a batch draws its task.

    Every task has its own endless stream: reshuffled passes over its data set, each of which holds every sample once,
    and which go on from epoch to epoch. W processes with batches of B see the very samples of one process with batches
    of W·B.

    One **epoch** is ``steps_per_epoch`` steps, whatever the policy: how often a task is seen in it follows from its
    probability. The whole epoch counts as drawn, also when the Trainer leaves it early (``limit_train_batches``).

    Args:
        lengths: Task -> number of samples.
        batch_size: Samples per batch and process, for all tasks or one number a task (unmixed only). Probabilities are
            those of steps, however large the batch of a task is.
        sampling: How often every task is drawn; in proportion to its number of samples by default.
        mixed: Whether a batch holds samples of several tasks.
        steps_per_epoch: Steps of an epoch; by default as many as one pass over all data sets has full batches, of all
            processes together.
        sizes: Task -> size of every sample (such as its number of tokens). Batches are then of similar sizes: windows
            of ``bucket_batches`` batches are sorted, and their batches shuffled. In mixed batches that brings tasks of
            similar sizes together.
        bucket_batches: Batches in a window.
        batches_per_draw: Consecutive steps of an unmixed epoch that train the drawn task, for the accumulation of
            gradients of one task.
        seed: Seed of everything.
        num_replicas: Number of processes; None asks ``torch.distributed`` (1 where that is not initialised).
        rank: Number of this process; None asks ``torch.distributed``.

    Attributes:
        ratios: Task -> probability of a draw in this epoch.

    Raises:
        ValueError: If an argument is out of range, or names other tasks than ``lengths``.

    Note:
        The state is a position in every stream, from which the draws of an epoch are repeated by number alone: no
        sample is read again when a run resumes, and batches that workers had prepared in advance are not counted. A
        resumed run must keep the joint batch W·B to continue bit by bit.

    Example:
        >>> from lightning_mtl.data import FixedRatios
        >>> sampler = TaskSampler({"a": 6, "b": 2}, batch_size=2, sampling=FixedRatios({"a": 1, "b": 1}))
        >>> [[int(index) for index in batch] for batch in sampler]
        [[2, 4], [0, 1], [3, 5], [0, 1]]
        >>> sampler.ratios
        {'a': 0.5, 'b': 0.5}
    """

    def __init__(
        self,
        lengths: Mapping[str, int],
        batch_size: int | Mapping[str, int],
        sampling: TaskSampling | None = None,
        mixed: bool = False,
        steps_per_epoch: int | None = None,
        sizes: Mapping[str, Sequence[int]] | None = None,
        bucket_batches: int = 50,
        batches_per_draw: int = 1,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(lengths, seed, num_replicas, rank)
        name = type(self).__name__
        self.tasks = tuple(lengths)
        if mixed and isinstance(batch_size, Mapping):
            raise ValueError(f"{name}: batch_size must be one number for mixed batches, got {dict(batch_size)}.")
        if mixed and batches_per_draw != 1:
            raise ValueError(f"{name}: batches_per_draw must be 1 for mixed batches, got {batches_per_draw}.")
        for argument, value in (("bucket_batches", bucket_batches), ("batches_per_draw", batches_per_draw)):
            if value < 1:
                raise ValueError(f"{name}: {argument} must be at least 1, got {value}.")
        if steps_per_epoch is not None and steps_per_epoch < 1:
            raise ValueError(f"{name}: steps_per_epoch must be at least 1, got {steps_per_epoch}.")
        joint = {task: size * self.num_replicas for task, size in _batch_sizes(name, batch_size, self.tasks).items()}
        self._joint = list(joint.values())
        if steps_per_epoch is None:
            full = sum((Fraction(length, joint[task]) for task, length in lengths.items()), Fraction())
            steps_per_epoch = max(int(full), 1)
        self.steps_per_epoch = steps_per_epoch
        self.mixed = mixed
        self.bucket_batches = bucket_batches
        self.batches_per_draw = batches_per_draw
        self._sizes = None if sizes is None else self._checked_sizes(sizes)
        self.sampling = ProportionalSampling() if sampling is None else sampling
        self._orders: dict[int, tuple[int, Tensor]] = {}
        self.skip = 0
        self._rewind()

    def _checked_sizes(self, sizes: Mapping[str, Sequence[int]]) -> list[Tensor]:
        name = type(self).__name__
        check_tasks(name, "sizes", sizes, self.tasks)
        for task, length in self.lengths.items():
            if len(sizes[task]) != length:
                raise ValueError(
                    f"{name}: sizes must hold one number for each of the {length} samples of task {task!r}, got "
                    f"{len(sizes[task])}."
                )
        return [torch.as_tensor(sizes[task]) for task in self.tasks]

    # ------------------------------------------------------------------ position
    def _rewind(self) -> None:
        self.epoch = 0
        self.cycle = 0
        self._passes = 0
        self._drawn = [0] * len(self.tasks)
        self.ratios = self.sampling.probabilities(self.lengths, 0)

    def _leave_pass(self) -> None:
        counts = torch.bincount(self._draws(), minlength=len(self.tasks)).tolist()
        for number, count in enumerate(counts):
            self._drawn[number] += count * (1 if self.mixed else self._joint[number])
        self._passes += 1

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch: the streams go on, and the policy says the probabilities anew.

        An earlier epoch than the present one is found again from the start, with the policy as it is now.
        """
        if epoch < self.epoch:
            self._rewind()
        while self.epoch < epoch:
            self._leave_pass()
            self.epoch, self.cycle = self.epoch + 1, 0
            self.ratios = self.sampling.probabilities(self.lengths, self.epoch)

    def seek(self, cycle: int, skip: int) -> None:
        """Let the next iteration be pass ``cycle`` of this epoch, from the batch after ``skip`` batches."""
        if cycle < self.cycle:
            epoch = self.epoch
            self._rewind()
            self.set_epoch(epoch)
        while self.cycle < cycle:
            self._leave_pass()
            self.cycle += 1
        self.skip = skip

    def state_dict(self) -> dict[str, Any]:
        """Return the position at the beginning of this pass, and the policy's state, as plain data."""
        return {
            "epoch": self.epoch,
            "cycle": self.cycle,
            "passes": self._passes,
            "drawn": dict(zip(self.tasks, self._drawn, strict=True)),
            "ratios": dict(self.ratios),
            "sampling": self.sampling.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take back a position.

        Raises:
            ValueError: If it is that of other tasks.
        """
        check_tasks(type(self).__name__, "the tasks of the checkpoint", state_dict["drawn"], self.tasks)
        self.epoch, self.cycle, self._passes = (state_dict[key] for key in ("epoch", "cycle", "passes"))
        self._drawn = [state_dict["drawn"][task] for task in self.tasks]
        self.ratios = {task: state_dict["ratios"][task] for task in self.tasks}
        self.sampling.load_state_dict(state_dict["sampling"])

    # ------------------------------------------------------------------ draws
    def _draws(self) -> Tensor:
        """Return the number of the task of every draw of this pass: one a sample when mixed, one a step otherwise."""
        steps = self.steps_per_epoch
        count = steps * self._joint[0] if self.mixed else -(-steps // self.batches_per_draw)
        probabilities = torch.tensor([self.ratios[task] for task in self.tasks], dtype=torch.float64)
        stream = _stream(self.seed, _DRAWS, self.epoch, self.cycle)
        draws = self.sampling.draw(probabilities, count, self._passes * count, stream)
        return draws if self.mixed else draws.repeat_interleave(self.batches_per_draw)[:steps]

    def _order(self, task: int, number: int) -> Tensor:
        """Return the order of a task's samples in the pass ``number`` over its data set."""
        cached = self._orders.get(task)
        if cached is not None and cached[0] == number:
            return cached[1]
        length = self.lengths[self.tasks[task]]
        stream = _stream(self.seed, _ORDERS, task, number)
        order = torch.randperm(length, generator=stream)
        if self._sizes is not None and not self.mixed:
            # batches do not stop at the end of a pass: the first whole one of this pass begins where one ends
            joint = self._joint[task]
            first = min(-number * length % joint, length)
            end = first + (length - first) // joint * joint
            whole = order[first:end]
            whole = _bucketed(whole, self._sizes[task][whole], joint, self.bucket_batches, stream)
            order = torch.cat([order[:first], whole, order[end:]])
        self._orders[task] = (number, order)
        return order

    def _take(self, task: int, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Return the samples of a task's stream from a position on, and the number of the pass of each."""
        length = self.lengths[self.tasks[task]]
        number, begin = divmod(first, length)
        if begin + count <= length:
            return self._order(task, number)[begin : begin + count], torch.full((count,), number)
        positions = torch.arange(begin, begin + count)
        orders = [self._order(task, number + later) for later in range((begin + count - 1) // length + 1)]
        return torch.cat(orders)[positions], number + positions // length

    def _samples(self, tasks: list[int], indices: list[int], passes: list[int]) -> list[SampleIndex]:
        return [
            SampleIndex(self.offsets[task] + index, mix_seed(self.seed, _SAMPLES, task, number, index))
            for task, index, number in zip(tasks, indices, passes, strict=True)
        ]

    def __len__(self) -> int:
        """Return the number of batches of an epoch."""
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """Iterate over this process's batches of this pass."""
        start, self.skip = self.skip, 0
        yield from self._mixed(start) if self.mixed else self._unmixed(start)

    def _unmixed(self, start: int) -> Iterator[list[SampleIndex]]:
        draws = self._draws()
        before = torch.bincount(draws[:start], minlength=len(self.tasks)).tolist()
        place = [drawn + count * joint for drawn, count, joint in zip(self._drawn, before, self._joint, strict=True)]
        for task in draws[start:].tolist():
            indices, passes = self._take(task, place[task], self._joint[task])
            place[task] += self._joint[task]
            mine = slice(self.rank, None, self.num_replicas)
            indices, passes = indices[mine], passes[mine]
            yield self._samples([task] * len(indices), indices.tolist(), passes.tolist())

    def _mixed(self, start: int) -> Iterator[list[SampleIndex]]:
        draws = self._draws()
        joint = self._joint[0]
        window = 1 if self._sizes is None else self.bucket_batches
        first, place = start // window, list(self._drawn)
        epoch, cycle = self.epoch, self.cycle
        for number, tasks in enumerate(torch.split(draws, window * joint)):
            counts = torch.bincount(tasks, minlength=len(self.tasks)).tolist()
            if number >= first:
                rows = self._window(tasks, counts, place, _stream(self.seed, _WINDOWS, epoch, cycle, number))
                for step, batch in enumerate(
                    zip(*(torch.split(row, joint) for row in rows), strict=True), number * window
                ):
                    if step >= start:
                        mine = [values[self.rank :: self.num_replicas].tolist() for values in batch]
                        yield self._samples(*mine)
            place = [position + count for position, count in zip(place, counts, strict=True)]

    def _window(self, tasks: Tensor, counts: list[int], place: list[int], stream: Generator) -> list[Tensor]:
        """Return the tasks, indices and passes of the samples of a window of mixed batches."""
        indices, passes, sizes = (torch.zeros_like(tasks) for _ in range(3))
        for task, count in enumerate(counts):
            if count:
                chosen = tasks == task
                indices[chosen], passes[chosen] = self._take(task, place[task], count)
                if self._sizes is not None:
                    sizes[chosen] = self._sizes[task][indices[chosen]]
        rows = [tasks, indices, passes]
        if self._sizes is None:
            return rows
        order = _bucketed(torch.arange(len(tasks)), sizes, self._joint[0], self.bucket_batches, stream)
        return [row[order] for row in rows]


class SequentialTaskSampler(_BatchesOfTasks):
    """Batches of one task after another, every sample exactly once over all processes: for evaluation.

    An item is a whole batch of this process, as that of :class:`TaskSampler`; every sample has the same random stream
    each time. Processes may have different numbers of batches.

    Args:
        lengths: Task -> number of samples.
        batch_size: Samples per batch and process, for all tasks or one number a task.
        seed: Seed of the samples' random streams.
        num_replicas: Number of processes; None asks ``torch.distributed`` (1 where that is not initialised).
        rank: Number of this process; None asks ``torch.distributed``.

    Raises:
        ValueError: If an argument is out of range, or names other tasks than ``lengths``.

    Example:
        >>> list(SequentialTaskSampler({"a": 3, "b": 2}, batch_size=2))
        [[0, 1], [2], [3, 4]]
    """

    def __init__(
        self,
        lengths: Mapping[str, int],
        batch_size: int | Mapping[str, int],
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__(lengths, seed, num_replicas, rank)
        self.batch_sizes = _batch_sizes(type(self).__name__, batch_size, tuple(lengths))

    def _batches(self) -> Iterator[range]:
        for offset, (task, length) in zip(self.offsets, self.lengths.items(), strict=True):
            own = range(offset + self.rank, offset + length, self.num_replicas)
            size = self.batch_sizes[task]
            yield from (own[begin : begin + size] for begin in range(0, len(own), size))

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return sum(1 for _ in self._batches())

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        """Iterate over this process's batches."""
        for batch in self._batches():
            yield [SampleIndex(index, mix_seed(self.seed, _SAMPLES, index)) for index in batch]
