"""Train behind an enhancement as one of several processes, or alone; started by ``test_feat_enhancer_processes.py``.

Usage: python -m tests.nn.feat_enhancer_worker OUT_FILE
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
from lightning_mtl.balancers import MGDA, Balancer, EqualWeighting
from lightning_mtl.data import MultiTaskDataModule
from lightning_mtl.nn import ConvHead, FeatEnHancer
from lightning_mtl.tasks import Depth, SemanticSegmentation
from tests.nn.test_feature_enhancement import Maps

GLOBAL_BATCH, ROWS, EPOCHS = 4, 8, 2


class Rows(Dataset[Any]):
    """Noise; rows alternate between two processes, and the second one never sees the enhanced task."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(ROWS, 3, 16, 16, generator=generator, dtype=torch.float64)
        self.kind = torch.randint(0, 3, (ROWS, 16, 16), generator=generator)
        self.kind[1::2] = 255
        self.depth = 1 + torch.rand(ROWS, 1, 16, 16, generator=generator, dtype=torch.float64)

    def __len__(self) -> int:
        return ROWS

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.images[index], {"kind": self.kind[index], "depth": self.depth[index]}


class Noise(MultiTaskDataModule):
    """Keeps the order of the rows, so that a joined batch is the union of the processes' batches."""

    def make_dataset(self, split: str) -> Dataset[Any]:
        return Rows()

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.sampler.shuffle = False
        return loader


def train(balancer: Balancer, enhanced: dict[str, bool] | None, checkpointing: bool, world: int) -> dict[str, Tensor]:
    pl.seed_everything(0)
    encoder = FeatEnHancer(
        Maps(), enhanced, hidden_channels=8, out_channels=6, heads=2, init_std=0.2, checkpointing=checkpointing
    )
    tasks = {"kind": SemanticSegmentation(num_classes=3, head=ConvHead), "depth": Depth(head=ConvHead)}
    module = MultiTaskModule(encoder, tasks, balancer, functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9))
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
    trainer.fit(module, Noise(batch_size=GLOBAL_BATCH // world, num_workers=0))
    return {key: value.detach().clone() for key, value in module.named_parameters()}


def main(out: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    some = {"kind": True, "depth": False}
    found = {
        "equal weights, all tasks": train(EqualWeighting(), None, False, world),
        "equal weights, one task": train(EqualWeighting(), some, False, world),
        "MGDA, all tasks, recomputed": train(MGDA(), None, True, world),
        "MGDA, one task": train(MGDA(), some, False, world),
    }
    torch.save(found, f"{out}.{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
