"""Train a controllable network as one of several processes, or alone.

Started by ``test_slimmable_processes.py``. Usage: python -m tests.controllable.slimmable_worker OUT_FILE
The process group is described by the environment, as ``torchrun`` does it.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_mtl.balancers import PCGrad
from lightning_mtl.controllable import WidthMetrics
from tests.controllable.test_module import NARROW, build
from tests.toys import make_trainer

RUNS: dict[str, dict[str, Any]] = {
    "equal": {"random_configs": 2},
    "distilled": {"distillation": "slice", "distillation_weight": 1.0, "distillation_ramp": 2},
    "logits": {"distillation": "logits", "distillation_weight": 1.0, "distillation_ramp": 2},
    "pcgrad": {"balancer": PCGrad},
}


def collate(samples: list[tuple[Tensor, ...]]) -> tuple[Tensor, dict[str, Tensor]]:
    """Every third sample lacks its class, so that processes hold different numbers of labels."""
    inputs = torch.stack([sample[0] for sample in samples])
    number = torch.stack([sample[1] for sample in samples])
    kind = torch.where(number % 3 == 0, -100, inputs[:, :3].argmax(1))
    return inputs, {"kind": kind, "size": inputs[:, 3:4].clone()}


def train(options: dict[str, Any], world: int) -> dict[str, Tensor]:
    """Return the weights after four steps and the metrics of one more validation."""
    pl.seed_everything(0, verbose=False)
    data = TensorDataset(torch.randn(32, 6, dtype=torch.float64), torch.arange(32))
    module = build(**{key: value() if isinstance(value, type) else value for key, value in options.items()})
    trainer = make_trainer(
        max_epochs=1,
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        precision="64-true",
        use_distributed_sampler=False,
        callbacks=[WidthMetrics({"narrow": NARROW})],
    )
    rank = trainer.global_rank if world > 1 else 0
    # ranks take every other sample, so that their batches together are those of one process
    loader = DataLoader(data, 8 // world, sampler=DistributedSampler(data, world, rank, False), collate_fn=collate)
    trainer.fit(module, loader, loader)
    found = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    metrics = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("val/")}
    return found | {key: value.double().clone() for key, value in metrics.items()}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {name: train(options, int(os.environ.get("WORLD_SIZE", "1"))) for name, options in RUNS.items()}
    torch.save(found, f"{sys.argv[1]}.{os.environ.get('RANK', 'alone')}")
