"""Losses of MFTCoder on a frequent task with long answers and a rare one with short answers.

A one-block causal language model learns to reverse six digits (186 trained tokens a batch) and to find the largest
(one trained token a batch) under the four averages of MFTCoder, its focal loss, FAMO on training and on validation
losses, and CoBa. 300 steps of 32 sequences; accuracy on 500 fresh sequences of each task.

    python benchmarks/mftcoder.py --losses case1 case3 case2 famo --seeds 0 1 2 --out runs/mftcoder.jsonl

writes one JSON line a run, and prints a Markdown table at the end.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import FAMO, Balancer, CoBa, EqualWeighting, LabelProportionalWeighting
from lightning_mtl.callbacks import ValidationLosses
from lightning_mtl.data import DigitTasksDataModule
from lightning_mtl.nn import CausalLanguageModel
from lightning_mtl.tasks import LanguageModeling, Task

LOSSES = ("case1", "case2", "case3", "case4", "focal", "famo", "famo-val", "coba")


def parts(loss: str) -> tuple[dict[str, Any], Balancer]:
    """Return the options of the tasks and the balancer that make a loss."""
    samples = {"average": "samples"}
    if loss in ("case1", "case2"):
        return (samples if loss == "case2" else {}), LabelProportionalWeighting()
    if loss == "focal":
        return {**samples, "gamma": 2.0}, EqualWeighting()
    if loss == "famo":
        return {}, FAMO()
    if loss == "famo-val":
        return {}, FAMO(on="val", update_interval=5)
    if loss == "coba":
        return {}, CoBa(warmup_steps=50, history=40, update_interval=5)
    return (samples if loss == "case4" else {}), EqualWeighting(normalize=True)


def pytorch_defaults(model: CausalLanguageModel) -> None:
    """Draw weights as PyTorch's layers do by default, tokens of variance 1, and small positions as in GPT-2."""
    for layer in model.modules():
        if isinstance(layer, nn.Embedding | nn.Linear):
            layer.reset_parameters()
    if model.decoder.positions is not None:
        nn.init.normal_(model.decoder.positions.weight, std=0.02)


def run(loss: str, seed: int, steps: int, interval: int, init: str) -> dict[str, Any]:
    """Train once; return the accuracies on the test sequences and the time."""
    pl.seed_everything(seed, verbose=False)
    options, balancer = parts(loss)
    if balancer.needs_validation_losses:
        balancer.update_interval = interval
    model = CausalLanguageModel(14, dim=32, depth=1, num_heads=4, mlp_ratio=3.0, positions="learned", max_length=16)
    if init == "pytorch":
        pytorch_defaults(model)
    tasks: dict[str, Task] = {name: LanguageModeling(**options) for name in DigitTasksDataModule.tasks}
    module = MultiTaskModule(model, tasks, balancer, optimizer=functools.partial(torch.optim.Adam, lr=2e-3))
    data = DigitTasksDataModule(num_train=32 * steps, num_val=64, seed=seed)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        callbacks=[ValidationLosses()] if balancer.needs_validation_losses else [],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - start
    trainer.test(module, data, verbose=False)
    found = {name: float(value) for name, value in trainer.callback_metrics.items()}
    weights = {f"weight/{name}": round(float(weight), 4) for name, weight in balancer.weights.items()}
    return {
        "loss": loss,
        "seed": seed,
        "init": init,
        "steps": steps,
        "max": round(found["test/max/accuracy"], 4),
        "reverse": round(found["test/reverse/accuracy"], 4),
        "reverse_exact": round(found["test/reverse/exact_match"], 4),
        "seconds": round(seconds, 1),
        **weights,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Return the accuracies of all seeds as Markdown."""
    lines = ["| loss | max (rare, short) | reverse, token accuracy | seconds a run |", "|---|---|---|---|"]
    for loss in dict.fromkeys(row["loss"] for row in rows):
        own = [row for row in rows if row["loss"] == loss]
        cells = [" / ".join(f"{row[task]:.3f}" for row in own) for task in ("max", "reverse")]
        lines.append(f"| {loss} | {cells[0]} | {cells[1]} | {sum(row['seconds'] for row in own) / len(own):.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--losses", nargs="+", choices=LOSSES, default=["case1", "case3", "case2", "famo"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--interval", type=int, default=5, help="steps between two validation losses")
    parser.add_argument("--init", choices=("pytorch", "package"), default="pytorch", help="how weights are drawn")
    parser.add_argument("--out", type=Path, default=Path("mftcoder.jsonl"))
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in args.seeds:
        for loss in args.losses:
            rows.append(run(loss, seed, args.steps, args.interval, args.init))
            with args.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
            print(rows[-1], flush=True)
    print(table(rows))


if __name__ == "__main__":
    main()
