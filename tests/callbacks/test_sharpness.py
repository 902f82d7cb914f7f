"""Logging how much the losses rise at perturbed parameters."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

from lightning_mtl.balancers import MGDA, SAM, FlatRegions
from lightning_mtl.callbacks import SharpnessMonitor
from tests.toys import loader, make_module, make_trainer


class Logged(Callback):
    def __init__(self) -> None:
        self.seen: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen.append({key: float(value) for key, value in trainer.callback_metrics.items() if "sharp" in key})


@pytest.mark.parametrize("balancer", [FlatRegions(MGDA(), 0.5), SAM()], ids=lambda balancer: type(balancer).__name__)
def test_logs_the_rise_of_every_loss_at_the_trainers_cadence(balancer: Any) -> None:
    module, logged = make_module(balancer=copy.deepcopy(balancer)), Logged()
    make_trainer(callbacks=[SharpnessMonitor(), logged], log_every_n_steps=4).fit(module, loader())
    assert [bool(found) for found in logged.seen] == [False] * 3 + [True] * 5
    last = logged.seen[-1]
    assert {key for key in last if key.count("/") == 1} == {"sharpness/size", "sharpness/kind", "sharpness/age"}
    for task, rise in module.balancer.sharpness.items():
        assert last[f"sharpness/{task}"] == pytest.approx(float(rise))
    cosines = [key for key in last if key.endswith("/flat_cosine")]
    assert len(cosines) == (3 if isinstance(balancer, FlatRegions) else 0)


def test_leaves_the_training_as_it_is_without_it() -> None:
    found = []
    for callbacks in ([], [SharpnessMonitor()]):
        pl.seed_everything(1, verbose=False)
        module = make_module(balancer=SAM())
        make_trainer(callbacks=callbacks, log_every_n_steps=1).fit(module, loader())
        found.append([*module.parameters(), torch.rand(2)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


def test_a_balancer_that_does_not_perturb_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"SharpnessMonitor: .* got EqualWeighting; wrap"):
        make_trainer(callbacks=[SharpnessMonitor()]).fit(make_module(), loader())
