"""Instructions in front of six string tasks on the same inputs: with, without, and one model a task.

    python benchmarks/in_boxbart.py                 # both seeds, all variants; JSON lines, then a Markdown table
    python benchmarks/in_boxbart.py few_shot        # a held-out task from 32 strings, on top of the trained mixture

Every model is a causal transformer of two layers (width 96, 4 heads) trained by AdamW 1e-3 with batches of 64. The
mixtures take 1500 steps, each of the six single-task models 250, the same total. The score is the share of exact
answers on 200 strings a task, written greedily.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
import warnings
from collections.abc import Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import logging

import lightning.pytorch as pl
import torch

from lightning_mtl import MultiTaskModule
from lightning_mtl.data.text import STRING_TASKS, StringTasksDataModule
from lightning_mtl.nn import CausalLanguageModel
from lightning_mtl.tasks import TextToText

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def model(tasks: Sequence[str], vocab_size: int, lr: float = 1e-3) -> MultiTaskModule:
    """Return an untrained model of these tasks."""
    return MultiTaskModule(
        CausalLanguageModel(vocab_size, dim=96, depth=2, num_heads=4, max_length=64, eos_token_id=2),
        {task: TextToText(max_new_tokens=8, scores=["exact_match"]) for task in tasks},
        optimizer=functools.partial(torch.optim.AdamW, lr=lr),
    )


def train(module: MultiTaskModule, data: StringTasksDataModule, steps: int) -> dict[str, float]:
    """Train and return the share of exact answers of every task."""
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    (found,) = trainer.test(module, data, verbose=False)
    return {task: round(found[f"test/{task}/exact_match"], 4) for task in data.tasks}


def run(variant: str, seed: int, steps: int, tasks: Sequence[str] = STRING_TASKS) -> dict[str, Any]:
    """Train one variant; return its scores and time."""
    begin = time.perf_counter()
    scores: dict[str, float] = {}
    if variant == "single":
        for task in tasks:
            pl.seed_everything(seed, verbose=False)
            data = StringTasksDataModule(tasks=[task], mode="none", seed=seed)
            scores |= train(model([task], len(data.tokenizer)), data, steps // len(tasks))
    else:
        pl.seed_everything(seed, verbose=False)
        data = StringTasksDataModule(tasks=tasks, mode={"instruction": "prompt", "none": "none"}[variant], seed=seed)
        scores = train(model(tasks, len(data.tokenizer)), data, steps)
    mean = round(statistics.mean(scores.values()), 4)
    seconds = round(time.perf_counter() - begin, 1)
    return {"variant": variant, "seed": seed, "exact_match": mean, "tasks": scores, "seconds": seconds}


def few_shot(held_out: str, seed: int, steps: int, more: int, shots: int) -> list[dict[str, Any]]:
    """Train the mixture without a task, then go on with a few strings of it; the same from random weights."""
    pl.seed_everything(seed, verbose=False)
    others = [task for task in STRING_TASKS if task != held_out]
    data = StringTasksDataModule(tasks=others, seed=seed)
    trained = model(others, len(data.tokenizer))
    train(trained, data, steps)
    found = []
    for start in ("mixture", "random"):
        pl.seed_everything(seed, verbose=False)
        target = StringTasksDataModule(tasks=[held_out], few_shot=shots, batch_size=shots, seed=seed)
        module = model([held_out], len(data.tokenizer), lr=3e-4 if start == "mixture" else 1e-3)
        if start == "mixture":
            module.encoder.load_state_dict(trained.encoder.state_dict())
        scores = train(module, target, more)
        found.append({"held_out": held_out, "seed": seed, "start": start, "exact_match": scores[held_out]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", choices=["mixture", "few_shot"], default="mixture")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--variants", nargs="+", default=["instruction", "none", "single"])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--held-out", nargs="+", default=["reverse", "rotate"])
    parser.add_argument("--shots", type=int, default=32)
    parser.add_argument("--more-steps", type=int, default=200)
    args = parser.parse_args()
    if args.study == "few_shot":
        for seed in args.seeds:
            for task in args.held_out:
                for line in few_shot(task, seed, args.steps, args.more_steps, args.shots):
                    print(json.dumps(line), flush=True)
        return
    results: dict[str, list[float]] = {variant: [] for variant in args.variants}
    for variant in args.variants:
        for seed in args.seeds:
            line = run(variant, seed, args.steps)
            results[variant].append(line["exact_match"])
            print(json.dumps(line), flush=True)
    print("| training | " + " | ".join(f"seed {seed}" for seed in args.seeds) + " |")
    print("| --- " * (1 + len(args.seeds)) + "|")
    for variant, values in results.items():
        print(f"| {variant} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    main()
