"""MT-AdamW beside AdamW when every step is of one task: unequal scales of the losses, unequal ratios of the draws.

Two-digit images (6000 for training, 2000 for test, pixel noise 0.2, no label noise), an MLP 256-256-128 with two linear
heads, 500 steps with batches of 64 of one task each, learning rate 1e-3, weight decay 0.01. The second task's loss is
multiplied by ``scale``; the tasks are drawn with the ratios s. A row is the test accuracy of both tasks, mean over the
seeds; below it the accuracy of the worse task for each seed.

    OMP_NUM_THREADS=1 python benchmarks/mt_adamw.py [--seeds 3] [--steps 500] [--out results.jsonl]
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.data import FixedRatios, TaskMixtureDataModule, TwoGlyphDataModule
from lightning_mtl.nn import MLPEncoder
from lightning_mtl.optim import MTAdamW
from lightning_mtl.tasks import MulticlassClassification

TASKS = ("left", "right")
SETTINGS = ((0.01, (0.5, 0.5)), (1.0, (0.9, 0.1)), (0.01, (0.9, 0.1)))
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "AdamW": torch.optim.AdamW,
    "normalisation only": functools.partial(MTAdamW, compensate=False),
    "MT-AdamW": MTAdamW,
}


class Encoder(nn.Sequential):
    """The MLP on flattened images."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), MLPEncoder(256, [256, 128]))
        self.feature_spec = self[1].feature_spec


def run(name: str, scale: float, ratios: tuple[float, float], seed: int, steps: int, images: Any) -> dict[str, Any]:
    """Train once and return the accuracies on the test images."""
    pl.seed_everything(seed, verbose=False)
    tasks = {task: MulticlassClassification(num_classes=10) for task in TASKS}
    tasks["right"].loss_weight = scale
    optimizer = functools.partial(OPTIMIZERS[name], lr=1e-3, weight_decay=0.01)
    module = MultiTaskModule(Encoder(), dict(tasks), optimizer=optimizer)
    data = TaskMixtureDataModule(
        dict.fromkeys(TASKS, images),
        batch_size=64,
        sampling=FixedRatios(dict(zip(TASKS, ratios, strict=True))),
        steps_per_epoch=steps,
        num_workers=0,
        seed=seed,
    )
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        limit_val_batches=0,
        enable_checkpointing=False,
        log_every_n_steps=steps,
        **quiet,
    )
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    (found,) = trainer.test(module, data, verbose=False)
    accuracy = [found[f"test/{task}/accuracy"] for task in TASKS]
    return {"optimizer": name, "scale": scale, "ratios": ratios, "seed": seed, "accuracy": accuracy, "seconds": seconds}


def table(rows: list[dict[str, Any]]) -> str:
    """Return the results as a Markdown table."""
    lines = ["| scale, s | " + " | ".join(OPTIMIZERS) + " |", "| --- |" + " --- |" * len(OPTIMIZERS)]
    for scale, ratios in SETTINGS:
        cells, worst = [], []
        for name in OPTIMIZERS:
            own = [r["accuracy"] for r in rows if (r["optimizer"], r["scale"], r["ratios"]) == (name, scale, ratios)]
            cells.append(", ".join(f"{statistics.mean(values):.3f}" for values in zip(*own, strict=True)))
            worst.append(" / ".join(f"{min(values):.3f}" for values in own))
        lines.append(f"| {scale:g}, {ratios} | " + " | ".join(cells) + " |")
        lines.append("| worse task, each seed | " + " | ".join(worst) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run all settings and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, help="file that takes one JSON line a run")
    options = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rows = []
    for seed in range(options.seeds):
        images = TwoGlyphDataModule(num_train=6000, num_val=10, num_test=2000, label_noise=0.0, seed=seed)
        for scale, ratios in SETTINGS:
            for name in OPTIMIZERS:
                rows.append(run(name, scale, ratios, seed, options.steps, images))
                line = json.dumps(rows[-1])
                print(line, flush=True)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(line + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
