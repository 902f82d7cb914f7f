"""A data loader that can be stopped and resumed in the middle of an epoch."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader


@runtime_checkable
class SeekableSampler(Protocol):
    """A sampler that can begin at any place of any pass, such as :class:`SeededSampler` and :class:`TaskSampler`."""

    epoch: int

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch."""

    def seek(self, cycle: int, skip: int) -> None:
        """Let the next iteration be pass ``cycle`` of this epoch, from the item after ``skip`` items."""


@runtime_checkable
class StatefulSampler(Protocol):
    """A sampler whose order depends on more than the epoch."""

    def state_dict(self) -> dict[str, Any]:
        """Return what it depends on, as plain data."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""


class ResumableDataLoader(DataLoader[Any]):
    """``torch.utils.data.DataLoader`` with ``state_dict``: resumed, it yields the batches that were still to come.

    The state is (epoch, cycle, batches yielded), and the sampler's own state if it has one. Lightning stores it in
    checkpoints and restores it, which makes a run killed in the middle of an epoch continue with the very next batch.
    Takes the arguments of ``DataLoader``. With a :class:`SeededSampler` or :class:`TaskSampler` the skipped samples are
    neither read nor decoded; with any other sampler the skipped batches are drawn and thrown away, and they are the
    right ones only if that sampler repeats its order.

    Iterating again within an epoch, as in ``for batch in loader`` loops without ``set_epoch`` and in Lightning's
    ``max_size_cycle``, is a new *cycle* with a new order and new augmentation.

    Note:
        The iterator starts its workers when the first batch is asked for, not in ``iter()``: Lightning creates the
        iterator before it announces the epoch. The loader draws from a generator of its own, never from the global one,
        so that the presence of a loader does not change the model's random numbers. A checkpoint written while a step
        is under way, as on an exception, counts the batch of that step as done.

    Example:
        >>> from lightning_mtl.data import SeededSampler
        >>> data = list(range(8))
        >>> loader = ResumableDataLoader(data, batch_size=2, sampler=SeededSampler(data, shuffle=False))
        >>> iterator = iter(loader)
        >>> next(iterator), next(iterator)
        (tensor([0, 1]), tensor([2, 3]))
        >>> resumed = ResumableDataLoader(data, batch_size=2, sampler=SeededSampler(data, shuffle=False))
        >>> resumed.load_state_dict(loader.state_dict())
        >>> list(resumed)
        [tensor([4, 5]), tensor([6, 7])]
    """

    _epoch: int = 0
    _cycle: int = 0
    _batches: int = 0
    _resuming: bool = False

    def _enter_epoch(self) -> None:
        """Forget the position when the sampler has been sent to another epoch."""
        if isinstance(self.sampler, SeekableSampler) and self.sampler.epoch != self._epoch:
            self._epoch, self._cycle, self._batches = self.sampler.epoch, 0, 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield the batches of this epoch that are still to come."""
        if self.generator is None:
            self.generator = torch.Generator().manual_seed(0)
        self._enter_epoch()
        if self._batches and not self._resuming:
            self._cycle, self._batches = self._cycle + 1, 0
        self._resuming = False
        if isinstance(self.sampler, SeekableSampler):
            self.sampler.seek(self._cycle, self._batches * (self.batch_size or 1))  # without, its items are batches
            remaining: Iterator[Any] = super().__iter__()
        else:
            remaining = itertools.islice(super().__iter__(), self._batches, None)
        for batch in remaining:
            self._batches += 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands: epoch, pass within the epoch, batches yielded in it."""
        self._enter_epoch()
        state: dict[str, Any] = {"epoch": self._epoch, "cycle": self._cycle, "batches": self._batches}
        if isinstance(self.sampler, StatefulSampler):
            state["sampler"] = self.sampler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state; a finished pass is followed by the next one."""
        self._epoch, self._cycle, self._batches = (state_dict[key] for key in ("epoch", "cycle", "batches"))
        if self._batches >= len(self):
            self._cycle, self._batches = self._cycle + 1, 0
        self._resuming = True
        if isinstance(self.sampler, StatefulSampler) and "sampler" in state_dict:
            self.sampler.load_state_dict(state_dict["sampler"])
        if isinstance(self.sampler, SeekableSampler):
            self.sampler.set_epoch(self._epoch)
