"""What the watching callbacks add to the time of a training step.

    python benchmarks/callbacks_overhead.py                       # both networks, 5 minutes on one core
    python benchmarks/callbacks_overhead.py --networks resnet18 --turns 20

Trainers with and without the callback take turns in one process, batch by batch: only one runs at a time, and each time
is CPU time of the process from the start of a batch to the start of the next. A ratio is the median over the turns of
the time with the callback over that of the same turn without; ``no callback`` against itself shows the error.

A callback acts in one of n steps, so the steps in which it acts and those in which it does not are timed apart and
weighed by its default n; these are the rows ``expected``. Writes a line of JSON a row to ``--out``, and prints a table.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
warnings.filterwarnings("ignore")

import logging

import lightning.pytorch as pl
import timm
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_mtl import MultiTaskModule
from lightning_mtl.callbacks import GradientConflict, GrokkingDetector, InstabilityMonitor
from lightning_mtl.nn import TimmEncoder
from lightning_mtl.tasks import MulticlassClassification

CLASSES, TASKS = 10, 3
CADENCES = (10, 50, 100)


class Turns:
    """Lets one of several threads run at a time: all in order, then all in reverse, so that each has all neighbours."""

    def __init__(self, count: int) -> None:
        self.running = list(range(count))
        self.order = list(self.running)
        self.forward = True
        self.condition = threading.Condition()

    def wait(self, me: int) -> None:
        with self.condition:
            self.condition.wait_for(lambda: self.order[0] == me)

    def pass_on(self) -> None:
        with self.condition:
            self._next()

    def leave(self, me: int) -> None:
        with self.condition:
            self.running.remove(me)
            self.order = [self.order[0], *(other for other in self.order[1:] if other != me)]
            self._next()

    def _next(self) -> None:
        self.order.pop(0)
        if not self.order:
            self.forward = not self.forward
            self.order = self.running[:: 1 if self.forward else -1]
        self.condition.notify_all()


class Timer(pl.Callback):
    """Times every batch, and gives the turn to the next Trainer between two batches; the first of the callbacks."""

    def __init__(self, turns: Turns, me: int) -> None:
        self.turns, self.me = turns, me
        self.seconds: list[float] = []
        self.start: float | None = None

    def on_train_batch_start(self, *_: Any) -> None:
        if self.start is not None:
            self.seconds.append(time.process_time() - self.start)
        self.turns.pass_on()
        self.turns.wait(self.me)
        self.start = time.process_time()

    def on_validation_start(self, *_: Any) -> None:
        if self.start is not None:
            self.seconds.append(time.process_time() - self.start)
        self.start = None


class Around(pl.Callback):
    """Seconds that the callback between two of these takes at the end of a validation."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_validation_end(self, *_: Any) -> None:
        self.marks.append(time.process_time())


class Images(pl.LightningModule):
    """A classifier that knows nothing of the callbacks."""

    def __init__(self, name: str, size: int) -> None:
        super().__init__()
        options = {"img_size": size} if "vit" in name else {}
        self.network = timm.create_model(name, num_classes=CLASSES, **options)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.network(inputs)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def several_tasks(name: str, size: int) -> MultiTaskModule:
    """Return a module with equal weights, whose tasks all classify."""
    encoder = TimmEncoder(name, img_size=size if "vit" in name else None)
    return MultiTaskModule(encoder, {f"t{k}": MulticlassClassification(CLASSES) for k in range(TASKS)})


def batches(count: int, size: int, batch_size: int, tasks: bool) -> DataLoader[Any]:
    """Return a loader of so many batches of random images."""
    data = TensorDataset(torch.randn(batch_size, 3, size, size), torch.randint(0, CLASSES, (batch_size,)))

    def collate(rows: list[Any]) -> Any:
        images, labels = torch.stack([row[0] for row in rows]), torch.stack([row[1] for row in rows])
        return images, {f"t{k}": labels for k in range(TASKS)} if tasks else labels

    repeated = torch.utils.data.ConcatDataset([data] * count)
    return DataLoader(repeated, batch_size=batch_size, collate_fn=collate)


