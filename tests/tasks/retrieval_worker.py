"""Run by test_text_tasks.py on two processes: retrieval across both, and on all rows in one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_mtl import MultiTaskModule
from lightning_mtl.nn import FeatureSpec
from lightning_mtl.tasks import Retrieval

GROUPS = torch.tensor([0, 1, 2, -100, 1, 4, 5, 0])


class Vectors(nn.Module):
    """Inputs as features."""

    feature_spec = FeatureSpec("vector", (6,))

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.layer(inputs).tanh()
        return out


class Loss(nn.Module):
    """The loss as the output, so that ddp sees it."""

    def __init__(self, module: MultiTaskModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, inputs: Tensor, groups: Tensor) -> Tensor:
        return self.module.task_losses((inputs, {"find": groups}))["find"]


def build(gather: bool) -> MultiTaskModule:
    torch.manual_seed(0)
    task = Retrieval(dim=4, temperature=0.3, learn_temperature=True, gather=gather)
    return MultiTaskModule(Vectors(), {"find": task})


def gradient(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def values(module: MultiTaskModule, rows: slice, inputs: Tensor) -> dict[str, float]:
    task = module.tasks["find"]
    if len(GROUPS[rows]):
        with torch.no_grad():
            task.update_metrics(module(inputs[rows])["find"], GROUPS[rows])
    found = {name: float(value) for name, value in task.metrics.compute().items()}
    task.metrics.reset()
    return found


def main(folder: Path) -> None:
    rank = int(os.environ["RANK"])
    torch.manual_seed(1)
    inputs = torch.randn(8, 2, 6)
    if rank == 0:
        joined = build(gather=False)
        Loss(joined)(inputs, GROUPS).backward()
        torch.save({"gradient": gradient(joined), "metrics": values(joined, slice(8), inputs)}, folder / "joined.pt")
    dist.init_process_group("gloo")
    rows = slice(3) if rank == 0 else slice(3, 8)
    module = build(gather=True)
    replica = DistributedDataParallel(Loss(module))
    replica(inputs[rows], GROUPS[rows]).backward()
    result = {
        "gradient": gradient(module),
        "metrics": values(module, rows, inputs),
        "alone": values(module, slice(8) if rank == 0 else slice(0), inputs),
    }
    torch.save(result, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
