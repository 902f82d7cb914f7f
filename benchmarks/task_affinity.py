"""Time of a training step with the TaskAffinity callback, over that of the same step without it.

    python benchmarks/task_affinity.py --rounds 3

Three classification tasks on random 64 x 64 images. What one look costs is measured against the plain step beside it
in the same Trainer: there is a look before every second step, and the CPU times of this process (one thread) of each
pair of batches are compared. From the median follows the time of a run with a look every n steps; with --whole it is
also measured directly, runs of n steps with one look and runs with none in turn. Prints one JSON line a measurement and
a Markdown table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
import warnings
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import logging

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_mtl import MultiTaskModule
from lightning_mtl.callbacks import TaskAffinity
from lightning_mtl.nn import TimmEncoder
from lightning_mtl.tasks import MulticlassClassification

CLASSES, EVERY = 10, (10, 50, 100)
ENCODERS: dict[str, dict[str, Any]] = {"resnet18": {}, "vit_tiny_patch16_224": {"img_size": 64}}


class Timer(pl.Callback):
    """CPU seconds of every batch, callbacks included; stands before the callback that is timed."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


def module(name: str, tasks: int) -> MultiTaskModule:
    """Return a model with one linear head a task."""
    torch.manual_seed(0)
    named = {f"t{k}": MulticlassClassification(CLASSES) for k in range(tasks)}
    return MultiTaskModule(TimmEncoder(name, **ENCODERS[name]), named)


def data(batches: int, batch_size: int, tasks: int) -> DataLoader[Any]:
    """Return a loader of random images with one class label a task."""
    images = torch.randn(batch_size, 3, 64, 64).repeat(batches, 1, 1, 1)
    labels = torch.randint(0, CLASSES, (len(images), tasks))

    def collate(rows: list[Any]) -> Any:
        stacked = torch.stack([row[1] for row in rows])
        return torch.stack([row[0] for row in rows]), {f"t{k}": stacked[:, k] for k in range(tasks)}

    return DataLoader(TensorDataset(images, labels), batch_size=batch_size, collate_fn=collate)


def seconds(model: MultiTaskModule, loader: DataLoader[Any], watcher: TaskAffinity | None) -> list[float]:
    """Train for one epoch and return the CPU seconds of every batch."""
    timer = Timer()
    pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir="/tmp",
        callbacks=[timer] if watcher is None else [timer, watcher],
    ).fit(model, loader)
    return timer.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=list(ENCODERS))
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=8, help="pairs of a step with a look and one without")
    parser.add_argument("--whole", type=int, nargs="*", default=[], help="look distances to measure directly as well")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    measures = {"cosine": ["cosine"], "cosine and lookahead": ["cosine", "lookahead"]}
    rows = []
    for name in options.encoders:
        for label, chosen in measures.items():
            loader = data(2 * options.rounds + 2, options.batch_size, options.tasks)
            found = seconds(module(name, options.tasks), loader, TaskAffinity(every_n_steps=2, measures=chosen))[2:]
            # before the second of each pair is a look; what it costs, in plain steps
            ratios = [found[i + 1] / found[i] - 1 for i in range(0, len(found), 2)]
            look = statistics.median(ratios)
            row = {"encoder": name, "measures": label, "tasks": options.tasks, "look in steps": round(look, 2)}
            row |= {f"every {n}": round(1 + look / n, 3) for n in EVERY}
            print(json.dumps(row | {"pairs": [round(ratio, 2) for ratio in ratios]}), flush=True)
            rows.append(row)
        for n in options.whole:
            loader = data(n, options.batch_size, options.tasks)
            pairs = []
            for _ in range(2):
                plain = sum(seconds(module(name, options.tasks), loader, None))
                watched = sum(seconds(module(name, options.tasks), loader, TaskAffinity(every_n_steps=n)))
                pairs.append(round(watched / plain, 3))
            print(json.dumps({"encoder": name, "whole runs, every": n, "ratios": pairs}), flush=True)
    header = ["encoder", "measures", "look in steps", *(f"every {n}" for n in EVERY)]
    print("| " + " | ".join(header) + " |\n| --- | --- |" + " ---: |" * (len(header) - 2))
    for row in rows:
        print("| " + " | ".join(str(row[key]) for key in header) + " |")


if __name__ == "__main__":
    main()
