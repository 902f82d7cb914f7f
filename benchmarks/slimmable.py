"""Slimmable against normal training on two-glyph images: accuracy at ten configurations of the widths.

Encoder 256 -> 128 -> 128, decoders 128 -> 48 -> 10, widths 0.25, 0.5, 0.75 and 1; 3000 training images with right
labels and pixel noise 0.3, 2000 test images, Adam 2e-3, batch 100, 500 steps. A normally trained network is sliced
afterwards; the slimmable one is trained by the sandwich rule with one random configuration a step, with and without
distillation. Writes one JSON line a run, then a Markdown table and the checks. ``--sweep`` adds the hypervolume of the
accuracies on the validation images that five preferences reach with 0.4, 0.6 and 0.8 of the full network's operations,
above an accuracy of 0.1 in both tasks, which is chance.

Usage: python benchmarks/slimmable.py [--seeds 0 1 2] [--runs normal sandwich slice gram logits] [--steps 500] [--sweep]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from typing import Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from lightning_mtl import MultiTaskModule
from lightning_mtl.controllable import ControllableModule, WidthConfig, controllability, search_widths
from lightning_mtl.data import TwoGlyphDataModule
from lightning_mtl.nn import SlimmableMLP, SlimmableMLPHead
from lightning_mtl.tasks import MulticlassClassification

Distillation = Literal["slice", "gram", "logits"]

CONFIGS = [
    (1, 1, 1),
    (0.75, 1, 1),
    (0.5, 1, 1),
    (0.25, 1, 1),
    (1, 1, 0.25),
    (1, 0.25, 1),
    (0.5, 0.25, 0.25),
    (0.5, 1, 0.25),
    (0.5, 0.25, 1),
    (0.25, 0.25, 0.25),
]
PREFERENCES = ((1.0, 0.0), (0.75, 0.25), (0.5, 0.5), (0.25, 0.75), (0.0, 1.0))
DISTILLATIONS: dict[str, tuple[Distillation | None, float]] = {
    "normal": (None, 0.0),
    "sandwich": (None, 0.0),
    "slice": ("slice", 0.2),
    "gram": ("gram", 1.0),
    "logits": ("logits", 1.0),
}


def make(run: str, seed: int, steps: int) -> ControllableModule:
    """Return an untrained network."""
    torch.manual_seed(seed)
    head = functools.partial(SlimmableMLPHead, hidden=[48])
    tasks = {name: MulticlassClassification(num_classes=10, head=head) for name in TwoGlyphDataModule.tasks}
    mode, weight = DISTILLATIONS[run]
    return ControllableModule(
        SlimmableMLP(256, [128, 128]),
        tasks,
        distillation=mode,
        distillation_weight=weight,
        distillation_ramp=steps // 2,
        seed=seed,
    )


def train(run: str, seed: int, steps: int, sweep: bool) -> dict[str, object]:
    """Return the test accuracy of both tasks at every configuration, the seconds, and two searches."""
    data = TwoGlyphDataModule(3000, num_val=500, noise=0.3, label_noise=0.0, seed=seed)
    data.setup()
    module = make(run, seed, steps)
    step = functools.partial(MultiTaskModule.training_step, module) if run == "normal" else module.training_step
    optimizer = torch.optim.Adam(module.parameters(), lr=2e-3)
    loader = data.train_dataloader()
    start, done, epoch = time.perf_counter(), 0, 0
    while done < steps:
        loader.sampler.set_epoch(epoch)
        epoch += 1
        for batch in loader:
            if done == steps:
                break
            optimizer.zero_grad()
            step(batch).backward()
            optimizer.step()
            done += 1
    seconds = time.perf_counter() - start
    table, val = data.datasets["test"], data.datasets["val"]
    accuracies = []
    for encoder, left, right in CONFIGS:
        found = module.evaluate(config(encoder, left, right), [(table.inputs, table.targets)])
        accuracies.append([found[task]["accuracy"] for task in data.tasks])
    budget = 0.5 * sum(module.flops(module.full, (1, 16, 16)).values())
    searches = []
    for preference in ([1.0, 0.0], [0.0, 1.0]) if run == "sandwich" else ():
        wanted = dict(zip(data.tasks, preference, strict=True))
        result = search_widths(module, wanted, budget, [(val.inputs, val.targets)], (1, 16, 16))
        tested = module.evaluate(result.config, [(table.inputs, table.targets)])
        searches.append(
            {
                "preference": preference,
                "encoder": result.config.encoder,
                "decoders": list(result.config.decoders.values()),
                "flops": result.flops,
                "budget": budget,
                "accuracy": [tested[task]["accuracy"] for task in data.tasks],
            }
        )
    result = {"run": run, "seed": seed, "seconds": seconds, "accuracy": accuracies, "searches": searches}
    if sweep:
        preferences = [dict(zip(data.tasks, pair, strict=True)) for pair in PREFERENCES]
        found = controllability(
            module,
            preferences,
            [share * 2 * budget for share in (0.4, 0.6, 0.8)],
            [(val.inputs, val.targets)],
            (1, 16, 16),
            reference=dict.fromkeys(data.tasks, 0.1),
        )
        result |= {"hypervolumes": list(found.hypervolumes.values()), "controllability": found.mean}
    return result


def config(encoder: float, left: float, right: float) -> WidthConfig:
    """Return a configuration of the two tasks."""
    return WidthConfig(encoder, {"left": left, "right": right})


def mean(rows: list[list[list[float]]]) -> list[list[float]]:
    """Return the mean over seeds of every accuracy."""
    return [[sum(values) / len(values) for values in zip(*pair, strict=True)] for pair in zip(*rows, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=list(DISTILLATIONS), default=list(DISTILLATIONS))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--sweep", action="store_true", help="hypervolume of a sweep of preferences")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, list[list[list[float]]]] = {}
    for run in options.runs:
        for seed in options.seeds:
            result = train(run, seed, options.steps, options.sweep)
            print(json.dumps(result), flush=True)
            found.setdefault(run, []).append(result["accuracy"])  # type: ignore[arg-type]
    means = {run: mean(rows) for run, rows in found.items()}
    print("\n| encoder; left, right | " + " | ".join(means) + " |")
    print("| --- " * (len(means) + 1) + "|")
    for i, (encoder, left, right) in enumerate(CONFIGS):
        cells = [f"{values[i][0]:.3f} / {values[i][1]:.3f}" for values in means.values()]
        print(f"| {encoder}; {left}, {right} | " + " | ".join(cells) + " |")
    grand = [sum(sum(pair) for pair in values) / (2 * len(CONFIGS)) for values in means.values()]
    print("| mean of all | " + " | ".join(f"{value:.3f}" for value in grand) + " |")
    if {"normal", "sandwich"} <= set(means):
        normal, slim = means["normal"], means["sandwich"]
        levels = [sum(slim[i]) for i in (3, 2, 1, 0)]
        swing = (slim[4][0] - slim[4][1]) - (slim[5][0] - slim[5][1])
        gap = max(before - after for before, after in zip(normal[0], slim[0], strict=True))
        gain = min(after - before for before, after in zip(normal[3], slim[3], strict=True))
        print(f"\nfull network below the normal one by {gap:.3f} (at most 0.03): {gap <= 0.03}")
        print(f"encoder 0.25 above the sliced one by {gain:.3f} (at least 0.30): {gain >= 0.3}")
        print(f"accuracy does not fall with the encoder's width: {levels == sorted(levels)}")
        print(f"swing between the tasks {swing:.3f} (at least 0.04): {swing >= 0.04}")


if __name__ == "__main__":
    main()
