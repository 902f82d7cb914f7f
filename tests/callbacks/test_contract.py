"""What every callback does."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from tests.callbacks.cases import WATCHERS, Case
from tests.callbacks.scenes import make_loader, make_module
from tests.toys import make_trainer


class Modes(Callback):
    """Notes which parts of the module are in training mode when a training epoch starts and ends."""

    def __init__(self) -> None:
        self.seen: list[list[bool]] = []

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append([child.training for child in pl_module.modules()])

    on_train_epoch_end = on_train_epoch_start


def train(folder: Path, callbacks: list[Callback]) -> tuple[dict[str, Tensor], list[list[bool]], list[Any]]:
    """Return weights, modes and the random numbers that would come next."""
    pl.seed_everything(3, verbose=False)
    module, modes = make_module(), Modes()
    module.encoder.layers[1].eval()  # a frozen layer has to stay as it is
    trainer = make_trainer(max_epochs=2, default_root_dir=folder, callbacks=[*callbacks, modes])
    trainer.fit(module, make_loader(shuffle=True), make_loader())
    weights = dict(module.named_parameters()) | dict(module.named_buffers())
    return (
        {name: value.detach().clone() for name, value in weights.items()},
        modes.seen,
        [torch.rand(2).tolist(), random.random(), np.random.rand()],  # noqa: NPY002
    )


@pytest.mark.filterwarnings("ignore:Found 1 module.s. in eval mode at the start of training")
@pytest.mark.parametrize("case", WATCHERS, ids=lambda c: c.id)
def test_watcher_leaves_weights_modes_and_random_states_as_without_it(case: Case, tmp_path: Path) -> None:
    weights, modes, numbers = train(tmp_path / "without", [])
    watched_weights, watched_modes, watched_numbers = train(tmp_path / "with", [case.build()])
    torch.testing.assert_close(watched_weights, weights, rtol=0, atol=0)
    assert watched_modes == modes
    assert watched_numbers == numbers


@pytest.mark.parametrize("case", WATCHERS, ids=lambda c: c.id)
def test_fast_dev_run_leaves_no_file(case: Case, tmp_path: Path) -> None:
    trainer = make_trainer(fast_dev_run=True, default_root_dir=tmp_path, callbacks=[case.build()])
    trainer.fit(make_module(), make_loader(), make_loader())
    assert list(tmp_path.rglob("*")) == []
