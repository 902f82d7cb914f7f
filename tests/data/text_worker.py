"""Load text as one of several processes; started by ``test_text_processes.py``.

Usage: python -m tests.data.text_worker FOLDER
Both processes build the same cache at once, and write down which rows they were given.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_mtl.data.text import GLUEDataModule

EPOCHS, BATCH = 2, 4


class Watcher(pl.LightningModule):
    """Notes the batches it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[list[str]] = []
        self.validated: list[list[str]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.trained.append(_rows(batch))
        return self.weight.sum()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(_rows(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def _rows(batch: Any) -> list[str]:
    inputs, targets = batch
    (task,) = targets
    return [f"{task} {row[mask.bool()].tolist()}" for row, mask in zip(*_named(inputs), strict=True)]


def _named(inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return inputs["input_ids"], inputs["attention_mask"]


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    options: dict[str, Any] = {"batch_size": BATCH, "num_workers": 0}
    # not through the Trainer: nobody waits for anybody
    race = GLUEDataModule(folder / "glue", cache_dir=str(folder / "race"), **options)
    race.prepare_data()
    race.setup("fit")
    data = GLUEDataModule(folder / "glue", cache_dir=str(folder / "cache"), **options)
    module = Watcher()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp",
        max_epochs=EPOCHS,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    raced = [inputs["input_ids"].tolist() for inputs, _ in race.val_dataloader()]
    found = {
        "trained": module.trained,
        "validated": module.validated[: len(module.validated) // EPOCHS],
        "raced": raced,
        "ratios": data.task_ratios,
        "per_epoch": len(data.train_dataloader()),
    }
    (folder / f"{rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
