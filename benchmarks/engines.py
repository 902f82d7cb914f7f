"""Time and memory of one training step with task gradients, relative to the plain step on the sum of the losses.

A step is forward, heads (one linear layer a task), losses, backward and SGD, with weights that are all one, so that
only the engines are measured. Times are CPU seconds of the process, taken in turns with the plain step (median of the
ratios); memory is the peak of the resident set over its size before the first step, one process for each entry, so the
matrix that a balancer keeps between steps counts.

Usage: python benchmarks/engines.py time --encoder mlp --tasks 2 3 8 40 [--rounds 30]
       python benchmarks/engines.py memory --encoder resnet18 --tasks 8
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.balancers.gradient_weighting import GradientWeighting

ENTRIES: dict[str, dict[str, Any]] = {
    "auto": {},
    "sequential": {"engine": "sequential"},
    "batched": {"engine": "batched"},
    "mixed": {"engine": "mixed"},
    "bfloat16": {"engine": "sequential", "store_dtype": "bfloat16"},
    "last": {"parameters": "last"},
    "features": {"at": "features"},
    "features, shared": {"at": "features"},  # the heads read the same tensor rather than an alias each
}


class Ones(GradientWeighting):
    """Weights one."""

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        return torch.ones_like(losses)


class Problem:
    """A shared encoder, a linear head of ten classes for every task, and SGD."""

    def __init__(self, name: str, tasks: int) -> None:
        torch.manual_seed(0)
        if name == "mlp":
            self.encoder: nn.Module = nn.Sequential(
                *[layer for _ in range(4) for layer in (nn.Linear(256, 256), nn.ReLU())]
            )
            self.inputs, width = torch.randn(32, 256), 256
        else:
            import timm

            size = {"img_size": 64, "patch_size": 8} if name.startswith("vit") else {}
            self.encoder = timm.create_model(name, pretrained=False, num_classes=0, **size)
            self.inputs, width = torch.randn(32, 3, 64, 64), self.encoder.num_features
        self.heads = nn.ModuleList(nn.Linear(width, 10) for _ in range(tasks))
        self.targets = [torch.randint(0, 10, (32,)) for _ in range(tasks)]
        self.shared = list(self.encoder.parameters())
        self.optimizer = torch.optim.SGD([*self.shared, *self.heads.parameters()], lr=1e-4)

    def losses(self, alias: bool) -> tuple[Any, list[Tensor]]:
        z = self.encoder(self.inputs)
        each = [z.view_as(z) for _ in self.heads] if alias else [z] * len(self.heads)
        return each if alias else z, [
            F.cross_entropy(head(part), target)
            for head, part, target in zip(self.heads, each, self.targets, strict=True)
        ]

    def plain(self) -> None:
        self.optimizer.zero_grad()
        torch.stack(self.losses(False)[1]).sum().backward()
        self.optimizer.step()

    def trunk(self) -> tuple[float, float]:
        """Return the seconds of the trunk's forward and backward pass alone."""
        start = time.process_time()
        z = self.encoder(self.inputs)
        middle = time.process_time()
        z.backward(torch.ones_like(z))
        return middle - start, time.process_time() - middle

    def balanced(self, entry: str) -> Callable[[], None]:
        balancer = Ones(**ENTRIES[entry])
        balancer.watch(self.encoder)
        alias = entry != "features, shared"

        def step() -> None:
            self.optimizer.zero_grad()
            features, losses = self.losses(alias)
            named = {str(task): loss for task, loss in enumerate(losses)}
            balancer(named, shared=self.shared, features=features).backward()
            self.optimizer.step()

        return step


def seconds(step: Callable[[], Any]) -> float:
    start = time.process_time()
    step()
    return time.process_time() - start


def compare(name: str, tasks: int, entries: list[str], rounds: int) -> None:
    plain = Problem(name, tasks)
    steps = {entry: Problem(name, tasks).balanced(entry) for entry in entries}
    ratios: dict[str, list[float]] = {entry: [] for entry in entries}
    bounds = []
    for _ in range(2):
        plain.plain()
        for step in steps.values():
            step()
    for _ in range(rounds):
        forward, backward = plain.trunk()
        bounds.append((forward + tasks * backward) / (forward + backward))
        for entry, step in steps.items():
            before, own, after = seconds(plain.plain), seconds(step), seconds(plain.plain)
            ratios[entry].append(2 * own / (before + after))
    found = ", ".join(f"{entry} {statistics.median(values):.2f}" for entry, values in ratios.items())
    print(f"{name}, K = {tasks}: (F + K B) / (F + B) = {statistics.median(bounds):.2f}; {found}", flush=True)


def resident(key: str) -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith(key)) / 1024


def peak(name: str, tasks: int, entry: str) -> float:
    """Return the MiB by which two steps raise the resident set."""
    problem = Problem(name, tasks)
    step = problem.plain if entry == "plain" else problem.balanced(entry)
    with torch.no_grad():
        problem.encoder(problem.inputs)  # loads the kernels
    before = resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as clear:
        clear.write("5")
    step()
    step()
    return resident("VmHWM") - before


def memory(name: str, tasks: int, entries: list[str]) -> None:
    found = {}
    for entry in ["plain", *entries]:
        command = [sys.executable, __file__, "peak", "--encoder", name, "--tasks", str(tasks), "--entries", entry]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
        found[entry] = float(
            subprocess.run(command, check=True, capture_output=True, env=environment).stdout.split()[-1]
        )
    ratios = ", ".join(f"{entry} {found[entry] / found['plain']:.2f}" for entry in entries)
    print(f"{name}, K = {tasks}: plain {found['plain']:.0f} MiB; {ratios}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["time", "memory", "peak"])
    parser.add_argument("--encoder", default="mlp", help="mlp, resnet18, vit_tiny_patch16_224 or another timm model")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 3, 8, 40])
    parser.add_argument("--entries", nargs="+", default=["auto", "features"], choices=["plain", *ENTRIES])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for tasks in options.tasks:
        if options.what == "time":
            compare(options.encoder, tasks, options.entries, options.rounds)
        elif options.what == "memory":
            memory(options.encoder, tasks, options.entries)
        else:
            print(peak(options.encoder, tasks, options.entries[0]))


if __name__ == "__main__":
    main()
