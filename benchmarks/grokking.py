"""Grokking experiments watched by GrokkingDetector, and what the detector costs.

    python benchmarks/grokking.py polynomial    # five seeds, two output scales, three sizes of the training set
    python benchmarks/grokking.py alpha         # a sweep of the output scale that removes grokking
    python benchmarks/grokking.py modular       # addition modulo 23, five seeds, with and without weight decay
    python benchmarks/grokking.py digits        # control without grokking; needs scikit-learn
    python benchmarks/grokking.py overhead      # time of training with and without the detector

The first four train through a Trainer, full batch, and stop when a task has generalised.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import logging

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_mtl import MultiTaskModule
from lightning_mtl.callbacks import GrokkingDetector, detect_grokking
from lightning_mtl.data import ModularArithmeticDataModule, PolynomialRegressionDataModule, quadratic_error
from lightning_mtl.nn import CenteredOutputScale, QuadraticNetwork, scaled_lr
from lightning_mtl.tasks import Regression


def trainer(**options: Any) -> pl.Trainer:
    """Return a silent Trainer."""
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def polynomial(alpha: float, num_train: int, seed: int, steps: int) -> tuple[GrokkingDetector, float]:
    """Train the quadratic student; return the detector and the exact test error relative to the first."""
    pl.seed_everything(seed, verbose=False)
    network = CenteredOutputScale(QuadraticNetwork(50), alpha)
    module = MultiTaskModule(
        network,
        {"quadratic": Regression(head=nn.Identity)},
        optimizer=functools.partial(torch.optim.SGD, lr=scaled_lr(500, alpha)),  # 5 N / 2
    )
    detector = GrokkingDetector(
        kernel=True, kernel_samples=64, kernel_every_n_checks=5, figure=False, stop_when_generalised=True
    )
    data = PolynomialRegressionDataModule(num_train=num_train, seed=seed)
    trainer(
        max_epochs=steps,
        check_val_every_n_epoch=20,
        num_sanity_val_steps=-1,
        log_every_n_steps=1,
        precision="64-true",
        callbacks=[detector],
    ).fit(module, data)
    direction, start = data.directions()["quadratic"], network.initial.weight  # type: ignore[union-attr]
    weight = network.module.weight.detach()
    test = [quadratic_error(w, start, direction, alpha, 0.1).total for w in (weight, start)]  # type: ignore[arg-type]
    return detector, test[0] / test[1]


HEADER = (
    "| setting | seed | state | memorised at | generalised at | lag | ratio | validation | "
    "exact test error at the end | alignment | kernel distance |\n" + "| --- " * 11 + "|"
)


def row(setting: str, seed: int, detector: GrokkingDetector, test: float | None = None) -> str:
    """Return a row of the table."""
    (report,) = detector.report().values()
    (curves,) = detector.curves.values()
    ratio = "-" if report.ratio is None else f"{report.ratio:.1f}"
    val = f"accuracy {curves.val[-1]:.2f}"
    if detector.mode == "min":
        val = f"1 -> {max(curves.val) / curves.val_reference:.2f} -> {curves.val[-1] / curves.val_reference:.2f}"
    kernel = [f"{report.initial_kernel[n]:.3f} -> {report.kernel[n]:.3f}" for n in ("alignment", "kernel_distance")]
    cells = [setting, seed, report.state, report.memorised_at, report.generalised_at, report.lag, ratio, val]
    return "| " + " | ".join(str(cell) for cell in [*cells, "-" if test is None else f"{test:.3f}", *kernel]) + " |"


def run_polynomial(seeds: int) -> None:
    """Print the delays of two output scales and the states of three sizes of the training set."""
    print(HEADER)
    lags: dict[float, list[int]] = {}
    for alpha in (0.25, 1.0):
        for seed in range(seeds):
            detector, test = polynomial(alpha, 250, seed, 6000)
            print(row(f"alpha {alpha}, 250 samples", seed, detector, test), flush=True)
            lags.setdefault(alpha, []).append(detector.report()["quadratic"].lag or 0)
    for size, steps in ((100, 3000), (1000, 400)):
        for seed in range(min(seeds, 3)):
            detector, test = polynomial(0.25, size, seed, steps)
            print(row(f"alpha 0.25, {size} samples", seed, detector, test), flush=True)
    print("lag(alpha 1) / lag(alpha 0.25):", [round(b / a, 1) for a, b in zip(*lags.values(), strict=True)])


def run_alpha(seeds: int, alphas: list[float]) -> None:
    """Print what the output scale does with 400 samples."""
    print(HEADER, flush=True)
    for alpha in alphas:
        for seed in range(min(seeds, 3)):
            detector, test = polynomial(alpha, 400, seed, 3000)
            print(row(f"alpha {alpha}, 400 samples", seed, detector, test), flush=True)


class Squares(pl.LightningModule):
    """A network of squares for modular addition, written without this package's module."""

    def __init__(self, weight_decay: float) -> None:
        super().__init__()
        self.network = QuadraticNetwork(46, 256, 23, 0.0, 2.0, weight_std=46**-0.5, train_readout=True)
        self.weight_decay = weight_decay

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def step(self, batch: Any, stage: str) -> Tensor:
        inputs, targets = batch
        output = self(inputs)
        self.log(f"{stage}_accuracy", (output.argmax(1) == targets["add"]).float().mean())
        return nn.functional.mse_loss(output, nn.functional.one_hot(targets["add"], 23).float())

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=self.weight_decay)


