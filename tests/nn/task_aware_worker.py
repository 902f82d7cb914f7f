"""Train encoders with features for every task as one of several processes, or alone.

Started by ``test_task_aware_processes.py``. Usage: python -m tests.nn.task_aware_worker OUT_FILE
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import UncertaintyWeighting
from lightning_mtl.nn import FeatureSpec
from lightning_mtl.tasks import Regression
from tests.nn.cases import NAMES, TASK_AWARE, TaskAwareCase
from tests.toys import make_trainer


class EveryMap(nn.Module):
    """Read every feature map, so that no parameter is left out."""

    def __init__(self, spec: FeatureSpec, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(sum(spec.channels), out_channels)

    def forward(self, features: Any) -> Tensor:
        maps = [features] if isinstance(features, Tensor) else [m.mean(dim=(2, 3)) for m in features]
        prediction: Tensor = self.linear(torch.cat(maps, dim=1))
        return prediction


RUNS = {case.id: case for case in TASK_AWARE}
EXACT = ("mmoe", "ple", "dselect_k")  # no batch statistics and no draws: two processes equal one


def collate(samples: list[tuple[Tensor, ...]]) -> tuple[Tensor, dict[str, Tensor]]:
    inputs = torch.stack([sample[0] for sample in samples])
    return inputs, {task: inputs.flatten(1)[:, k : k + 1] for k, task in enumerate(NAMES)}


def train(case: TaskAwareCase, world: int) -> dict[str, Tensor]:
    pl.seed_everything(0, verbose=False)
    exact = case.id in EXACT
    inputs = torch.randn(16, *case.shape, dtype=torch.float64 if exact else torch.float32)
    module = MultiTaskModule(case.build(), {t: Regression(head=EveryMap) for t in NAMES}, UncertaintyWeighting())
    trainer = make_trainer(
        max_epochs=1,
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        precision="64-true" if exact else "bf16-mixed",
        use_distributed_sampler=False,
    )
    data = TensorDataset(inputs)
    rank = trainer.global_rank if world > 1 else 0
    # ranks take every other sample, so that their batches together are those of one process
    sampler = DistributedSampler(data, world, rank, shuffle=False)
    trainer.fit(module, DataLoader(data, 8 // world, sampler=sampler, collate_fn=collate))
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {name: train(case, int(os.environ["WORLD_SIZE"])) for name, case in RUNS.items()}
    torch.save(found, Path(f"{sys.argv[1]}.{os.environ['RANK']}"))
