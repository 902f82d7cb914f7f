"""Dynamic pruning on two-glyph images: accuracy and theoretical MACs by the mass that is kept.

Four convolutions (1-16-32-64-64) with batch normalization read the upper left of two digits in noise (0.25), from 3000
images with right labels. The dense network is trained for 8 epochs (SGD 0.1, momentum 0.9, decay 5e-4, x0.1 after 5).
For every mass it is then trained on, with a learning rate of 0.01: 3 epochs without masks while the predictors learn
(learning rate 0.1), then 6 with masks, in the first 3 of which the predictors go on learning. Accuracies are those of
1000 test images. "Predicted" is the share of the MACs that the dense network promises before there is a predictor.
Every run is one line of JSON; a Markdown table follows.

Usage: python benchmarks/dynamic_pruning.py [--runs 0.95:0 0.85:0 ...] [--normalize scaled_softmax] [--warmup 3]
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
import warnings
from functools import partial

os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightning.pytorch as pl
import torch
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.callbacks import DynamicPruning
from lightning_mtl.data import TwoGlyphDataModule
from lightning_mtl.data.base import Split
from lightning_mtl.data.table import Table
from lightning_mtl.nn import DynamicEncoder, FeatureSpec, count_macs, dynamic_layers, estimate_macs
from lightning_mtl.tasks import MulticlassClassification

RUNS = ["0.95:0", "0.95:1", "0.85:0", "0.85:1", "0.7:0"]


class FourLayers(nn.Sequential):
    """Four convolutions and a mean over the pixels."""

    feature_spec = FeatureSpec("vector", (64,))

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for before, after in ((1, 16), (16, 32), (32, 64), (64, 64)):
            layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if len(layers) < 12 else [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers)


class LeftDigit(TwoGlyphDataModule):
    """The images of both digits with the label of one."""

    def make_dataset(self, split: Split) -> Table:
        table = super().make_dataset(split)
        return Table(table.inputs, {"left": table.targets["left"]})


def fit(module: MultiTaskModule, data: TwoGlyphDataModule, epochs: int, callbacks: list[pl.Callback]) -> None:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(module, data)


def module_of(encoder: nn.Module, lr: float) -> MultiTaskModule:
    optimizer = partial(torch.optim.SGD, lr=lr, momentum=0.9, weight_decay=5e-4)
    steps = partial(torch.optim.lr_scheduler.MultiStepLR, milestones=[5], gamma=0.1) if lr > 0.01 else None
    return MultiTaskModule(encoder, {"left": MulticlassClassification(10)}, optimizer=optimizer, lr_scheduler=steps)


def accuracy(module: MultiTaskModule, images: Tensor, digits: Tensor) -> float:
    module.eval()
    with torch.no_grad():
        return float((module(images)["left"].argmax(1) == digits).float().mean())


def run(
    dense: MultiTaskModule, data: TwoGlyphDataModule, mass: float, seed: int, options: argparse.Namespace
) -> dict[str, object]:
    table = data.make_dataset("test")
    images, digits = table.inputs, table.targets["left"]
    predicted = estimate_macs(dense.encoder, [images], mass).target_share
    start = time.perf_counter()
    torch.manual_seed(seed)
    encoder = DynamicEncoder(copy.deepcopy(dense.encoder), mass, mode=options.mode, normalize=options.normalize)
    module = module_of(encoder, 0.01)
    module.tasks.load_state_dict(dense.tasks.state_dict())
    module.train()
    fit(module, data, options.warmup + 6, [DynamicPruning(options.warmup, 0.5)])
    found = accuracy(module, images, digits)
    count = count_macs(module)
    guesses = [layer.last for layer in dynamic_layers(module).values()]
    return {
        "mass": mass,
        "seed": seed,
        "normalize": options.normalize,
        "mode": options.mode,
        "warmup": options.warmup,
        "dense accuracy": round(accuracy(dense, images, digits), 4),
        "accuracy": round(found, 4),
        "share": round(count.share, 4),
        "predicted": round(predicted, 4),
        "kept": [round(float(last.mask.sum(1).mean()), 1) for last in guesses],
        "mask accuracy": [round(float((last.mask == last.target).float().mean()), 3) for last in guesses],
        "dense MACs": count.dense,
        "predictor MACs": count.predictors,
        "seconds": round(time.perf_counter() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", default=RUNS, metavar="MASS:SEED")
    parser.add_argument("--normalize", choices=["softmax", "scaled_softmax", "none"], default="scaled_softmax")
    parser.add_argument("--mode", choices=["decoupled", "joint"], default="decoupled")
    parser.add_argument("--warmup", type=int, default=3)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", module="lightning")
    torch.set_num_threads(1)
    trained: dict[int, tuple[MultiTaskModule, TwoGlyphDataModule]] = {}
    rows = []
    for text in options.runs:
        mass, seed = float(text.split(":")[0]), int(text.split(":")[1])
        if seed not in trained:
            data = LeftDigit(3000, num_val=100, num_test=1000, noise=0.25, label_noise=0.0, seed=seed)
            pl.seed_everything(seed, verbose=False)
            dense = module_of(FourLayers(), 0.1)
            fit(dense, data, 8, [])
            trained[seed] = dense, data
        rows.append(run(*trained[seed], mass, seed, options))
        print(json.dumps(rows[-1]), flush=True)
    columns = ["mass", "seed", "dense accuracy", "accuracy", "share", "predicted", "seconds"]
    print("\n| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row[column]) for column in columns) + " |")


if __name__ == "__main__":
    main()