def modular(fraction: float, weight_decay: float, seed: int) -> GrokkingDetector:
    """Train on modular addition and return the detector, which watches accuracies."""
    pl.seed_everything(seed, verbose=False)
    detector = GrokkingDetector(
        "train_accuracy",
        "val_accuracy",
        mode="max",
        train_threshold=0.99,
        val_threshold=0.95,
        kernel=True,
        kernel_samples=64,
        kernel_every_n_checks=20,
        figure=False,
        stop_when_generalised=True,
        # a class as a number would be a different target than its one-hot vector
        kernel_forward=lambda module, batch: (module(batch[0]), batch[1]["add"]),
    )
    trainer(max_epochs=800, check_val_every_n_epoch=5, log_every_n_steps=1, callbacks=[detector]).fit(
        Squares(weight_decay), ModularArithmeticDataModule(train_fraction=fraction, seed=seed)
    )
    return detector


def run_modular(seeds: int) -> None:
    """Print when modular addition is learned."""
    print(HEADER)
    for fraction, decay, count in ((0.6, 1.0, seeds), (0.6, 0.0, 2), (0.3, 1.0, 1), (0.8, 1.0, 1)):
        for seed in range(min(seeds, count)):
            setting = f"{fraction:.0%} of the pairs, weight decay {decay}"
            print(row(setting, seed, modular(fraction, decay, seed)), flush=True)


