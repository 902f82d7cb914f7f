"""Balancers on Multi-MNIST: test accuracy of both digits, and the change against single-task networks.

Every run trains the shared LeNet of Sener and Koltun with one hidden layer of 50 units a task, Adam 1e-3, on
a reduced number of pairs, and is evaluated once on pairs of the test digits after the last epoch; no run is
chosen by its validation. The initial weights, pairs and their order depend on the seed alone. Every finished run is a
line in a file, so that the command goes on where it was stopped.

Usage: python benchmarks/multi_mnist.py --data FOLDER_OF_MNIST [--seeds 0 1 2] [--runs NAME ...] [--results FILE]
       python benchmarks/multi_mnist.py --table [--results FILE]
"""

from __future__ import annotations

import argparse
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

from lightning_mtl import MultiTaskModule
from lightning_mtl import balancers as room
from lightning_mtl.data import MultiMNISTDataModule
from lightning_mtl.functional.delta_m import delta_m
from lightning_mtl.nn import FeatureSpec, LeNetEncoder, MLPHead
from lightning_mtl.tasks import MulticlassClassification

TASKS = ("left", "right")

RUNS: dict[str, Callable[[], room.Balancer]] = {
    "equal": room.EqualWeighting,
    "UW": room.UncertaintyWeighting,
    "DWA": room.DWA,
    "FAMO": room.FAMO,
    "GradNorm": room.GradNorm,
    "MGDA": room.MGDA,
    "MGDA, features": lambda: room.MGDA(at="features"),
    "PCGrad": room.PCGrad,
    "GradVac": room.GradVac,
    "GradDrop": room.GradDrop,
    "CAGrad": room.CAGrad,
    "IMTL-G": room.IMTLG,
    "IMTL": room.IMTL,
    "Nash-MTL": room.NashMTL,
    "FairGrad": room.FairGrad,
    "Aligned-MTL": room.AlignedMTL,
    "UPGrad": room.UPGrad,
    "DualProj": room.DualProj,
    "ConFIG": room.ConFIG,
    "SDMGrad": room.SDMGrad,
    "MoCo": room.MoCo,
    "DB-MTL": room.DBMTL,
    "ExcessMTL": room.ExcessMTL,
}


def head(spec: FeatureSpec, out_channels: int) -> MLPHead:
    """Return the head of one digit."""
    return MLPHead(spec, out_channels, hidden=(50,))


def train(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train and test one network; the name of a task trains it alone."""
    trained = (name,) if name in TASKS else TASKS
    data = MultiMNISTDataModule(
        options.data, options.pairs, 128, options.test_pairs, tasks=trained, batch_size=options.batch_size, seed=seed
    )
    tasks = {task: MulticlassClassification(num_classes=10, head=head) for task in trained}
    pl.seed_everything(seed, verbose=False)
    module = MultiTaskModule(LeNetEncoder(), tasks, None if name in TASKS else RUNS[name]())
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=options.epochs,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.process_time()
    trainer.fit(module, data)
    seconds = time.process_time() - start
    found = trainer.test(module, data, verbose=False)[0]
    accuracy = {task: 100 * found[f"test/{task}/accuracy"] for task in trained}
    return {"run": name, "seed": seed, "accuracy": accuracy, "cpu_seconds": seconds, "setting": setting(options)}


def setting(options: argparse.Namespace) -> str:
    """Return what all runs of one table have in common."""
    return (
        f"{options.pairs} pairs, {options.epochs} epochs, batch {options.batch_size}, {options.test_pairs} test pairs"
    )


def read(path: Path, wanted: str) -> list[dict[str, Any]]:
    """Return the finished runs of a setting."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [run for run in map(json.loads, lines) if run["setting"] == wanted]


def spread(values: list[float], digits: int = 2) -> str:
    """Return mean and sample standard deviation."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{deviation}"


def table(runs: list[dict[str, Any]]) -> str:
    """Return the Markdown table of these runs.

    The change of a run is against the mean of the single-task runs over all seeds.
    """
    single = {task: [run["accuracy"][task] for run in runs if run["run"] == task] for task in TASKS}
    baselines = {task: {"accuracy": statistics.fmean(values)} for task, values in single.items() if values}
    higher = {task: {"accuracy": True} for task in TASKS}
    lines = [
        "| method | left | right | mean | Δm, % | CPU s | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    if len(baselines) == len(TASKS):
        means = [(a + b) / 2 for a, b in zip(single["left"], single["right"], strict=False)]
        cost = statistics.fmean(
            [sum(run["cpu_seconds"] for run in runs if run["run"] == task) / len(single[task]) for task in TASKS]
        )
        lines.append(
            f"| single task | {spread(single['left'])} | {spread(single['right'])} | {spread(means)} | 0 | "
            f"2 x {cost:.0f} | {len(means)} |"
        )
    for name in RUNS:
        same = [run for run in runs if run["run"] == name]
        if not same:
            continue
        columns = [[run["accuracy"][task] for run in same] for task in TASKS]
        means = [statistics.fmean(run["accuracy"].values()) for run in same]
        changes = [delta_m({t: {"accuracy": v} for t, v in run["accuracy"].items()}, baselines, higher) for run in same]
        known = [change for change in changes if change is not None]
        cells = [spread(values) for values in (*columns, means)] + [spread(known) if known else "-"]
        seconds = statistics.fmean([run["cpu_seconds"] for run in same])
        lines.append(f"| {name} | {' | '.join(cells)} | {seconds:.0f} | {len(same)} |")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the four MNIST files; default: $LIGHTNING_MTL_DATA/mnist")
    parser.add_argument("--runs", nargs="+", default=[*TASKS, *RUNS], choices=[*TASKS, *RUNS], metavar="NAME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pairs", type=int, default=4000, help="training pairs")
    parser.add_argument("--test-pairs", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--results", type=Path, default=Path("runs/multi_mnist.jsonl"))
    parser.add_argument("--table", action="store_true", help="only print the table of the finished runs")
    options = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    finished = {(run["run"], run["seed"]) for run in read(options.results, setting(options))}
    for seed in [] if options.table else options.seeds:
        for name in options.runs:
            if (name, seed) in finished:
                continue
            result = train(name, seed, options)
            with options.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            print(f"{name}, seed {seed}: {result['accuracy']}, {result['cpu_seconds']:.1f} s", flush=True)
    print(f"{setting(options)}, Adam 1e-3, seeds {options.seeds}\n")
    print(table(read(options.results, setting(options))))


if __name__ == "__main__":
    main()
