"""TaskExpert end to end against a static decoder: three dense tasks on small scenes, behind a small vision transformer.

The scenes of benchmarks/featenhancer.py at 24 x 24 pixels; in half of them the colours are inverted and the channels
permuted. Tasks: four classes, depth (a ramp over the rows minus 0.12 times the class), edges between the classes. A
vision transformer (patches of 4, width 48, 4 blocks, the last 3 tapped) trains with a decoder whose features have 32
channels a task, and a head (3 x 3 convolution, ReLU, 1 x 1 convolution, pixel shuffle) per task: segmentation + 2 depth
+ edge cross entropy, AdamW 2e-3, one cycle, 500 steps of 16 of 800 images; tested on 200. The static decoder has two
1 x 1 convolutions with batch normalization and GELU per task on the three joined maps. One JSON line a run; ``--table
FILE ...`` prints them as Markdown. "mean" is the best constant prediction.

Usage: python benchmarks/task_expert_scenes.py [--seeds 0 1 2] [--runs NAME ...] [--out FILE]
       python benchmarks/task_expert_scenes.py --table FILE ...
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from featenhancer import CLASSES, normalized, scene
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.data.dense.edges import label_boundaries
from lightning_mtl.nn import FeatureSpec, TaskAwareEncoder, TaskExpert
from lightning_mtl.tasks import DenseRegression, Edges, SemanticSegmentation

SIDE, PATCH, WIDTH, MEMORY, EXPERTS, HIDDEN = 24, 4, 48, 32, 4, 96
TASKS = ("segmentation", "depth", "edges")

Split = tuple[Tensor, dict[str, Tensor]]


class TappedTransformer(nn.Module):
    """A vision transformer that gives the maps behind its last three blocks."""

    def __init__(self) -> None:
        super().__init__()
        from timm.models.vision_transformer import VisionTransformer

        self.model = VisionTransformer(
            SIDE, PATCH, embed_dim=WIDTH, depth=4, num_heads=4, num_classes=0, global_pool=""
        )
        self.model.norm = nn.Identity()  # the maps are read before it
        self.feature_spec = FeatureSpec("maps", (WIDTH,) * 3, (PATCH,) * 3)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps: list[Tensor] = self.model.forward_intermediates(images, indices=[1, 2, 3], intermediates_only=True)
        return maps


class StaticDecoder(TaskAwareEncoder):
    """Two 1 x 1 convolutions with batch normalization and GELU per task on the joined maps."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__(encoder, TASKS)
        self.encoder = encoder
        self.layers = nn.ModuleDict(
            {task: nn.Sequential(layer(sum(self.base_spec.channels), HIDDEN), layer(HIDDEN, MEMORY)) for task in TASKS}
        )
        self.feature_spec = dict.fromkeys(TASKS, FeatureSpec("maps", (MEMORY,), (PATCH,)))

    def shared_parameters(self) -> list[nn.Parameter]:
        return list(self.encoder.parameters())

    def forward(self, inputs: Tensor) -> dict[str, list[Tensor]]:  # type: ignore[override]
        joined = torch.cat(self.encoder(inputs), dim=1)
        return {task: [own(joined)] for task, own in self.layers.items()}


class PixelShuffleHead(nn.Module):
    """Predict the pixels of every patch."""

    def __init__(self, spec: FeatureSpec, out_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(spec.channels[0], MEMORY, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(MEMORY, out_channels * PATCH**2, 1),
            nn.PixelShuffle(PATCH),
        )

    def forward(self, features: list[Tensor]) -> Tensor:
        prediction: Tensor = self.layers(features[0])
        return prediction


def layer(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.GELU())


RUNS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "static": StaticDecoder,
    "fixed": lambda encoder: TaskExpert(encoder, TASKS, MEMORY, EXPERTS, fixed_gates=True),
    "image": lambda encoder: TaskExpert(encoder, TASKS, MEMORY, EXPERTS),
}
LABELS = {
    "mean": "best constant",
    "static": "static decoder",
    "fixed": "`TaskExpert(fixed_gates=True)`",
    "image": "`TaskExpert`",
}


def make(count: int, seed: int) -> Split:
    """Return normalized images and the targets of the three tasks; the scenes follow from the seed."""
    generator = np.random.default_rng(seed)
    images, classes = [], []
    for _ in range(count):
        image, labels = scene(generator, SIDE)
        if generator.random() < 0.5:
            image = 1 - image[[2, 0, 1]]
        images.append(image)
        classes.append(labels)
    kinds = torch.from_numpy(np.stack(classes))
    depth = torch.linspace(0, 1, SIDE)[None, :, None] - 0.12 * kinds
    targets = {"segmentation": kinds, "depth": depth[:, None], "edges": label_boundaries(kinds)[:, None]}
    return normalized(torch.tensor(np.stack(images), dtype=torch.float32)), targets


