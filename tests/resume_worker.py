"""Train with a checkpoint every few steps and write down every loss; ``test_resume.py`` kills and resumes it.

Usage: python -m tests.resume_worker FOLDER LOSSES_FILE BALANCER STEPS [CKPT_PATH]
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import Dataset

from lightning_mtl import MultiTaskModule, balancers
from lightning_mtl.data import MultiTaskDataModule
from lightning_mtl.nn import FeatureSpec
from tests.toys import Table, make_tasks


class Tables(MultiTaskDataModule):
    def make_dataset(self, split: str) -> Dataset[Any]:
        return Table(96, seed=1)


class NoisyEncoder(nn.Sequential):
    """Draws from the global generator in every step and has running statistics."""

    feature_spec = FeatureSpec("vector", (16,))

    def __init__(self) -> None:
        super().__init__(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3))


class WriteLosses(pl.Callback):
    def __init__(self, path: Path, pause: float) -> None:
        self.path = path
        self.pause = pause

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([trainer.global_step, float(outputs["loss"]).hex()]) + "\n")
        time.sleep(self.pause)


def main(folder: str, losses: str, balancer: str, steps: str, ckpt_path: str | None = None) -> None:
    warnings.filterwarnings("ignore")
    pl.seed_everything(0 if ckpt_path is None else 1234)  # a resumed run must not depend on the seed given again
    module = MultiTaskModule(NoisyEncoder(), make_tasks(), getattr(balancers, balancer)())
    checkpoint = ModelCheckpoint(dirpath=folder, every_n_train_steps=7, save_last=True, save_top_k=1)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=int(steps),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[checkpoint, WriteLosses(Path(losses), pause=0.0 if ckpt_path else 0.01)],
    )
    trainer.fit(module, Tables(batch_size=8, num_workers=0), ckpt_path=ckpt_path)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
