"""Flat regions on two-glyph images with noisy labels: accuracy on clean test images and share of conflicting steps.

A small network (256 and 128 hidden units, two linear heads, Adam 1e-3, batch 100, 30 epochs) on 1200 images of which
30 % of the labels are wrong, trained with and without task-based flat regions. With --clean: 600 images, right labels,
20 epochs, where the method does not pay.

Usage: python benchmarks/flat_regions.py [--seeds 0 1 2] [--runs NAME ...] [--clean] [--device cpu]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import MGDA, SAM, Balancer, FlatRegions, LinearScalarization, PCGrad
from lightning_mtl.data import TwoGlyphDataModule
from lightning_mtl.nn import MLPEncoder
from lightning_mtl.tasks import MulticlassClassification

RUNS: dict[str, Callable[[], Balancer]] = {
    "equal weights": LinearScalarization,
    "equal weights, flat 2": lambda: FlatRegions(LinearScalarization(), 2.0),
    "equal weights, flat 5": lambda: FlatRegions(LinearScalarization(), 5.0),
    "equal weights, flat 0.05, not adaptive": lambda: FlatRegions(LinearScalarization(), 0.05, adaptive=False),
    "SAM 0.05": SAM,
    "ASAM 0.5": lambda: SAM(rho=0.5, adaptive=True),
    "PCGrad": PCGrad,
    "PCGrad, flat 2": lambda: FlatRegions(PCGrad(), 2.0),
    "MGDA": MGDA,
    "MGDA, flat 5": lambda: FlatRegions(MGDA(), 5.0),
    "MGDA, flat 5, direct": lambda: FlatRegions(MGDA(), 5.0, aggregate="direct"),
}


def train(balancer: Balancer, seed: int, device: str, clean: bool) -> tuple[float, float, float]:
    """Return the mean test accuracy, the share of steps with conflict (NaN where unknown) and the seconds."""
    size, epochs, noise = (600, 20, 0.0) if clean else (1200, 30, 0.3)
    data = TwoGlyphDataModule(size, label_noise=noise, seed=seed)
    data.setup()
    torch.manual_seed(seed)
    tasks = {name: MulticlassClassification(num_classes=data.num_classes) for name in data.tasks}
    module = MultiTaskModule(MLPEncoder(256, [256, 128]), tasks, balancer).to(device)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    loader = data.train_dataloader()
    conflicts: list[float] = []
    start = time.perf_counter()
    for epoch in range(epochs):
        loader.sampler.set_epoch(epoch)
        for inputs, targets in loader:
            batch = inputs.to(device), {name: target.to(device) for name, target in targets.items()}
            optimizer.zero_grad()
            module.training_step(batch).backward()
            optimizer.step()
            share = getattr(balancer, "conflict_share", None)
            conflicts.append(float("nan") if share is None else float(share))
        balancer.end_epoch()
    seconds = time.perf_counter() - start
    module.eval()
    table = data.datasets["test"]
    with torch.no_grad():
        predictions = module(table.inputs.to(device))
    right = [(predictions[name].argmax(1).cpu() == target).float().mean() for name, target in table.targets.items()]
    return float(torch.stack(right).mean()), sum(conflicts) / len(conflicts), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    labels = "right" if options.clean else "30 % wrong"
    print(f"torch {torch.__version__}, {options.device}, seeds {options.seeds}, labels {labels}")
    for name in options.runs:
        found = [train(RUNS[name](), seed, options.device, options.clean) for seed in options.seeds]
        accuracy = " / ".join(f"{value:.3f}" for value, _, _ in found)
        conflict = " / ".join(f"{value:.2f}" for _, value, _ in found)
        seconds = " / ".join(f"{value:.0f}" for _, _, value in found)
        print(f"{name:40s} accuracy {accuracy}   conflict {conflict}   seconds {seconds}", flush=True)


if __name__ == "__main__":
    main()
