"""Measure affinities as one of several processes, or alone; started by ``test_affinity_processes.py``.

Usage: python -m tests.callbacks.affinity_worker OUT_FOLDER
The process group is described by the environment, as ``torchrun`` does it.
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_mtl.callbacks import TaskAffinity
from tests.callbacks.test_affinity import Foreign
from tests.processes_worker import Uneven, uneven
from tests.toys import Table, make_module, make_trainer

GLOBAL_BATCH = 16
MEASURES = ("cosine", "lookahead", "mean_cosine")


class DifferentTasks(Foreign):
    """The second process has a task that the first one lacks."""

    def losses(self, batch: Any) -> dict[str, Tensor]:
        found = super().losses(batch)
        return {**found, "c": found["a"]} if self.global_rank == 1 else found


class InOrder(Uneven):
    """Validates on the rows that it trains on, and takes only full batches of them."""

    def val_dataloader(self) -> Any:
        return DataLoader(uneven(Table(64, seed=3, dtype=torch.float64)), batch_size=self.batch_size)


def trainer(world: int, folder: str, **arguments: Any) -> pl.Trainer:
    defaults: dict[str, Any] = {
        "devices": world,
        "strategy": "ddp" if world > 1 else "auto",
        "precision": "64-true",
        "default_root_dir": folder,
        "use_distributed_sampler": False,
    }
    return make_trainer(**(defaults | arguments))


def measured(watcher: TaskAffinity) -> dict[str, Any]:
    return {measure: watcher.affinity(measure) for measure in MEASURES} | {"tasks": watcher.tasks}  # type: ignore[arg-type]


def own(world: int, folder: str) -> dict[str, Any]:
    """A MultiTaskModule whose labels are spread unevenly over the processes."""
    pl.seed_everything(0, verbose=False)
    module = make_module(optimizer=functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9))
    watcher = TaskAffinity(every_n_steps=1, measures=MEASURES, probe_batches=4)
    trainer(world, folder, callbacks=[watcher]).fit(module, InOrder(batch_size=GLOBAL_BATCH // world, num_workers=0))
    return measured(watcher)


def foreign(world: int, folder: str, watch: bool = True, kind: type[Foreign] = Foreign) -> dict[str, Any]:
    """A module of somebody else's with the mean over the processes of local means as its loss."""
    pl.seed_everything(0, verbose=False)
    module = kind(dropout=0.0, norm=False)
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)  # type: ignore[method-assign]
    rank = int(os.environ.get("RANK", 0))
    rows = Table(64, seed=3, dtype=torch.float64)
    sampler = DistributedSampler(rows, num_replicas=world, rank=rank, shuffle=False)
    data = DataLoader(rows, batch_size=GLOBAL_BATCH // world, sampler=sampler)
    watcher = TaskAffinity(
        every_n_steps=2,
        measures=MEASURES,
        losses=lambda m, batch: m.losses(batch),
        shared=lambda m: m.trunk.parameters(),
        probe=data,
    )
    trainer(world, folder, callbacks=[watcher] if watch else []).fit(module, data)
    found = {"weights": {key: value.clone() for key, value in module.state_dict().items()}}
    return found | (measured(watcher) if watch else {})


def main(out: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    folder = tempfile.mkdtemp()
    found: dict[str, Any] = {
        "own": own(world, out),
        "foreign": foreign(world, folder),
        "unwatched": foreign(world, folder, watch=False),
    }
    try:
        foreign(world, folder, kind=DifferentTasks)
    except RuntimeError as error:
        found["error"] = str(error)
    torch.save(found, f"{out}/result.{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
