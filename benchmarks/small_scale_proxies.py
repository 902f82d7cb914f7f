"""Instabilities of large Transformers in models that train in seconds, and the remedies (Wortsman et al., ICLR 2024).

    python benchmarks/small_scale_proxies.py fast        # query-key normalisation, three seeds, 18 runs
    python benchmarks/small_scale_proxies.py z_loss      # log Z under three coefficients
    python benchmarks/small_scale_proxies.py epsilon     # Adam's epsilon
    python benchmarks/small_scale_proxies.py forecast    # attention logits of a model from four smaller ones
    python benchmarks/small_scale_proxies.py large       # d=64, 3 layers, 300 steps, 8 runs

Every run is a line of ``small_scale_proxies.csv`` in ``--folder``; started again, a sweep goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import time
import warnings
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import logging

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_mtl.callbacks import InstabilityMonitor
from lightning_mtl.data import MarkovCopy
from lightning_mtl.functional import IndependentAdamW
from lightning_mtl.losses import log_partition_penalty
from lightning_mtl.nn import TinyDecoder
from lightning_mtl.scaling import AttentionLogitForecast, LRSensitivity

BATCH, VOCABULARY = 16, 32
FAST = {"dim": 32, "depth": 2, "num_heads": 2, "length": 16, "steps": 150}
LARGE = {"dim": 64, "depth": 3, "num_heads": 2, "length": 24, "steps": 300}


class Proxy(pl.LightningModule):
    """A next-token model with the paper's defaults; it knows nothing of the monitor."""

    def __init__(
        self, dim: int, depth: int, num_heads: int, steps: int, rate: float, qk_norm: bool, z_loss: float, eps: float
    ) -> None:
        super().__init__()
        self.net = TinyDecoder(VOCABULARY, dim, depth, num_heads, qk_norm="layernorm" if qk_norm else None)
        self.steps, self.rate, self.z_loss, self.eps = steps, rate, z_loss, eps

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        tokens, targets = batch
        logits = self.net(tokens)
        loss = F.cross_entropy(logits.transpose(1, 2), targets["next_token"])
        return loss + self.z_loss * log_partition_penalty(logits, dim=-1)

    def configure_optimizers(self) -> Any:
        optimizer = IndependentAdamW(self.parameters(), lr=self.rate, eps=self.eps, weight_decay=1e-4)
        warm_up = max(1, round(0.05 * self.steps))
        lowest = 1e-5 / self.rate

        def schedule(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            done = (step - warm_up) / (self.steps - warm_up)
            return lowest + (1 - lowest) * 0.5 * (1 + math.cos(math.pi * done))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @torch.no_grad()
    def held_out_loss(self, text: MarkovCopy) -> float:
        tokens = text.tokens
        return float(F.cross_entropy(self.net(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:]))


def train(
    rate: float,
    seed: int,
    qk_norm: bool = True,
    z_loss: float = 1e-4,
    eps: float = 1e-8,
    dim: int = 32,
    depth: int = 2,
    num_heads: int = 2,
    length: int = 16,
    steps: int = 150,
    read_at: int = 30,
    every: int = 5,
) -> dict[str, float]:
    """Train one model under the monitor; return its losses and what the monitor saw."""
    pl.seed_everything(seed, verbose=False)
    module = Proxy(dim, depth, num_heads, steps, rate, qk_norm, z_loss, eps)
    text = MarkovCopy(steps * BATCH, vocab_size=VOCABULARY, length=length, seed=seed)
    held_out = MarkovCopy(256, "val", VOCABULARY, length=length, seed=seed)
    initial = module.held_out_loss(held_out)
    monitor = InstabilityMonitor(every_n_steps=every)
    start = time.process_time()
    pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[monitor],
    ).fit(module, DataLoader(text, batch_size=BATCH))
    history = monitor.history
    first = monitor.summary()["first_alarm"]
    return {
        "loss": module.held_out_loss(held_out),
        "initial_loss": initial,
        "num_params": module.net.num_parameters(),
        "max_attention_logit": history.at("max_attention_logit", read_at),
        "largest_attention_logit": max(value for _, value in history.curves["max_attention_logit"]),
        "attention_entropy": history.latest("min_attention_entropy"),
        "log_z": history.latest("max_abs_log_z"),
        "forecast_at": first.get("forecast", math.nan),
        "critical_at": first.get("attention (critical)", math.nan),
        "seconds": time.process_time() - start,
    }


