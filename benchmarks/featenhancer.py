"""FeatEnHancer on dark scenes: mIoU of a small segmenter that was trained on bright ones and is fine-tuned in the dark.

Scenes of 40 x 40 pixels with three shapes each, darkened by a gamma curve and an illumination ramp. A segmenter of
38 k parameters is pretrained on 400 bright scenes (400 steps, batch 16, AdamW 5e-3, one cycle) and fine-tuned on 400
dark ones (220 steps, batch 8, AdamW 2e-3, one cycle, clipped at 1.0): alone, behind FeatEnHancer with three ways of
fusion, or behind a fixed gamma of 0.4. Tested on 200 dark scenes. One JSON line a run; ``--table FILE ...`` prints them
as Markdown.

Usage: python benchmarks/featenhancer.py [--seeds 0 1] [--runs NAME ...] [--out FILE] [--picture FILE]
       python benchmarks/featenhancer.py --table FILE ...
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.nn import FeatEnHancer, FeatureSpec
from lightning_mtl.tasks import SemanticSegmentation

SIZE = 40
CLASSES = ["background", "disc", "square", "triangle"]
RUNS = ["none", "plain", "safa", "mean", "skip", "gamma"]
LABELS = {
    "none": "no adaptation",
    "plain": "fine-tune only",
    "safa": "fine-tune + FeatEnHancer",
    "mean": "fine-tune + FeatEnHancer, fusion mean",
    "skip": "fine-tune + FeatEnHancer, fusion skip",
    "gamma": "gamma 0.4 + fine-tune",
}

Split = tuple[Tensor, Tensor]


class Encoder(nn.Module):
    """Three convolutions with batch normalisation; maps of stride 2 and 4."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = stage(3, 16, 2)
        self.coarse = nn.Sequential(stage(16, 32, 2), stage(32, 48, 1))
        self.feature_spec = FeatureSpec("maps", (16, 48), (2, 4))

    def forward(self, image: Tensor) -> list[Tensor]:
        fine = self.fine(image)
        return [fine, self.coarse(fine)]


class Head(nn.Module):
    """The coarse map is enlarged and joined with the fine one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(stage(64, 32, 1), nn.Conv2d(32, len(CLASSES), 1))

    def forward(self, features: list[Tensor]) -> Tensor:
        fine, coarse = features
        coarse = nn.functional.interpolate(coarse, size=fine.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.layers(torch.cat([fine, coarse], 1))
        return logits


def stage(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def ramp(generator: np.random.Generator, low: float, high: float, side: int = SIZE) -> np.ndarray:
    """Return a linear ramp in a random direction over the image."""
    angle = generator.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[:side, :side]
    position = np.cos(angle) * columns + np.sin(angle) * rows
    share = (position - position.min()) / (position.max() - position.min())
    return low + (high - low) * share


def scene(generator: np.random.Generator, side: int = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return a bright image in 0..1, (3, H, W), and its class map; shapes grow with the image."""
    image = np.stack([ramp(generator, *generator.uniform(0.35, 0.6, 2), side) for _ in range(3)])
    labels = np.zeros((side, side), dtype=np.int64)
    rows, columns = np.mgrid[:side, :side]
    for _ in range(3):
        kind, size = generator.integers(1, 4), generator.integers(round(0.1 * side), round(0.2 * side) + 1)
        y, x = generator.integers(size, side - size, 2)
        dy, dx = rows - y, columns - x
        if kind == 1:
            inside = dy**2 + dx**2 <= size**2
        elif kind == 2:
            inside = (abs(dy) <= size) & (abs(dx) <= size)
        else:  # tip at the top
            inside = (abs(dy) <= size) & (2 * abs(dx) <= dy + size)
        image[:, inside] = generator.uniform(0.3, 0.9, (3, 1))
        labels[inside] = kind
    return np.clip(image + generator.normal(0, 0.03, image.shape), 0, 1), labels


