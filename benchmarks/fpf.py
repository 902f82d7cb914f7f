"""Forgetting in a stream of tasks: plain SGD, replay in every step, and finetuning of a part of the network.

Ten classes of generated 8 x 8 textures come as five tasks of two classes, or with ``--stream domain`` as four tasks of
all classes, turned by 0, 45, 90 and 135 degrees and every other one in negative; five epochs each. A small network with
batch norm (30 762 parameters) is trained by SGD. Every method runs in a Trainer with the same seeds, and the average
accuracy over all tasks after the last one is printed, with what replay cost: samples drawn from the memory, and CPU
time beyond that of plain SGD.

    OMP_NUM_THREADS=1 python benchmarks/fpf.py [--seeds 5] [--methods sgd er ...] [--buffer 100] [--out results.json]
    OMP_NUM_THREADS=1 python benchmarks/fpf.py --stream domain --seeds 3
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.callbacks import (
    ContinualMetrics,
    DarkExperienceReplay,
    ExperienceReplay,
    ForgettingPrioritizedFinetuning,
)
from lightning_mtl.data import ReservoirBuffer, Rotation, TaskStream, TextureCrops

CLASSES, EPOCHS = 10, 5
TASKS = {"class": 5, "domain": 4}
NORM_AND_HEAD = ["norm", "head"]
NORM_AND_INPUT = ["norm", "conv1"]


class Network(pl.LightningModule):
    """Three convolutions with batch norm and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv2, self.bn2 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64)
        self.head = nn.Linear(256, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        return self.head(x.flatten(1))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.03)


class Reinitialise(pl.Callback):
    """Forget all training before the finetuning at the end: what the memory alone is worth."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.load_state_dict(self.weights)


def memory(size: int, seed: int) -> ReservoirBuffer:
    return ReservoirBuffer(size, seed)


def methods(size: int, seed: int) -> dict[str, Callable[[], list[pl.Callback]]]:
    """Return the callbacks of every method."""

    def fpf(**options: Any) -> ForgettingPrioritizedFinetuning:
        options = {"buffer": memory(size, seed), "groups": NORM_AND_HEAD, **options}
        return ForgettingPrioritizedFinetuning(**options)

    def replay() -> ExperienceReplay:
        return ExperienceReplay(32, memory(size, seed), write_every_epoch=True)

    def dark() -> DarkExperienceReplay:
        return DarkExperienceReplay(0.1, 1.0, 32, memory(size, seed), write_every_epoch=True)

    return {
        "sgd": list,
        "memory only, norm+head": lambda: [Reinitialise(), fpf()],
        "memory only, all": lambda: [Reinitialise(), fpf(groups=["*"])],
        "er": lambda: [replay()],
        "der++": lambda: [dark()],
        "sgd + fpf conv2": lambda: [fpf(groups=["conv2"])],
        "sgd + fpf norm+head": lambda: [fpf()],
        "sgd + fpf norm+conv1": lambda: [fpf(groups=NORM_AND_INPUT)],
        "sgd + fpf auto": lambda: [fpf(groups="auto")],
        "sgd + fpf norm+head, distilled": lambda: [fpf(kd_weight=0.5)],
        "sgd + fpf all": lambda: [fpf(groups=["*"])],
        "er + fpf norm+head": lambda: [replay(), fpf(buffer=None)],
        "k-fpf 9 x 20": lambda: [fpf(k=9, steps=20)],
        "k-fpf 5 x 10": lambda: [fpf(k=5, steps=10)],
    }


def run(name: str, seed: int, size: int, scheme: Literal["class", "domain"]) -> dict[str, Any]:
    """Train with a method and return its accuracy and cost."""
    pl.seed_everything(seed, verbose=False)
    callbacks = methods(size, seed)[name]()
    metrics = ContinualMetrics(split="test", figure=False)
    stream = TaskStream(
        TextureCrops(CLASSES, num_train=85, num_test=36, seed=seed),
        scheme,
        num_tasks=TASKS[scheme],
        shift=Rotation(180.0, invert=True) if scheme == "domain" else None,
        epochs_per_task=EPOCHS,
        val_fraction=0.012,  # one of 85: nothing is validated
        plain=True,
        batch_size=32,
        seed=seed,
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=TASKS[scheme] * EPOCHS,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[*callbacks, metrics],
            default_root_dir=folder,
        )
        started = time.process_time()
        trainer.fit(Network(), stream)
        seconds = time.process_time() - started
    finetuning = [c for c in callbacks if isinstance(c, ForgettingPrioritizedFinetuning)]
    replayed = sum(getattr(c, "samples_replayed", 0) for c in callbacks)
    return {
        "stream": scheme,
        "method": name,
        "buffer": size,
        "seed": seed,
        "accuracy": metrics.summary()["continual/average_accuracy"],
        "forgetting": metrics.summary()["continual/forgetting"],
        "samples_replayed": replayed,
        "seconds": seconds,
        "selected": finetuning[0].selected if finetuning else [],
        "steps": trainer.global_step,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, from 0 on")
    parser.add_argument("--methods", nargs="*", help="names of methods; all by default")
    parser.add_argument("--stream", choices=list(TASKS), default="class")
    parser.add_argument("--buffer", type=int, default=100, help="capacity of the memory")
    parser.add_argument("--out", type=Path, help="file for all numbers")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    plain = 0.0
    print(f"{'method':32s} accuracy (min..max)    forgetting  samples replayed  CPU s beyond sgd")
    for name in options.methods or list(methods(1, 0)):
        own = [run(name, seed, options.buffer, options.stream) for seed in range(options.seeds)]
        results += own
        accuracy = [result["accuracy"] for result in own]
        seconds = statistics.mean(result["seconds"] for result in own)
        plain = seconds if name == "sgd" else plain
        lost = statistics.mean(result["forgetting"] for result in own)
        print(
            f"{name:32s} {statistics.mean(accuracy):.3f} ({min(accuracy):.3f}..{max(accuracy):.3f})   {lost:.3f}"
            f"       {own[0]['samples_replayed']:6d}            {seconds - plain:5.2f}",
            flush=True,
        )
        if options.out is not None:
            options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
