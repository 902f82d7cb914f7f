"""Run a network a second time on the same batch as if it had not been run."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


@dataclass(frozen=True)
class RandomState:
    """State of the random generators that dropout and its like draw from.

    Args:
        cpu: State of torch's default CPU generator.
        cuda: State of the current CUDA device's generator, None without CUDA.
    """

    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls) -> RandomState:
        """Return the present state."""
        on_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        return cls(torch.get_rng_state(), torch.cuda.get_rng_state() if on_cuda else None)

    def restore(self) -> None:
        """Make this the present state."""
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda)


class RandomMarks:
    """Random states at marked places of a first pass, which later passes take up again at the same places.

    A later pass may then leave out places, such as the heads of other tasks, and still draw the same dropout masks.
    """

    def __init__(self) -> None:
        self._states: dict[Hashable, RandomState] = {}

    def mark(self, place: Hashable) -> None:
        """Remember the present state when this place is passed first; make the remembered one the present one later."""
        if place in self._states:
            self._states[place].restore()
        else:
            self._states[place] = RandomState.now()


@contextmanager
def second_pass(network: nn.Module, random_state: RandomState) -> Iterator[None]:
    """Evaluate ``network`` again with the same dropout masks and without moving running statistics.

    Inside, layers with running statistics normalise as in the first pass but keep their averages, and the random
    generators start from ``random_state``; both are put back on leaving.

    Args:
        network: The network that is run again.
        random_state: State of the generators before its first pass.
    """
    norms = [module for module in network.modules() if isinstance(module, _NormBase) and module.track_running_stats]
    buffers = [(norm, norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms if norm.training]
    for norm, mean, var, batches in buffers:
        norm.running_mean = None if mean is None else mean.clone()
        norm.running_var = None if var is None else var.clone()
        norm.num_batches_tracked = None if batches is None else batches.clone()
    before = RandomState.now()
    random_state.restore()
    try:
        yield
    finally:
        before.restore()
        for norm, mean, var, batches in buffers:
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, var, batches
