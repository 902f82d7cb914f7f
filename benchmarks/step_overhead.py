"""Time of a training step in a Trainer: MultiTaskModule against the same model by hand, weightings against the sum.

    python benchmarks/step_overhead.py

Both models train in real Trainers that take turns in one process, batch by batch of CPU time of this process (one
thread), and the median of the ratios of neighbouring rounds is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import logging

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_mtl import MultiTaskModule
from lightning_mtl import balancers as rooms
from lightning_mtl.nn import LinearHead, TimmEncoder
from lightning_mtl.tasks import MulticlassClassification

BATCHES, BATCH_SIZE, CLASSES = 12, 32, 10


class Timer(pl.Callback):
    """CPU seconds of every training batch, from its start to the start of the next."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *_: Any) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, *_: Any) -> None:
        self.seconds.append(time.process_time() - self.start)


class ByHand(pl.LightningModule):
    """What one writes without this package."""

    def __init__(self, num_tasks: int) -> None:
        super().__init__()
        self.encoder = TimmEncoder("resnet18")
        self.heads = nn.ModuleDict({f"t{k}": LinearHead(self.encoder.feature_spec, CLASSES) for k in range(num_tasks)})

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        features = self.encoder(inputs)
        losses = {
            name: nn.functional.cross_entropy(head(features), targets[name], ignore_index=-100)
            for name, head in self.heads.items()
        }
        total = torch.stack(list(losses.values())).sum()
        self.log_dict({f"train/{name}/loss": loss.detach() for name, loss in losses.items()})
        self.log("train/loss", total.detach(), prog_bar=True)
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters())


def ours(balancer: str, num_tasks: int) -> MultiTaskModule:
    """Return the same model as a MultiTaskModule."""
    tasks = {f"t{k}": MulticlassClassification(CLASSES) for k in range(num_tasks)}
    chosen = getattr(rooms, balancer)
    if balancer == "FixedWeighting":
        return MultiTaskModule(TimmEncoder("resnet18"), tasks, chosen(dict.fromkeys(tasks, 1.0)))
    return MultiTaskModule(TimmEncoder("resnet18"), tasks, chosen())


def data(num_tasks: int) -> DataLoader[Any]:
    """Return a loader of random 64x64 images with one class label a task."""
    images = torch.randn(BATCHES * BATCH_SIZE, 3, 64, 64)
    labels = torch.randint(0, CLASSES, (len(images), num_tasks))

    def collate(rows: list[Any]) -> Any:
        stacked = torch.stack([row[1] for row in rows])
        return torch.stack([row[0] for row in rows]), {f"t{k}": stacked[:, k] for k in range(num_tasks)}

    return DataLoader(TensorDataset(images, labels), batch_size=BATCH_SIZE, collate_fn=collate)


def round_of(make: Callable[[], pl.LightningModule], loader: DataLoader[Any]) -> float:
    """Train a fresh model for a few batches and return the median seconds of a batch."""
    timer = Timer()
    pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[timer],
    ).fit(make(), loader)
    return statistics.median(timer.seconds[2:])


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--balancers", nargs="+", default=None, help="class names; default: every loss weighting")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    loader = data(options.tasks)
    room = [
        name
        for name in rooms.__all__
        if "loss_weighting" in getattr(rooms, name).__module__ and name not in ("LossWeighting", "EqualWeighting")
    ]
    rows: list[tuple[str, str, Callable[[], pl.LightningModule], Callable[[], pl.LightningModule]]] = [
        ("MultiTaskModule", "by hand", lambda: ours("EqualWeighting", options.tasks), lambda: ByHand(options.tasks))
    ]
    rows += [
        (
            name,
            "EqualWeighting",
            lambda name=name: ours(name, options.tasks),  # type: ignore[misc]
            lambda: ours("EqualWeighting", options.tasks),
        )
        for name in options.balancers or room
    ]
    print(f"timm resnet18, 64x64, batch {BATCH_SIZE}, K={options.tasks}, one thread, {options.rounds} rounds")
    print("| what | against | time ratio |\n| --- | --- | ---: |")
    for name, against, first, second in rows:
        try:
            ratios = []
            for _ in range(options.rounds):
                before = round_of(second, loader)
                middle = round_of(first, loader)
                ratios.append(middle / ((before + round_of(second, loader)) / 2))
            print(f"| {name} | {against} | {statistics.median(ratios):.3f} |", flush=True)
        except TypeError as error:  # a balancer with required arguments
            print(f"| {name} | {against} | not run: {error} |", flush=True)


if __name__ == "__main__":
    main()
