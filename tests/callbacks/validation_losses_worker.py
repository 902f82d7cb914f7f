"""Train language models under balancers as one of several processes, or alone; see test_validation_losses_processes.py.

Usage: python -m tests.callbacks.validation_losses_worker OUT_FILE
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import FAMO, Balancer, CoBa, EqualWeighting, LabelProportionalWeighting
from lightning_mtl.callbacks import ValidationLosses
from lightning_mtl.data import DigitTasksDataModule
from lightning_mtl.losses import MultiTaskTokenLoss, TaskFocalLoss
from lightning_mtl.nn import CausalLanguageModel
from lightning_mtl.tasks import LanguageModeling

GLOBAL_BATCH, STEPS = 16, 8
BALANCERS: dict[str, Any] = {
    "case1": LabelProportionalWeighting,
    "case3": lambda: EqualWeighting(normalize=True),
    "coba": lambda: CoBa(warmup_steps=2, history=4),
    "famo": lambda: FAMO(on="val", update_interval=2),
}


def train(balancer: Balancer, world: int) -> dict[str, Any]:
    pl.seed_everything(0)
    model = CausalLanguageModel(14, dim=8, depth=1, positions="learned", max_length=16)
    tasks = {name: LanguageModeling() for name in ("reverse", "max")}
    optimizer = functools.partial(torch.optim.SGD, lr=0.5)
    module = MultiTaskModule(model, tasks, balancer, optimizer=optimizer)
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        precision="64-true",
        max_epochs=1,
        limit_val_batches=0,
        callbacks=[ValidationLosses()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DigitTasksDataModule(
        max_share=0.5, num_train=GLOBAL_BATCH * STEPS, num_val=GLOBAL_BATCH, batch_size=GLOBAL_BATCH // world
    )
    trainer.fit(module, data)
    found: dict[str, Any] = {name: value.detach().clone() for name, value in module.named_parameters()}
    found["weights"] = torch.stack(list(balancer.weights.values()))
    return found


def token_losses(world: int, rank: int) -> dict[str, Any]:
    """Return losses and gradients of a batch, of which every process has a part with other tasks."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)
    labels = torch.randint(5, (6, 4), generator=generator)
    labels[0, 1:] = labels[3] = -100
    tasks = torch.tensor([0, 0, 2, 2, 2, 2])
    rows = slice(None) if world == 1 else (slice(0, 3) if rank == 0 else slice(3, 6))
    found: dict[str, Any] = {}
    losses = {
        mode: MultiTaskTokenLoss(3, mode, [1.0, 1.0, 0.5], sync_counts=True)
        for mode in ("case1", "case2", "case3", "case4")
    }  # type: ignore[arg-type]
    losses |= {level: TaskFocalLoss(3, level=level, sync_counts=True) for level in ("sample", "task")}  # type: ignore
    for name, loss in losses.items():
        part = logits[rows].clone().requires_grad_()
        value = loss(part, labels[rows], tasks[rows])[0]
        (gradient,) = torch.autograd.grad(value, part)
        whole = torch.zeros_like(logits)
        whole[rows] = gradient / world  # the reducer's mean
        if world > 1:
            dist.all_reduce(whole)
        found[name] = torch.cat((value.detach().flatten(), whole.flatten()))
    return found


def main(out: str) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    found = {name: train(make(), world) for name, make in BALANCERS.items()}
    found["losses"] = token_losses(world, rank)
    torch.save(found, f"{out}.{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
