"""Compositional generalisation on images with three factors: what must the training pool hold of a new combination?

27 data sets of grey images, 16 x 16, by modality, area and task. A target is held out; the pool holds only data sets
that share at most one factor with it, so it has to be recombined. Network: two convolutions (16 and 32 channels), 64
features scaled by 1 plus an embedding of the question, two outputs; 400 Adam steps of 64 images at 2e-3; accuracy on
400 images of the target, chance 0.5. Every run is one line of JSON; a Markdown table with paired tests and the checks
follow.

The pools have 150 images of each data set, hence different sizes; ``--equal`` cuts them to the smallest.
``--few-shot 20`` adds conditions with as many images of the target.

Usage: python benchmarks/compositional.py [--seeds 0 1] [--targets blurred-vertical-half ...] [--equal] [--few-shot 20]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F

from lightning_mtl import MultiTaskModule
from lightning_mtl.data import FactorImagesDataModule
from lightning_mtl.nn import LeNetEncoder, TaskConditionedEncoder
from lightning_mtl.scaling import compare_conditions, compositional_report
from lightning_mtl.tasks import MulticlassClassification

TARGETS = ["blurred-vertical-half", "inverted-diagonal-count", "inverted-horizontal-shape"]
CONDITIONS = ["all", "without:modality", "without:area", "without:task", "unrelated"]
CONTROLS = ["random:task", "none"]
EACH, STEPS, BATCH, LR = 150, 400, 64, 2e-3


def train(pool: Mapping[str, int], seed: int) -> tuple[MultiTaskModule, FactorImagesDataModule]:
    """Return a network trained on some images of some data sets, and the module that has the images."""
    data = FactorImagesDataModule(num_train_each=EACH, seed=seed)
    torch.manual_seed(seed)
    encoder = TaskConditionedEncoder(LeNetEncoder(1, 16, (16, 32), 3, 64, padding=1), num_tasks=3)
    module = MultiTaskModule(encoder, {"answer": MulticlassClassification(2)})
    if not pool:
        return module, data
    table = data.images(pool)
    optimizer = torch.optim.Adam(module.parameters(), lr=LR)
    for _ in range(STEPS):
        inputs, targets = table.__getitems__(torch.randint(len(table), (BATCH,)).tolist())
        optimizer.zero_grad()
        F.cross_entropy(module(inputs)["answer"], targets["answer"]).backward()
        optimizer.step()
    return module, data


def accuracy(model: tuple[MultiTaskModule, FactorImagesDataModule], target: str) -> float:
    """Return the accuracy on the test images of a target."""
    module, data = model
    table = data.images({target: data.num_eval_each}, "test")
    with torch.no_grad():
        chosen = module.eval()(table.inputs)["answer"].argmax(1)
    return float((chosen == table.targets["answer"]).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--equal", action="store_true", help="the same number of images in all pools of a target")
    parser.add_argument("--few-shot", type=int, default=0, help="images of the target in further conditions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    conditions = CONDITIONS + CONTROLS
    if options.few_shot:
        conditions = [*conditions, "all+target", "unrelated+target", "none+target"]
    registry = FactorImagesDataModule(num_train_each=1, num_eval_each=1).registry
    last = time.perf_counter()

    def show(row: dict[str, Any]) -> None:
        nonlocal last
        now = time.perf_counter()
        print(json.dumps({**row, "equal": options.equal, "seconds": round(now - last, 1)}), flush=True)
        last = now

    rows = compositional_report(
        train,
        accuracy,
        registry,
        options.targets,
        conditions,
        options.seeds,
        sizes=dict.fromkeys(registry, EACH),
        allow_shared=(1,),
        equal_sizes=options.equal,
        few_shot=options.few_shot,
        on_run=show,
    )
    print("\n| pool (data sets, images) | " + " | ".join(options.targets) + " | mean | gain | p | p of targets |")
    print("| --- " * (len(options.targets) + 5) + "|")
    means = {}
    for summary in compare_conditions(rows):
        condition = summary["condition"]
        own = [row for row in rows if row["condition"] == condition]
        cells = []
        for target in options.targets:
            values = [row["accuracy"] for row in own if row["target"] == target]
            cells.append(f"{sum(values) / len(values):.3f}")
        means[condition] = summary["accuracy"]
        size = f"{condition} ({own[0]['datasets']}, {own[0]['items']})"
        numbers = (
            f"{summary['accuracy']:.3f} | {summary['gain']:+.3f} | {summary['p']:.3f} | {summary['p_targets']:.3f}"
        )
        print(f"| {size} | " + " | ".join(cells) + f" | {numbers} |")
    task, modality = (means["all"] - means[f"without:{factor}"] for factor in ("task", "modality"))
    print(f"\nall above without:task by {task:.3f} (more than 0.2): {task > 0.2}")
    print(f"all above without:modality by {modality:.3f} (more than 0.1): {modality > 0.1}")
    print(f"unrelated {means['unrelated']:.3f} (less than 0.6): {means['unrelated'] < 0.6}")


if __name__ == "__main__":
    main()
