"""Train with MTAdamW as one of several processes, or alone; started by ``test_distributed.py``.

Usage: python -m tests.optim.worker OUT_FILE
"""

from __future__ import annotations

import functools
import os
import sys

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.data import FixedRatios, TaskMixtureDataModule, TwoGlyphDataModule
from lightning_mtl.nn import MLPEncoder
from lightning_mtl.optim import MTAdamW
from lightning_mtl.tasks import MulticlassClassification

TASKS = ("left", "right")


class Encoder(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Flatten(), MLPEncoder(256, [12]))
        self.feature_spec = self[1].feature_spec


def main(out: str) -> None:
    world = int(os.environ.get("WORLD_SIZE", 1))
    pl.seed_everything(0)
    images = TwoGlyphDataModule(num_train=60, num_val=4, label_noise=0.0)
    data = TaskMixtureDataModule(
        dict.fromkeys(TASKS, images),
        batch_size=8 // world,
        sampling=FixedRatios({"left": 0.7, "right": 0.3}),
        steps_per_epoch=9,
        num_workers=0,
    )
    module = MultiTaskModule(
        Encoder(),
        {task: MulticlassClassification(num_classes=10) for task in TASKS},
        optimizer=functools.partial(MTAdamW, lr=0.01, task_specific_groups=["heads"]),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        precision="64-true",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)
    (optimizer,) = trainer.optimizers
    weights = {name: value.detach() for name, value in module.named_parameters()}
    state = {"model": weights, "drawn": optimizer.drawn, "norms": optimizer.grad_norms}
    torch.save(state, f"{out}.{trainer.global_rank}")


if __name__ == "__main__":
    main(sys.argv[1])
