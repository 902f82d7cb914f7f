"""Train under balancers as one of several processes, or alone; started by ``test_processes.py``.

Usage: python -m tests.processes_worker OUT_FILE NAME [NAME ...]
The process group is described by the environment, as ``torchrun`` does it.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_mtl import MultiTaskModule
from lightning_mtl.data import MultiTaskDataModule
from lightning_mtl.nn import MLPEncoder
from tests.toys import Table, make_tasks
from tests.trainable import build

GLOBAL_BATCH, ROWS, EPOCHS = 16, 64, 3


def uneven(table: Table) -> Table:
    """Spread labels unevenly: rows alternate between two processes, whose labels differ in kind and number."""
    even = torch.arange(len(table)) % 2 == 0
    table.targets["kind"][~even] = -100  # the second process never sees this task
    table.targets["size"][even & (torch.arange(len(table)) % 8 != 0)] = torch.nan
    table.targets["age"][16:32] = torch.nan  # nobody has this task in the second batch
    return table


class Uneven(MultiTaskDataModule):
    """Keeps the order of the rows, so that a joined batch is the union of the processes' batches."""

    def make_dataset(self, split: str) -> Dataset[Any]:
        return uneven(Table(ROWS, seed=3, dtype=torch.float64))

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.sampler.shuffle = False
        return loader


def train(name: str, world: int) -> dict[str, Tensor]:
    pl.seed_everything(0)
    module = MultiTaskModule(
        MLPEncoder(8, [16, 16]),
        make_tasks(),
        build(name),
        optimizer=functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        precision="64-true",
        max_epochs=EPOCHS,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, Uneven(batch_size=GLOBAL_BATCH // world, num_workers=0))
    return {key: value.detach().clone() for key, value in module.named_parameters()}


def main(out: str, *names: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    found = {name: train(name, world) for name in names}
    torch.save(found, f"{out}.{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