def darken(image: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    light = ramp(generator, generator.uniform(0.02, 0.06), generator.uniform(0.15, 0.40))
    dark = image**1.5 * light + generator.normal(0, 0.01, image.shape)
    return np.round(255 * np.clip(dark, 0, 1)) / 255


def make(count: int, seed: int, dark: bool) -> Split:
    """Return images in 0..1 and class maps; the scenes follow from the seed."""
    generator = np.random.default_rng(seed)
    images, labels = [], []
    for _ in range(count):
        image, kinds = scene(generator)
        images.append(darken(image, generator) if dark else image)
        labels.append(kinds)
    return torch.tensor(np.stack(images), dtype=torch.float32), torch.from_numpy(np.stack(labels))


def normalized(images: Tensor) -> Tensor:
    return (images - 0.45) / 0.225


def train(module: MultiTaskModule, data: Split, steps: int, batch: int, lr: float, clip: float | None) -> None:
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    order = torch.cat([torch.randperm(len(data[0])) for _ in range(1 + steps * batch // len(data[0]))])
    for step in range(steps):
        chosen = order[step * batch : (step + 1) * batch]
        optimizer.zero_grad()
        module.training_step((data[0][chosen], {"segmentation": data[1][chosen]})).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
        schedule.step()


def miou(module: MultiTaskModule, data: Split) -> float:
    module.eval()
    task = module.tasks["segmentation"]
    task.metrics.reset()
    with torch.no_grad():
        for images, labels in zip(data[0].split(50), data[1].split(50), strict=True):
            task.update_metrics(module(images)["segmentation"], labels)
    return float(task.metrics.compute()["miou"])


def segmenter(seed: int) -> MultiTaskModule:
    torch.manual_seed(seed)
    task = SemanticSegmentation(num_classes=len(CLASSES), class_names=CLASSES, head=Head())
    return MultiTaskModule(Encoder(), {"segmentation": task})


def enhanced(module: MultiTaskModule, fusion: str, seed: int) -> MultiTaskModule:
    """Return the pretrained segmenter behind a new enhancement."""
    torch.manual_seed(seed)
    return MultiTaskModule(FeatEnHancer(module.encoder, fusion=fusion), dict(module.tasks.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=RUNS)
    parser.add_argument("--out", type=Path, help="file that the JSON lines are added to")
    parser.add_argument("--picture", type=Path, help="PNG of dark and enhanced test images of the last 'safa' run")
    parser.add_argument("--table", type=Path, nargs="+", help="print the lines of these files as Markdown and stop")
    options = parser.parse_args()
    if options.table:
        print_table(options.table)
        return
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, cpu, one thread, seeds {options.seeds}", flush=True)
    for seed in options.seeds:
        bright, bright_test = make(400, 4 * seed, dark=False), make(200, 4 * seed + 1, dark=False)
        dark, dark_test = make(400, 4 * seed + 2, dark=True), make(200, 4 * seed + 3, dark=True)
        pretrained = segmenter(seed)
        train(pretrained, (normalized(bright[0]), bright[1]), steps=400, batch=16, lr=5e-3, clip=None)
        report(options.out, "bright test", seed, miou(pretrained, (normalized(bright_test[0]), bright_test[1])), 0.0)
        for run in options.runs:
            curve: Callable[[Tensor], Tensor] = (lambda image: image**0.4) if run == "gamma" else (lambda image: image)
            own, test = ((normalized(curve(images)), labels) for images, labels in (dark, dark_test))
            module = copy.deepcopy(pretrained)
            if run in ("safa", "mean", "skip"):
                module = enhanced(module, run, seed)
            start = time.process_time()
            torch.manual_seed(100 + seed)  # the same order of samples for every run
            if run != "none":
                train(module, own, steps=220, batch=8, lr=2e-3, clip=1.0)
            report(options.out, LABELS[run], seed, miou(module, test), time.process_time() - start)
            if run == "safa" and options.picture:
                draw(module, dark_test[0][:6], options.picture)


def report(out: Path | None, name: str, seed: int, value: float, seconds: float) -> None:
    line = json.dumps({"run": name, "seed": seed, "miou": round(value, 4), "cpu_seconds": round(seconds, 1)})
    print(line, flush=True)
    if out is not None:
        with out.open("a") as file:
            file.write(line + "\n")


def draw(module: MultiTaskModule, images: Tensor, path: Path) -> None:
    """Write the images, the images stretched to 0..1, and the enhanced images stretched to 0..1, as three rows."""
    from PIL import Image

    module.eval()
    with torch.no_grad():
        after = module.encoder.enhancement(normalized(images))

    def stretched(batch: Tensor) -> Tensor:
        low, high = batch.amin((1, 2, 3), keepdim=True), batch.amax((1, 2, 3), keepdim=True)
        return (batch - low) / (high - low)

    rows = [torch.cat(list(batch), -1) for batch in (images, stretched(images), stretched(after))]
    pixels = (255 * torch.cat(rows, -2)).round().to(torch.uint8)
    pixels = pixels.repeat_interleave(3, -1).repeat_interleave(3, -2)
    Image.fromarray(pixels.movedim(0, -1).numpy()).save(path)


def print_table(files: list[Path]) -> None:
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    seeds = sorted({line["seed"] for line in lines})
    print(f"| run | mIoU, seeds {' / '.join(map(str, seeds))} | CPU s |\n| --- | --- | --- |")
    for name in dict.fromkeys(line["run"] for line in lines):
        found = {line["seed"]: line for line in lines if line["run"] == name}
        values = " / ".join(f"{found[seed]['miou']:.3f}" if seed in found else "-" for seed in seeds)
        seconds = " / ".join(f"{found[seed]['cpu_seconds']:.0f}" if seed in found else "-" for seed in seeds)
        print(f"| {name} | {values} | {seconds} |")


if __name__ == "__main__":
    main()