def take_turns(
    make: Callable[[], pl.LightningModule],
    callbacks: list[list[pl.Callback]],
    turns: int,
    loader: Callable[[int], DataLoader[Any]],
    validate_every: int | None = None,
) -> list[list[float]]:
    """Return the seconds of every step of Trainers with these callbacks, all with the same initial weights."""
    order = Turns(len(callbacks))
    timers = [Timer(order, me) for me in range(len(callbacks))]
    failed: list[BaseException] = []

    def fit(me: int) -> None:
        order.wait(me)
        try:
            torch.manual_seed(0)
            trainer = pl.Trainer(
                accelerator="cpu",
                max_epochs=1,
                num_sanity_val_steps=0,
                val_check_interval=validate_every,
                limit_val_batches=0 if validate_every is None else 1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[timers[me], *callbacks[me]],
            )
            trainer.fit(make(), loader(turns + 1), loader(1))
        except BaseException as error:
            failed.append(error)
        finally:
            order.leave(me)

    threads = [threading.Thread(target=fit, args=(me,)) for me in range(len(callbacks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    return [timer.seconds for timer in timers]


def ratio(watched: list[float], plain: list[float], steps: range | list[int]) -> float:
    """Return the median over the turns of the time with over the time without."""
    return statistics.median(watched[step] / plain[step] for step in steps)


def watch(name: str, size: int, batch_size: int, turns: int) -> dict[str, float]:
    """Time InstabilityMonitor: at its default, and in every step."""
    default = InstabilityMonitor()
    plain, control, silent, acting = take_turns(
        lambda: Images(name, size),
        [[], [], [default], [InstabilityMonitor(every_n_steps=1)]],
        turns,
        lambda count: batches(count, size, batch_size, tasks=False),
    )
    n = default.every_n_steps
    quiet = [step for step in range(2, turns) if (step + 1) % n]
    silent_ratio, acting_ratio = ratio(silent, plain, quiet), ratio(acting, plain, range(2, turns))
    return {
        "step": statistics.median(plain[2:]),
        "no callback": ratio(control, plain, range(2, turns)),
        "InstabilityMonitor: silent step": silent_ratio,
        "InstabilityMonitor: measured step": acting_ratio,
        f"InstabilityMonitor: expected at n = {n}": ((n - 1) * silent_ratio + acting_ratio) / n,
    }


def detect(name: str, size: int, batch_size: int, turns: int) -> dict[str, float]:
    """Time GrokkingDetector: steps, and its measurements of the kernel, of which it makes as many as fit into 2 %."""
    before, after = Around(), Around()
    detector = GrokkingDetector("train_loss", "val_loss", kernel_every_n_checks=1, figure=False)
    plain, watched = take_turns(
        lambda: Images(name, size),
        [[], [before, detector, after]],
        turns,
        lambda count: batches(count, size, batch_size, tasks=False),
        validate_every=max(2, turns // 3),
    )
    found = ratio(watched, plain, range(2, turns))
    step = statistics.median(plain[2:])
    measurement = statistics.median(b - a for a, b in zip(before.marks, after.marks, strict=True))
    return {
        "GrokkingDetector: step": found,
        "GrokkingDetector: measurement, steps": measurement / step,
        "GrokkingDetector: first measurement, steps": (watched[0] - plain[0]) / step,
        "GrokkingDetector: expected at most": found + 0.02,
    }


def conflict(name: str, size: int, batch_size: int, turns: int) -> dict[str, float]:
    """Time GradientConflict in every step, and weigh it by n."""
    plain, acting, silent = take_turns(
        lambda: several_tasks(name, size),
        [[], [GradientConflict(every_n_steps=1)], [GradientConflict(every_n_steps=10**6)]],
        turns,
        lambda count: batches(count, size, batch_size, tasks=True),
    )
    acting_ratio, silent_ratio = ratio(acting, plain, range(2, turns)), ratio(silent, plain, range(2, turns))
    found = {
        f"GradientConflict, K = {TASKS}: measured step": acting_ratio,
        f"GradientConflict, K = {TASKS}: silent step": silent_ratio,
    }
    for n in CADENCES:
        found[f"GradientConflict, K = {TASKS}: expected at n = {n}"] = ((n - 1) * silent_ratio + acting_ratio) / n
    return found


def main() -> None:
    """Print a table of ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["vit_tiny_patch16_224", "resnet18"])
    parser.add_argument("--parts", nargs="+", default=["watch", "detect", "conflict"])
    parser.add_argument("--turns", type=int, default=100, help="of the InstabilityMonitor; the others take a third")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path("runs/callbacks_overhead.jsonl"))
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for package in ("lightning.pytorch", "pytorch_lightning"):
        logging.getLogger(package).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    parts = {"watch": (watch, options.turns), "detect": (detect, options.turns // 3)}
    parts["conflict"] = conflict, options.turns // 3
    rows: dict[str, dict[str, float]] = {}
    for name in options.networks:
        for part in options.parts:
            measure, turns = parts[part]
            for what, value in measure(name, options.size, options.batch_size, turns).items():
                rows.setdefault(what, {})[name] = value
                with options.out.open("a") as file:
                    file.write(json.dumps({"network": name, "what": what, "value": value}) + "\n")
                print(f"{name}: {what} {value:.4f}", flush=True)
    print(f"\n{options.size} x {options.size}, batch {options.batch_size}, {options.turns} turns, one thread\n")
    print(f"| | {' | '.join(options.networks)} |\n| --- |{' ---: |' * len(options.networks)}")
    for what, values in rows.items():
        print(f"| {what} | {' | '.join(f'{values[name]:.3f}' for name in options.networks)} |")


if __name__ == "__main__":
    main()
