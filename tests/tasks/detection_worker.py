"""Train and evaluate detection as one of several processes, or alone; started by test_detection_training.py.

Usage: python -m tests.tasks.detection_worker OUT_FILE
The process group is described by the environment, as ``torchrun`` does it.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import Balancer, EqualWeighting, UPGrad
from lightning_mtl.tasks import FCOS, DetectionTask, RetinaNet, SemanticSegmentation
from tests.tasks.cases import FCOS_HEAD, RETINANET_HEAD
from tests.tasks.detections import SIZE, TinyMaps, target

TRAIN = [([0, 1, 2], [3]), ([4], [5, 6, 7])]  # steps: the images of the first and of the second process
VAL: tuple[list[list[int]], list[list[int]]] = ([[0, 1, 2, 3], [4]], [[5, 6, 7]])


class NearlyRight(FCOS):
    """Finds something near to the true boxes, so that the average precision is neither zero nor one."""

    given: Any = None

    def update_metrics(self, prediction: Any, target: Any) -> None:
        """Remember the target."""
        self.given = target
        super().update_metrics(prediction, target)

    def detections(self, prediction: Any, sizes: Any = None) -> list[dict[str, Tensor]]:
        """Return the true boxes, shifted by the number of their image."""
        found = []
        for entry in self.given:
            boxes = torch.zeros(0, 4) if entry is None else entry["boxes"].float()
            labels = torch.zeros(0, dtype=torch.int64) if entry is None else entry["labels"]
            generator = torch.Generator().manual_seed(int(100 * boxes.sum()))
            noise = 5 * (torch.rand(boxes.shape, generator=generator) - 0.5)
            scores = torch.rand(len(boxes), generator=generator)
            found.append({"boxes": boxes + noise, "labels": labels, "scores": scores})
        return found


def images(numbers: list[int]) -> Any:
    """Images of these numbers and their targets, the same whoever asks."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(8, 3, *SIZE, generator=generator, dtype=torch.float64)
    classes = torch.randint(4, (8, *SIZE), generator=generator)
    torch.manual_seed(0)
    boxes = target(8)
    return pixels[numbers], {"boxes": [boxes[i] for i in numbers], "segmentation": classes[numbers]}


def run(task: DetectionTask, balancer: Balancer, world: int, rank: int) -> dict[str, Tensor]:
    """Train two steps and evaluate; return parameters and metrics."""
    pl.seed_everything(0)
    module = MultiTaskModule(
        TinyMaps(),
        {"boxes": task, "segmentation": SemanticSegmentation(4)},
        balancer,
        optimizer=functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    )
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=world,
        strategy="ddp" if world > 1 else "auto",
        precision="64-true",
        max_epochs=1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    train = [images(share[rank] if world > 1 else share[0] + share[1]) for share in TRAIN]
    val = [images(numbers) for numbers in (VAL[rank] if world > 1 else VAL[0] + VAL[1])]
    trainer.fit(module, DataLoader(train, batch_size=None), DataLoader(val, batch_size=None))  # type: ignore[arg-type]
    metrics = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    return {name: value.detach().double() for name, value in (*module.named_parameters(), *metrics.items())}


def main(out: str) -> None:
    """Run every case and save what came out."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    found = {
        "FCOS": run(NearlyRight(3, class_metrics=True, head=FCOS_HEAD), EqualWeighting(), world, rank),
        "RetinaNet": run(RetinaNet(3, head=RETINANET_HEAD), EqualWeighting(), world, rank),
        "at features": run(FCOS(3, head=FCOS_HEAD), UPGrad(at="features"), world, rank),
    }
    torch.save(found, f"{out}.{rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
