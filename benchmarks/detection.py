"""Time of a detection training step: MultiTaskModule against torchvision's own model on the same weights.

    python benchmarks/detection.py --out detection_steps.jsonl

Each side has the same timm backbone, feature pyramid, towers, anchors and a batch of images of one size; torchvision's
models (FCOS, RetinaNet) get them as a list, as they want it, and neither resize nor pad. A step is forward, losses,
backward and SGD. Sides take turns in one process, step by step, on CPU time of one thread; the median of the ratios of
neighbouring steps is printed, with their quartiles. One JSON line a pair, then a Markdown table.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import torch
from torch import Tensor, nn
from torchvision.models import detection

from lightning_mtl import MultiTaskModule
from lightning_mtl.nn import FCOSHead, RetinaNetHead, TimmEncoder
from lightning_mtl.tasks import FCOS, RetinaNet

CLASSES = 5


class Backbone(nn.Module):
    """An encoder and a pyramid in the form that torchvision's models want."""

    def __init__(self, encoder: nn.Module, pyramid: nn.Module, channels: int) -> None:
        super().__init__()
        self.encoder, self.pyramid, self.out_channels = encoder, pyramid, channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return OrderedDict(enumerate(self.pyramid(self.encoder(images))))


class Towers(nn.Module):
    """The two towers of one of our heads under torchvision's names, with torchvision's loss."""

    def __init__(self, head: Any, losses: type[Any]) -> None:
        super().__init__()
        self.classification_head, self.regression_head = head.classification, head.regression
        self.box_coder = detection._utils.BoxLinearCoder(normalize_by_size=True)
        self.compute_loss = functools.partial(losses.compute_loss, self)

    def forward(self, levels: list[Tensor]) -> dict[str, Tensor]:
        found = {"cls_logits": self.classification_head(levels)}
        boxes = self.regression_head(levels)
        if isinstance(boxes, tuple):
            return found | {"bbox_regression": boxes[0], "bbox_ctrness": boxes[1]}
        return found | {"bbox_regression": boxes}


def pair(kind: str, encoder_name: str, size: int, channels: int) -> tuple[MultiTaskModule, nn.Module]:
    """Return our module and torchvision's model on copies of the same layers."""
    ours, theirs = [], []
    for made in (ours, theirs):
        torch.manual_seed(0)
        encoder = TimmEncoder(encoder_name, "maps")
        head = (FCOSHead if kind == "FCOS" else RetinaNetHead)(encoder.feature_spec, CLASSES, channels)
        made += [encoder, head]
    task = {"FCOS": FCOS, "RetinaNet": RetinaNet}[kind](CLASSES, head=ours[1])
    model = {"FCOS": detection.FCOS, "RetinaNet": detection.RetinaNet}[kind](
        Backbone(theirs[0], theirs[1].pyramid, channels),
        CLASSES,
        min_size=size,
        max_size=size,
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
        anchor_generator=theirs[1].anchors,
        head=Towers(theirs[1], {"FCOS": detection.fcos.FCOSHead, "RetinaNet": detection.retinanet.RetinaNetHead}[kind]),
    )
    return MultiTaskModule(ours[0], {"boxes": task}), model.train()


def batch(images: int, size: int) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Return random images with 8 boxes each."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(images, 8, 2, generator=generator) * size * 0.7
    extent = size * (0.1 + 0.2 * torch.rand(images, 8, 2, generator=generator))
    labels = torch.randint(1, CLASSES + 1, (images, 8), generator=generator)
    boxes = torch.cat([corner, corner + extent], 2)
    targets = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
    return torch.randn(images, 3, size, size, generator=generator), targets


def stepper(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], float]:
    """Return a function that makes a training step and returns its CPU seconds."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)

    def step() -> float:
        start = time.process_time()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        return time.process_time() - start

    return step


def measure(kind: str, options: argparse.Namespace) -> dict[str, Any]:
    """Time both sides in turn."""
    ours, theirs = pair(kind, options.encoder, options.size, options.channels)
    images, targets = batch(options.batch_size, options.size)
    shifted = [{"boxes": t["boxes"], "labels": t["labels"] - 1} for t in targets]
    mine = stepper(ours, lambda: ours.training_step((images, {"boxes": targets})))
    other = stepper(theirs, lambda: sum(theirs(list(images), shifted).values()))
    for step in (mine, other):
        step()
    ratios, seconds = [], []
    for _ in range(options.rounds):
        before = other()
        middle = mine()
        after = other()
        ratios.append(2 * middle / (before + after))
        seconds.append((before + after) / 2)
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "task": kind,
        "encoder": options.encoder,
        "size": options.size,
        "batch": options.batch_size,
        "ratio": round(quartiles[1], 3),
        "quartiles": [round(quartiles[0], 3), round(quartiles[2], 3)],
        "torchvision_seconds": round(statistics.median(seconds), 3),
        "rounds": options.rounds,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", default=["FCOS", "RetinaNet"], choices=["FCOS", "RetinaNet"])
    parser.add_argument("--encoder", default="resnet18")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=None, help="file for JSON lines")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for kind in options.kinds:
        rows.append(measure(kind, options))
        print(json.dumps(rows[-1]), flush=True)
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print("\n| task | against | time ratio (quartiles) | torchvision, CPU s |\n| --- | --- | ---: | ---: |")
    for row in rows:
        low, high = row["quartiles"]
        print(
            f"| `{row['task']}` | torchvision's | {row['ratio']:.2f} ({low:.2f} to {high:.2f}) | "
            f"{row['torchvision_seconds']:.2f} |"
        )


if __name__ == "__main__":
    main()
