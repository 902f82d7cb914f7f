"""Does an image-wise mixture of shared experts do what no static mixture of the same features can (TaskExpert)?

    python benchmarks/task_expert.py --seeds 0 1 2

Random feature maps (16 channels, 6 x 6) carry a hidden domain: one bit per image that shifts the mean of channel 0 by
+1 or -1. The target of task t at every position is W[t, domain] times the features plus noise. The first two models
have four linear experts; one weighs them by the pooled image, the other by learned constants. The last two are
lightning_mtl.nn.TaskExpert on these maps, with its gates and with fixed ones. Prints the test R^2 of every run as a
JSON line, and the standard deviation of the weights over images, and a table at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

from lightning_mtl.nn import FeatureSpec, TaskExpert

CHANNELS, SIZE, OUT, TASKS, EXPERTS = 16, 6, 4, 2, 4


def data(count: int, weights: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return maps ``(count, C, h, w)`` and targets ``(TASKS, count, OUT, h, w)``."""
    domain = torch.randint(2, (count,), generator=generator)
    maps = torch.randn(count, CHANNELS, SIZE, SIZE, generator=generator)
    maps[:, 0] += (2.0 * domain - 1)[:, None, None]
    targets = torch.einsum("tboc,bchw->tbohw", weights[:, domain], maps)
    return maps, targets + 0.1 * torch.randn(targets.shape, generator=generator)


class Mixture(nn.Module):
    """Linear experts and one linear output per task, with image-wise or constant weights."""

    def __init__(self, gates: Literal["image", "static"]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Conv2d(CHANNELS, 16, 1) for _ in range(EXPERTS))
        self.outputs = nn.ModuleList(nn.Conv2d(16, OUT, 1) for _ in range(TASKS))
        self.constant = nn.Parameter(torch.zeros(TASKS, EXPERTS))
        self.gates = None
        if gates == "image":
            self.gates = nn.ModuleList(
                nn.Sequential(nn.Linear(CHANNELS, 32), nn.ReLU(), nn.Linear(32, EXPERTS)) for _ in range(TASKS)
            )

    def weights(self, maps: Tensor) -> list[Tensor]:
        """Return the weights of the experts ``(B, EXPERTS)`` of every task."""
        if self.gates is None:
            return [logits.softmax(0).expand(len(maps), -1) for logits in self.constant]
        return [gate(maps.mean(dim=(2, 3))).softmax(1) for gate in self.gates]

    def forward(self, maps: Tensor) -> Tensor:
        """Return the predictions of all tasks."""
        said = torch.stack([expert(maps) for expert in self.experts], dim=1)
        mixed = [(w[:, :, None, None, None] * said).sum(1) for w in self.weights(maps)]
        return torch.stack([output(m) for output, m in zip(self.outputs, mixed, strict=True)])


class Maps(nn.Module):
    """An encoder that gives its input as the only feature map."""

    feature_spec = FeatureSpec("maps", (CHANNELS,), (1,))

    def forward(self, maps: Tensor) -> list[Tensor]:
        """Return the maps."""
        return [maps]


class Memorial(nn.Module):
    """TaskExpert and one linear output per task."""

    def __init__(self, fixed_gates: bool) -> None:
        super().__init__()
        names = [str(task) for task in range(TASKS)]
        self.mixture = TaskExpert(Maps(), names, 16, EXPERTS, fixed_gates=fixed_gates)
        self.outputs = nn.ModuleDict({name: nn.Conv2d(16, OUT, 1) for name in names})

    def weights(self, maps: Tensor) -> list[Tensor]:
        """Return the weights of experts and memory of every task."""
        self.mixture(maps)
        return list(self.mixture.gates[0].values())

    def forward(self, maps: Tensor) -> Tensor:
        """Return the predictions of all tasks."""
        features = self.mixture(maps)
        return torch.stack([output(features[name][0]) for name, output in self.outputs.items()])


MODELS: dict[str, Callable[[], Mixture | Memorial]] = {
    "static": lambda: Mixture("static"),
    "image": lambda: Mixture("image"),
    "TaskExpert, fixed gates": lambda: Memorial(fixed_gates=True),
    "TaskExpert": lambda: Memorial(fixed_gates=False),
}


def run(name: str, seed: int) -> tuple[float, float]:
    """Train one model; return its test R^2 and the largest standard deviation of a weight over images."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    weights = torch.randn(TASKS, 2, OUT, CHANNELS, generator=generator) / 4
    train, test = data(1000, weights, generator), data(500, weights, generator)
    model = MODELS[name]()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(600):
        chosen = torch.randint(1000, (64,), generator=generator)
        optimizer.zero_grad()
        (model(train[0][chosen]) - train[1][:, chosen]).square().mean().backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        error = (model(test[0]) - test[1]).square().mean()
        spread = max(w.std(dim=0).max().item() for w in model.weights(test[0]))
    return float(1 - error / test[1].var()), spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    rows: dict[str, list[str]] = {name: [] for name in MODELS}
    for seed in arguments.seeds:
        for name in MODELS:
            start = time.perf_counter()
            score, spread = run(name, seed)
            rows[name].append(f"{score:.3f}")
            line = {"model": name, "seed": seed, "r2": score, "gate_std": spread, "s": time.perf_counter() - start}
            print(json.dumps(line), flush=True)
    print("\n| gates | test R^2, seeds " + " ".join(map(str, arguments.seeds)) + " |\n|---|---|")
    for name, scores in rows.items():
        print(f"| {name} | {' / '.join(scores)} |")


if __name__ == "__main__":
    main()
