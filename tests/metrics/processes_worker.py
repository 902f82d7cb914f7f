"""Run by test_contract.py on two processes: the values of all metrics, for the data of both."""

from __future__ import annotations

import json
import sys

import torch
import torch.distributed as dist

from lightning_mtl.metrics import TaskMetrics
from tests.metrics.cases import CASES


def main(rank: int, store: str, output: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    values = {}
    for case in CASES:
        torch.manual_seed(0)
        batches = [case.batch(8) for _ in range(3)]
        for holder in ("both", "one", "none"):
            metrics = TaskMetrics({"value": case.build()})
            mine = {"both": batches[rank::2], "one": batches if rank == 1 else [], "none": []}[holder]
            for prediction, target in mine:
                metrics.update(prediction, target)
            values[f"{case.id}/{holder}"] = metrics.compute()["value"].item()
    with open(f"{output}.{rank}", "w") as file:
        json.dump(values, file)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
