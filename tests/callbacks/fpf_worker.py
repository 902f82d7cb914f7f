"""Train with replay and finetuning as one of several processes, or alone; started by ``test_fpf_processes.py``.

Usage: python -m tests.callbacks.fpf_worker OUT_FILE
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_mtl.callbacks import (
    ContinualMetrics,
    DarkExperienceReplay,
    ExperienceReplay,
    ForgettingPrioritizedFinetuning,
)
from lightning_mtl.data import ReservoirBuffer
from tests.callbacks.streams import Plain, make_stream
from tests.toys import make_trainer


def callbacks(name: str) -> list[pl.Callback]:
    buffer = ReservoirBuffer(24)
    if name == "er":
        return [ExperienceReplay(None, buffer)]
    if name == "der":
        return [DarkExperienceReplay(buffer=buffer)]
    if name == "kfpf":
        return [ForgettingPrioritizedFinetuning(buffer, ["norm", "head"], k=4, steps=3)]
    return [ForgettingPrioritizedFinetuning(buffer, steps=5, kd_weight=0.3)]


def train(name: str, world: int, folder: Path) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    found, metrics = callbacks(name), ContinualMetrics(split="test", figure=False)
    trainer = make_trainer(
        max_epochs=6,
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        precision="64-true",
        limit_val_batches=0,
        default_root_dir=folder,
        callbacks=[*found, metrics],
    )
    module = Plain(norm=False)
    trainer.fit(module, make_stream(batch_size=12 // world, drop_last=True))
    memory = found[0].memory  # type: ignore[attr-defined]
    return {
        "weights": {key: value.detach().clone() for key, value in module.state_dict().items()},
        "memory": memory.items()["batch"],
        "matrix": metrics.matrix,
    }


def main(out: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    torch.save({name: train(name, world, Path(out).parent) for name in ("er", "der", "kfpf", "fpf")}, f"{out}.{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