def show(row: Any) -> str:
    """Return the numbers of a run in short."""
    return (
        f"loss {row['loss']:.3f}  max logit {row['largest_attention_logit']:.4g}"
        f"  early {row['max_attention_logit']:.4g}"
        f"  entropy {row['attention_entropy']:.2g}  |log Z| {row['log_z']:.2f}  forecast at {row['forecast_at']:.0f}, "
        f"critical at {row['critical_at']:.0f}  {row['seconds']:.1f} s"
    )


def normalisation(folder: Path, name: str, setting: dict[str, int], rates: list[float], seeds: list[int]) -> None:
    """Compare runs with and without query-key normalisation over learning rates."""

    def run(scale: str, rate: float, seed: int) -> dict[str, float]:
        row = train(rate, seed, qk_norm=scale == "qk_norm", **setting, read_at=setting["steps"] // 5)
        print(f"{scale:8} lr {rate:<6g} seed {seed}  {show(row)}", flush=True)
        return row

    result = LRSensitivity(run, ["qk_norm", "without"], rates, seeds, path=folder / f"{name}.csv").run()
    result.plot().savefig(folder / f"{name}.png", dpi=120)
    print("| seed | losses with | max logit | sensitivity | losses without | max logit | sensitivity | ratio |")
    print("| --- | --- | ---: | ---: | --- | ---: | ---: | ---: |")
    for seed in seeds:
        of_seed = type(result)(tuple(row for row in result.rows if row["seed"] == seed), None)
        cells, ratio = [], 1.0
        for scale in ("qk_norm", "without"):
            rows = [row for row in of_seed.rows if row["scale"] == scale]
            losses = " ".join(f"{row['loss']:.2f}" for row in rows)
            value = of_seed.sensitivity(scale)
            ratio = value / ratio if scale == "without" else value
            cells += [losses, f"{rows[-1]['largest_attention_logit']:.0f}", f"{value:.3f}"]
        print(f"| {seed} | {' | '.join(cells)} | {ratio:.2f} |")
    print(result.table())


def forecast(folder: Path) -> None:
    """Predict the logits of a model from four smaller ones, at three learning rates and two reading steps."""
    widths, target = [12, 24, 48, 92], 152
    for read_at in (20, 40):

        def run(scale: int, rate: float, seed: int, read_at: int = read_at) -> dict[str, float]:
            return train(rate, seed, qk_norm=False, dim=scale, steps=150, read_at=read_at, every=20)

        path = folder / f"forecast_{read_at}.csv"
        result = LRSensitivity(run, [*widths, target], [0.01, 0.03, 0.1], path=path).run()
        small = [row for row in result.rows if row["scale"] != str(target)]
        predicted = AttentionLogitForecast(small)
        for row in (row for row in result.rows if row["scale"] == str(target)):
            found = predicted.predict(row["num_params"], row["learning_rate"])
            print(
                f"step {read_at} lr {row['learning_rate']:g}: quadratic {found.quadratic:.4g}, line {found.line:.4g}, "
                f"measured {row['max_attention_logit']:.4g} at {row['num_params']:.3g} parameters; run's largest "
                f"{row['largest_attention_logit']:.4g}",
                flush=True,
            )


def main() -> None:
    """Run one of the experiments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["fast", "z_loss", "epsilon", "forecast", "large"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/small_scale_proxies"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    if options.experiment == "fast":
        normalisation(options.folder, "fast", FAST, [3e-3, 3e-2, 3e-1], options.seeds)
    elif options.experiment == "large":
        normalisation(options.folder, "large", LARGE, [1e-3, 1e-2, 1e-1, 3e-1], options.seeds[:1])
    elif options.experiment == "forecast":
        forecast(options.folder)
    elif options.experiment == "z_loss":
        for coefficient in (0.0, 1e-4, 1e-2):
            rows = [train(0.1, seed, z_loss=coefficient) for seed in options.seeds]
            print(f"coefficient {coefficient:g}: " + "; ".join(show(row) for row in rows), flush=True)
    else:
        for eps in (1e-8, 1e-3, 1e-2, 1e-1):
            losses = [train(1e-2, seed, eps=eps)["loss"] for seed in options.seeds]
            print(f"eps {eps:g}: {losses}, mean {statistics.mean(losses):.3f}", flush=True)


if __name__ == "__main__":
    main()
