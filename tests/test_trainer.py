"""Every balancer under what an ordinary Trainer offers."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from tests.toys import Table, loader, make_module, make_trainer
from tests.trainable import TRAINABLE, build

SGD = functools.partial(torch.optim.SGD, lr=0.02)


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"precision": "bf16-mixed"}, id="bf16"),
        pytest.param({"accumulate_grad_batches": 2, "gradient_clip_val": 0.5}, id="accumulation and clipping by norm"),
        pytest.param(
            {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
            id="clipping by value",
        ),
    ],
)
def test_training_lowers_the_losses(name: str, options: dict[str, Any]) -> None:
    module = make_module(balancer=build(name), optimizer=SGD)
    batch = Table().batch()
    before = sum(loss.item() for loss in module.task_losses(batch).values())
    trainer = make_trainer(max_epochs=4, **options)
    trainer.fit(module, loader())
    after = sum(loss.item() for loss in module.task_losses(batch).values())
    assert after < before
    steps = trainer.num_training_batches * 4 // options.get("accumulate_grad_batches", 1)
    assert trainer.global_step == steps
    assert set(module.balancer.weights) == {"size", "kind", "age"}