class Digits(pl.LightningModule):
    """A centred network on one-hot digits with plain gradient descent."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        layers = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
        self.network = CenteredOutputScale(layers, alpha)
        self.alpha = alpha

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)

    def step(self, batch: Any, stage: str) -> Tensor:
        loss = nn.functional.mse_loss(self(batch[0]), batch[1]["digit"], reduction="sum") / len(batch[0]) / 2
        self.log(f"{stage}_loss", loss)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.network.module.parameters(), lr=scaled_lr(0.05, self.alpha))


def run_digits(seeds: int) -> None:
    """Print that there is no delay where the initial kernel fits the targets."""
    from sklearn.datasets import load_digits

    images, labels = (torch.from_numpy(column) for column in load_digits(return_X_y=True))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    inputs, targets = (images / 16).float()[order], nn.functional.one_hot(labels, 10).float()[order]
    print(HEADER)
    for alpha in (0.1, 1.0, 10.0, 100.0):
        pl.seed_everything(0, verbose=False)
        detector = GrokkingDetector(
            "train_loss",
            "val_loss",
            train_threshold="auto",
            val_threshold="auto",
            kernel=True,
            kernel_samples=64,
            kernel_every_n_checks=20,
            figure=False,
            kernel_forward=lambda module, batch: (module(batch[0]), batch[1]["digit"]),
        )
        loaders = [
            DataLoader([batch], batch_size=None)
            for batch in ((inputs[:150], {"digit": targets[:150]}), (inputs[150:], {"digit": targets[150:]}))
        ]
        trainer(max_epochs=4000, check_val_every_n_epoch=20, log_every_n_steps=1, callbacks=[detector]).fit(
            Digits(alpha), *loaders
        )
        (curves,) = detector.curves.values()
        relative = [[value / values[0] for value in values] for values in (curves.train, curves.val)]
        others = {str(how): detect_grokking(curves.steps, *relative, how, how).state for how in (0.1, "change_point")}
        print(row(f"alpha {alpha}; with other thresholds {others}", 0, detector), flush=True)


# ---------------------------------------------------------------------- cost
class Images(pl.LightningModule):
    """An image classifier from timm, written by hand."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        import timm

        options = {"img_size": size} if "vit" in name else {}
        self.network = timm.create_model(name, num_classes=10, **options)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Stopwatch(pl.Callback):
    """Processor seconds of the whole fit and of the hooks of one callback."""

    def on_fit_start(self, *_: Any) -> None:
        self.start = time.process_time()

    def on_fit_end(self, *_: Any) -> None:
        self.seconds = time.process_time() - self.start


def timed(name: str, size: int, batches: int, detector: GrokkingDetector | None) -> float:
    """Train one epoch of so many batches of 32, validate twice, and return the processor seconds."""
    pl.seed_everything(0, verbose=False)
    images, labels = torch.randn(64, 3, size, size), torch.randint(0, 10, (64,))
    data = TensorDataset(images.repeat(batches // 2, 1, 1, 1), labels.repeat(batches // 2))
    watch = Stopwatch()
    callbacks: list[pl.Callback] = [watch] if detector is None else [watch, detector]
    trainer(max_epochs=1, val_check_interval=0.5, callbacks=callbacks, num_sanity_val_steps=0).fit(
        Images(name, size), DataLoader(data, batch_size=32), DataLoader(TensorDataset(images, labels), batch_size=32)
    )
    return watch.seconds


def run_overhead(rounds: int, batches: int, size: int) -> None:
    """Print the ratio of training with the detector to training without it."""
    make: dict[str, Callable[[], GrokkingDetector]] = {
        "defaults": lambda: GrokkingDetector("train_loss", "val_loss", figure=False),
        "without kernel": lambda: GrokkingDetector("train_loss", "val_loss", kernel=False, figure=False),
    }
    print(f"one epoch of {batches} batches of 32 images of {size} x {size}, two validations, {rounds} rounds")
    print("| network | detector | time ratio | of which measuring, s |\n| --- | --- | ---: | ---: |")
    for name in ("vit_tiny_patch16_224", "resnet18"):
        ratios: dict[str, list[float]] = {}
        spent: dict[str, list[float]] = {}
        for _ in range(rounds):
            for kind, build in make.items():
                plain = timed(name, size, batches, None)
                detector = build()
                watched = timed(name, size, batches, detector)
                ratios.setdefault(kind, []).append(watched / ((plain + timed(name, size, batches, None)) / 2))
                spent.setdefault(kind, []).append(detector._tracker._spent)
        for kind, found in ratios.items():
            print(
                f"| {name} | {kind} | {statistics.median(found):.3f} | {statistics.median(spent[kind]):.2f} |",
                flush=True,
            )


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["polynomial", "alpha", "modular", "digits", "overhead"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--alphas", type=float, nargs="+", default=[0.1, 0.25, 1.0, 2.0], help="of the sweep")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--size", type=int, default=64)
    options = parser.parse_args()
    for name in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if options.what == "overhead":
        run_overhead(options.rounds, options.batches, options.size)
    elif options.what == "alpha":
        run_alpha(options.seeds, options.alphas)
    else:
        {"polynomial": run_polynomial, "modular": run_modular, "digits": run_digits}[options.what](options.seeds)


if __name__ == "__main__":
    main()
