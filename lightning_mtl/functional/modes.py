"""Run a network in another mode and leave it in its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """Put ``train`` or ``eval`` of a network and of each of its parts back on leaving, frozen parts included.

    Args:
        network: The network whose modes may change inside.
    """
    modes = [(part, part.training) for part in network.modules()]
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
