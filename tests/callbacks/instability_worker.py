"""Watch runs as one of two processes; started by ``test_instability_processes.py``.

Usage: python -m tests.callbacks.instability_worker OUT_FILE
The process group is described by the environment, as ``torchrun`` does it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_mtl.callbacks import InstabilityMonitor
from tests.callbacks.language import Language, Tokens

GLOBAL_BATCH = 8


class Plain(Language):
    """With plain gradient descent, which does not blow up differences in the last digits."""

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Uneven(Plain):
    """The second process alone meets a loss that is not finite, at step 2."""

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        return loss * torch.inf if self.global_rank == 1 and batch_idx == 2 else loss


def train(kind: type[Language], world: int, monitor: InstabilityMonitor | None) -> dict[str, Any]:
    pl.seed_everything(0, verbose=False)
    module = kind(dropout=0.0)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if monitor is None else [monitor],
    )
    rows = Tokens(32)
    rank = int(os.environ.get("RANK", 0))
    every_other = DistributedSampler(rows, num_replicas=world, rank=rank, shuffle=False)
    trainer.fit(module, DataLoader(rows, batch_size=GLOBAL_BATCH // world, sampler=every_other))
    state = None if monitor is None else monitor.state_dict()
    return {"weights": {k: v.clone() for k, v in module.state_dict().items()}, "state": state}


def main(out: str) -> None:
    torch.set_num_threads(1)
    found = {
        "watched": train(Plain, 2, InstabilityMonitor(every_n_steps=2)),
        "unwatched": train(Plain, 2, None),
        "late": train(Uneven, 2, InstabilityMonitor(every_n_steps=2, on_critical="stop")),
        "skipped": train(Uneven, 2, InstabilityMonitor(every_n_steps=2, on_critical="skip")),
    }
    torch.save(found, f"{out}.{os.environ['RANK']}")


if __name__ == "__main__":
    main(*sys.argv[1:])