def module_of(run: str) -> MultiTaskModule:
    tasks = {
        "segmentation": SemanticSegmentation(len(CLASSES), class_names=CLASSES, head=PixelShuffleHead),
        "depth": DenseRegression(head=PixelShuffleHead, loss_weight=2.0),
        "edges": Edges(balance=0.5, head=PixelShuffleHead, loss_weight=2.0),  # the plain cross entropy
    }
    return MultiTaskModule(RUNS[run](TappedTransformer()), tasks)


def train(module: MultiTaskModule, data: Split, steps: int, batch: int, lr: float) -> None:
    module.train()
    images, targets = data
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    order = torch.cat([torch.randperm(len(images)) for _ in range(1 + steps * batch // len(images))])
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        optimizer.zero_grad()
        module.training_step((images[chosen], {task: target[chosen] for task, target in targets.items()})).backward()
        optimizer.step()
        schedule.step()


def scores(predictions: dict[str, Tensor], targets: dict[str, Tensor]) -> dict[str, float]:
    """Return mIoU, the mean error of the depth and the cross entropy of the edges of raw predictions."""
    found, kinds = predictions["segmentation"].argmax(1), targets["segmentation"]
    overlap = torch.stack([((found == k) & (kinds == k)).sum() for k in range(len(CLASSES))])
    union = torch.stack([((found == k) | (kinds == k)).sum() for k in range(len(CLASSES))])
    edges = nn.functional.binary_cross_entropy_with_logits(predictions["edges"], targets["edges"])
    return {
        "miou": float((overlap / union).mean()),
        "depth_mae": float((predictions["depth"] - targets["depth"]).abs().mean()),
        "edge_bce": float(edges),
    }


def constants(data: Split, test: Split) -> dict[str, float]:
    """Return the scores of the majority class, the median depth and the share of edges of the training images."""
    targets, count = data[1], len(test[0])
    majority = nn.functional.one_hot(targets["segmentation"].flatten().bincount().argmax(), len(CLASSES))
    predictions = {
        "segmentation": majority.float().view(1, -1, 1, 1).expand(count, -1, SIDE, SIDE),
        "depth": targets["depth"].median().expand(count, 1, SIDE, SIDE),
        "edges": targets["edges"].mean().logit().expand(count, 1, SIDE, SIDE),
    }
    return scores(predictions, test[1])


def spread(encoder: TaskExpert) -> float:
    """Return the largest standard deviation over images of a gate in the last pass."""
    return max(float(gates.std(dim=0).max()) for depth in encoder.gates for gates in depth.values())


def report(out: Path | None, line: dict[str, str | float]) -> None:
    text = json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in line.items()})
    print(text, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(text + "\n")


def print_table(files: list[Path]) -> None:
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    seeds = sorted({line["seed"] for line in lines})
    names = [name for name in LABELS if any(line["run"] == name for line in lines)]
    print(f"Seeds {' / '.join(map(str, seeds))}.\n")
    print("| decoder | mIoU ↑ | depth error ↓ | edge BCE ↓ | CPU s |\n| --- | --- | --- | --- | --- |")
    for name in names:
        own = {line["seed"]: line for line in lines if line["run"] == name}
        cells = [
            " / ".join(f"{own[seed][key]:.{digits}f}" if seed in own else "-" for seed in seeds)
            for key, digits in (("miou", 3), ("depth_mae", 4), ("edge_bce", 3), ("cpu_seconds", 0))
        ]
        print(f"| {LABELS[name]} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", choices=list(RUNS), default=list(RUNS))
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--out", type=Path, help="file that the JSON lines are added to")
    parser.add_argument("--table", type=Path, nargs="+", help="print the lines of these files as Markdown and stop")
    options = parser.parse_args()
    if options.table:
        print_table(options.table)
        return
    torch.set_num_threads(1)
    for seed in options.seeds:
        data, test = make(800, 2 * seed), make(200, 2 * seed + 1)
        report(options.out, {"run": "mean", "seed": seed, **constants(data, test), "cpu_seconds": 0.0})
        for run in options.runs:
            torch.manual_seed(seed)
            module = module_of(run)
            torch.manual_seed(100 + seed)  # the same order of images for every run
            start = time.process_time()
            train(module, data, options.steps, batch=16, lr=2e-3)
            seconds = time.process_time() - start
            module.eval()
            with torch.no_grad():
                line: dict[str, str | float] = {"run": run, "seed": seed, **scores(module(test[0]), test[1])}
            line["cpu_seconds"] = seconds
            line["decoder_parameters"] = sum(
                p.numel() for name, p in module.encoder.named_parameters() if not name.startswith("encoder.")
            )
            if isinstance(module.encoder, TaskExpert):
                line["gate_std"] = spread(module.encoder)
            report(options.out, line)


if __name__ == "__main__":
    main()
