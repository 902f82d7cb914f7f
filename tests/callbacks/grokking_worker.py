"""Watch a run as one of two processes; started by ``test_grokking.py``.

Usage: python -m tests.callbacks.grokking_worker OUT_FILE
The process group is described by the environment, as ``torchrun`` does it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_mtl.callbacks import GrokkingDetector


class Ranks(pl.LightningModule):
    """Each process logs another number."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.log("train_loss", float(self.global_step + 1) * (100 if self.global_rank else 1))
        return nn.functional.mse_loss(self(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", 1.0, sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def main(out: Path) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    inputs = torch.randn(64, 3)
    loader = DataLoader(TensorDataset(inputs, inputs.prod(1, keepdim=True)), batch_size=8)
    detector = GrokkingDetector("train_loss", "val_loss", kernel=True, kernel_every_n_checks=1, figure=False)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        log_every_n_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out.parent,
        callbacks=[detector],
    )
    trainer.fit(Ranks(), loader, loader)
    curves = detector.curves["all"]
    found = {"steps": curves.steps, "train": curves.train, "val": curves.val, "measures": curves.measures}
    Path(f"{out}.{trainer.global_rank}").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
