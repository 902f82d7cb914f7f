"""Intervals of timesteps as tasks on a ring of eight Gaussians: which clusters each objective trains well.

    python benchmarks/ant_diffusion.py train --seeds 0 1 --out runs/ant_diffusion.jsonl   # one JSON line a training
    python benchmarks/ant_diffusion.py table runs/ant_diffusion.jsonl                      # Markdown tables
    python benchmarks/ant_diffusion.py figure runs/ant_diffusion.jsonl --out ant_diffusion.png

100 timesteps, linear variances 1e-4 to 0.06, a network of two hidden layers of 48 units, AdamW 1e-3, batches of 250.
Five clusters by log-SNR. Losses are those of the final weights on 200 000 points, with the same timesteps and noise for
every run. Objectives: uniform timesteps; stratified with equal or length factors; uncertainty weighting, PCGrad and
Nash-MTL over the clusters; five networks that see one cluster only. A run of 4000 steps with uniform timesteps gives
the affinity.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import lightning.pytorch as pl
import torch
from torch import Tensor

from lightning_mtl.balancers import Balancer, NashMTL, PCGrad, UncertaintyWeighting
from lightning_mtl.callbacks import TimestepAffinity
from lightning_mtl.data import GaussianRingDataModule
from lightning_mtl.diffusion import DiffusionTaskModule
from lightning_mtl.functional import interval_clustering
from lightning_mtl.nn import MLPDenoiser, NoiseSchedule

TIMESTEPS = 100
CLUSTERS = interval_clustering(NoiseSchedule(TIMESTEPS, beta_end=0.06).log_snr, k=5)
NAMES = [f"t[{first}-{last}]" for first, last in CLUSTERS]
WHOLE = [(0, TIMESTEPS - 1)]
BALANCERS: dict[str, type[Balancer]] = {"ANT-UW": UncertaintyWeighting, "ANT-PCGrad": PCGrad, "ANT-Nash": NashMTL}
SHARED = ["uniform t", "stratified, equal", "stratified, length", *BALANCERS]
DEDICATED = [f"only {name}" for name in NAMES]
RUNS = [*SHARED, *DEDICATED, "affinity"]


def make_module(run: str) -> DiffusionTaskModule:
    """Build the module of a run."""
    balancer = None
    if run == "ANT-Nash":
        balancer = NashMTL(max_norm=1.0, every_n_steps=25)
    elif run in BALANCERS:
        balancer = BALANCERS[run]()
    clusters = {"uniform t": WHOLE, "affinity": WHOLE}.get(run, CLUSTERS)
    if run in DEDICATED:
        clusters = [CLUSTERS[DEDICATED.index(run)]]
    return DiffusionTaskModule(
        MLPDenoiser(num_steps=TIMESTEPS),
        NoiseSchedule(TIMESTEPS, beta_end=0.06),
        clusters=clusters,
        balancer=balancer,
        factors="length" if run == "stratified, length" else "equal",
        optimizer=functools.partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.0),
        ema_decay=None,
    )


def make_trainer(**options: Any) -> pl.Trainer:
    """Return a silent Trainer."""
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=options.pop("limit_val_batches", 0),
        **options,
    )


def cluster_losses(module: DiffusionTaskModule, points: int) -> list[float]:
    """Return the loss of the network on every one of the five clusters."""
    judge = DiffusionTaskModule(module.denoiser, module.schedule, clusters=CLUSTERS, ema_decay=None)
    data = GaussianRingDataModule(num_train=1, num_val=points, batch_size=min(points, 50_000), seed=1)
    (found,) = make_trainer(limit_val_batches=1.0).validate(judge, data, verbose=False)
    return [found[f"val/{name}/loss"] for name in NAMES]


def sliced_wasserstein(first: Tensor, second: Tensor, directions: int = 200) -> float:
    """Return the mean distance of sorted projections on random directions."""
    angle = torch.linspace(0, torch.pi, directions + 1)[:-1]
    lines = torch.stack([angle.cos(), angle.sin()])
    return float(((first @ lines).sort(0).values - (second @ lines).sort(0).values).abs().mean())


def train(run: str, seed: int, steps: int, points: int) -> dict[str, Any]:
    """Train one run and return its line."""
    pl.seed_everything(seed, verbose=False)
    steps = steps * 8 // 5 if run == "affinity" else steps
    module, data = make_module(run), GaussianRingDataModule(seed=seed)
    watcher = TimestepAffinity(every_n_steps=max(steps // 4, 1), spacing=5, num_samples=20_000)
    start, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:  # for the watcher's own picture
        watchers = [watcher] if run == "affinity" else []
        make_trainer(max_steps=steps, callbacks=watchers, default_root_dir=folder).fit(module, data)
    line: dict[str, Any] = {
        "run": run,
        "seed": seed,
        "steps": steps,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
    }
    if run == "affinity":
        line |= {"affinity": watcher.affinity.tolist(), "by_gap": watcher.by_gap(), "clusters": watcher.clusters(5)}
        return line
    line["losses"] = cluster_losses(module, points)
    if run in SHARED:
        data.setup("test")
        real = data.datasets["test"].inputs[:2000]
        line["sliced_wasserstein"] = sliced_wasserstein(module.sample(len(real)), real)
    if run == "ANT-UW":
        line["weights"] = {name: float(value) for name, value in module.balancer.weights.items()}
    return line


def read(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(lines: list[dict[str, Any]]) -> None:
    """Print the losses, the affinity by distance, and the thresholds."""
    print(f"| objective | seed | {' | '.join(NAMES)} | sliced Wasserstein | CPU s |")
    print("| --- " * (len(NAMES) + 4) + "|")
    order = {run: index for index, run in enumerate(RUNS)}
    seeds = sorted({line["seed"] for line in lines})
    losses = {(line["run"], line["seed"]): line["losses"] for line in lines if "losses" in line}
    for line in sorted(lines, key=lambda line: (order[line["run"]], line["seed"])):
        if line["run"] in SHARED:
            cells = [f"{loss:.3f}" for loss in line["losses"]]
            rest = f"{line['sliced_wasserstein']:.3f} | {line['cpu_seconds']:.0f}"
            print(f"| {line['run']} | {line['seed']} | {' | '.join(cells)} | {rest} |")
    for seed in seeds:
        found = [losses.get((run, seed)) for run in DEDICATED]
        cells = ["-" if values is None else f"{values[index]:.3f}" for index, values in enumerate(found)]
        print(f"| one network a cluster | {seed} | {' | '.join(cells)} | - | - |")
    for line in lines:
        if line["run"] == "affinity":
            gaps = {int(gap): value for gap, value in line["by_gap"].items()}
            shown = " / ".join(f"{gaps[gap]:.2f}" for gap in (5, 10, 20, 40, 60, 80, 95))
            far = statistics.fmean(value for gap, value in gaps.items() if 60 <= gap < 95)
            print(
                f"\nseed {line['seed']}: cosine at 5 / 10 / 20 / 40 / 60 / 80 / 95: {shown}; mean of 60 to 90 {far:.2f}"
            )
            print(f"clusters by affinity: {line['clusters']}")


def figure(lines: list[dict[str, Any]], out: Path) -> None:
    """Draw the affinity of the first seed and the losses of all."""
    from matplotlib.figure import Figure

    canvas = Figure(figsize=(11.5, 4.2), layout="constrained")
    left, right = canvas.subplots(1, 2, width_ratios=(1, 1.5))
    matrix = min((line["seed"], line["affinity"]) for line in lines if line["run"] == "affinity")[1]
    image = left.imshow(matrix, cmap="RdBu", vmin=-1, vmax=1, origin="lower", extent=(0, TIMESTEPS, 0, TIMESTEPS))
    for first, _ in CLUSTERS[1:]:
        left.axhline(first, color="black", linewidth=0.6)
        left.axvline(first, color="black", linewidth=0.6)
    left.set(xlabel="timestep", ylabel="timestep", title="gradient cosine, lines between clusters")
    canvas.colorbar(image, ax=left, shrink=0.8)
    shown = [*SHARED, "one network a cluster"]
    width = 0.8 / len(shown)
    for index, run in enumerate(shown):
        for cluster in range(len(NAMES)):
            name = DEDICATED[cluster] if run == "one network a cluster" else run
            values = [line["losses"][cluster] for line in lines if line["run"] == name]
            if not values:
                continue
            place = cluster + (index - len(shown) / 2) * width
            label = run if cluster == 0 else None
            right.bar(place, statistics.fmean(values), width, color=f"C{index}", align="edge", label=label)
            right.plot([place + width / 2] * len(values), values, "k.", markersize=3)
    right.set_xticks(range(len(NAMES)), NAMES)
    right.set(ylabel="loss of the predicted noise", title="loss by cluster, mean and single seeds")
    right.legend(fontsize=8)
    canvas.savefig(out, dpi=120)


def main() -> None:
    """Run the chosen part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    trains = parts.add_parser("train")
    trains.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    trains.add_argument("--runs", nargs="+", default=RUNS, choices=RUNS)
    trains.add_argument("--steps", type=int, default=2500)
    trains.add_argument("--points", type=int, default=200_000)
    trains.add_argument("--out", type=Path, required=True)
    for name in ("table", "figure"):
        shows = parts.add_parser(name)
        shows.add_argument("lines", type=Path)
        if name == "figure":
            shows.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.part == "train":
        torch.set_num_threads(1)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        for seed in options.seeds:
            for run in options.runs:
                line = train(run, seed, options.steps, options.points)
                with options.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")
                print({key: value for key, value in line.items() if key != "affinity"}, flush=True)
    elif options.part == "table":
        table(read(options.lines))
    else:
        figure(read(options.lines), options.out)


if __name__ == "__main__":
    main()
