"""Modes are what they were."""

from __future__ import annotations

import contextlib

from torch import nn

from lightning_mtl.functional.modes import modes_kept


def test_every_part_is_in_its_own_mode_again_also_after_an_error() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    network[1].eval()
    for change in (network.eval, network.train):
        with contextlib.suppress(RuntimeError), modes_kept(network):
            change()
            raise RuntimeError
        assert [part.training for part in network.modules()] == [True, True, False]
