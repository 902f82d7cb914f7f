"""The results of a run as a file for programs and a table for people."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.cloud_io import get_filesystem
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from rich.table import Table

SECTIONS = ("untrained", "last", "best", "validate", "test")
"""The evaluations of a run that its results may hold, in the order in which they are shown."""


class ResultsTable(Callback):
    """Write the metrics of every task to ``metrics.json`` and print them beside those of the untrained model.

    The file lies in the run's log folder, is renewed after every validation, and holds the metrics at the start of the
    fit (``untrained``), of the last validation (``last``), of the epoch that a monitoring ``ModelCheckpoint`` found
    best (``best``), and of ``trainer.validate`` and ``trainer.test``; with them the seed, the class of the balancer,
    the directions of the metrics, the versions of the packages and the time spent in training.
    ``lightning-mtl compare`` reads it. Any LightningModule that logs ``val/<task>/<metric>`` is understood; the
    directions are known if the module has ``higher_is_better()``.

    Args:
        untrained: Evaluate the model before training on the whole validation set. The callback has Lightning's sanity
            check, which leaves random states as they were, run over all validation batches instead of the first ones.
            False leaves the sanity check as it is and the untrained model out.
        name: Name of the run in tables; runs of one name that differ by their seed are averaged. The command line
            takes the name of the configuration file.
        filename: Name of the file.
        show: Print the table when a fit, validation or test ends.

    Note:
        A resumed run keeps what it knew before, the untrained model included. Nothing is written in a
        ``fast_dev_run``. Metrics of the best epoch are chosen on the validation set and so are optimistic there.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ResultsTable()], accelerator="cpu", logger=False)
    """

    def __init__(
        self, untrained: bool = True, name: str | None = None, filename: str = "metrics.json", show: bool = True
    ) -> None:
        super().__init__()
        self.untrained = untrained
        self.name = name
        self.filename = filename
        self.show = show
        self.results: dict[str, dict[str, Any]] = {}
        self._seconds = 0.0
        self._started: float | None = None

    # ------------------------------------------------------------------ hooks
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Have the sanity check evaluate the whole validation set."""
        if stage == "fit" and self.untrained and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.num_sanity_val_steps = math.inf

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock."""
        self._started = time.monotonic()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._stop_clock()
        self._write(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics of a validation."""
        found = _evaluation(trainer, "val")
        if trainer.sanity_checking:
            if self.untrained:
                self.results.setdefault("untrained", found)
            return
        if trainer.state.fn == "fit":
            self.results["last"] = found
            self._keep_best(trainer, found)
        else:
            self.results["validate"] = found
        self._write(trainer, pl_module)

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the metrics of a test."""
        self.results["test"] = _evaluation(trainer, "test")
        self._write(trainer, pl_module)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Print the table."""
        if not (self.show and trainer.is_global_zero) or stage == "predict":
            return
        report = self._report(pl_module)
        if any(report[section]["metrics"] or report[section]["losses"] for section in SECTIONS if section in report):
            from rich.console import Console

            Console().print(results_table(report))

    def state_dict(self) -> dict[str, Any]:
        """Return the results so far and the time spent."""
        return {"results": self.results, "seconds": self._elapsed()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back the results and the time of a resumed run."""
        self.results = dict(state_dict["results"])
        self._seconds = float(state_dict["seconds"])

    # ------------------------------------------------------------------ parts
    def _elapsed(self) -> float:
        return self._seconds + (0.0 if self._started is None else time.monotonic() - self._started)

    def _stop_clock(self) -> None:
        self._seconds, self._started = self._elapsed(), None

    def _keep_best(self, trainer: pl.Trainer, found: dict[str, Any]) -> None:
        for checkpoint in trainer.checkpoint_callbacks:
            monitor = getattr(checkpoint, "monitor", None)
            value = trainer.callback_metrics.get(monitor) if monitor else None
            if value is None:
                continue
            score = _number(value)
            best = self.results.get("best", {}).get("score")
            sign = 1 if getattr(checkpoint, "mode", "min") == "max" else -1
            if score is not None and (best is None or sign * score > sign * best):
                self.results["best"] = {**found, "monitor": monitor, "score": score}
            return

    def _report(self, module: pl.LightningModule) -> dict[str, Any]:
        import lightning

        import lightning_mtl

        balancer = getattr(module, "balancer", None)
        directions = getattr(module, "higher_is_better", None)
        seed = os.environ.get("PL_GLOBAL_SEED")
        return {
            "name": self.name,
            "model": _class_path(module),
            "balancer": None if balancer is None else _class_path(balancer),
            "seed": None if seed is None else int(seed),
            "seconds": round(self._elapsed(), 3),
            "versions": {
                "lightning_mtl": lightning_mtl.__version__,
                "lightning": lightning.__version__,
                "torch": str(torch.__version__),
                "python": platform.python_version(),
            },
            "higher_is_better": directions() if callable(directions) else {},
            "baselines": getattr(module, "baselines", None) or {},
            **{section: self.results[section] for section in SECTIONS if section in self.results},
        }

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        folder = trainer.log_dir or trainer.default_root_dir  # log_dir is exchanged between the processes
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        files = get_filesystem(folder)
        files.makedirs(folder, exist_ok=True)
        with files.open(os.path.join(folder, self.filename), "w") as file:
            json.dump(self._report(module), file, indent=2)
            file.write("\n")


def results_table(report: Mapping[str, Any]) -> Table:
    """Return the content of ``metrics.json`` as a table, with the change against the untrained model.

    Args:
        report: What :class:`ResultsTable` wrote.

    Returns:
        One row per metric, losses last; arrows give the direction in which a metric improves.
    """
    from rich.table import Table

    sections = [section for section in SECTIONS if section in report]
    best = report.get("best", {})
    if best and "last" in report and best["step"] == report["last"]["step"]:
        sections.remove("best")
    final = next((section for section in ("test", "last", "validate") if section in report), None)
    compared = "untrained" in report and final is not None
    title = " · ".join(str(part) for part in (report["name"], (report["balancer"] or "").rpartition(".")[2]) if part)
    table = Table(title=title or None)
    if "best" in sections:
        table.caption = f"best: epoch {best['epoch']}, by {best['monitor']}"
    for column in ("task", "metric"):
        table.add_column(column, no_wrap=True)
    for section in sections:
        table.add_column(section, justify="right")
    if compared:
        table.add_column("change", justify="right")
    shown = None
    for task, metric, upwards, values in _rows(report, sections):
        if shown not in (None, task):
            table.add_section()
        cells = ["-" if value is None else f"{value:.4g}" for value in values.values()]
        if compared:
            cells.append(_change(values["untrained"], values[str(final)], upwards))
        arrow = {True: " ↑", False: " ↓", None: ""}[upwards]
        table.add_row("" if task == shown else task, metric + arrow, *cells)
        shown = task
    return table


def _rows(
    report: Mapping[str, Any], sections: list[str]
) -> list[tuple[str, str, bool | None, dict[str, float | None]]]:
    rows = []
    tasks = list(dict.fromkeys(task for section in sections for task in report[section]["losses"]))
    tasks += [task for section in sections for task in report[section]["metrics"] if task not in tasks]
    for task in dict.fromkeys(tasks):
        names = dict.fromkeys(name for section in sections for name in report[section]["metrics"].get(task, {}))
        for name in names:
            upwards = report["higher_is_better"].get(task, {}).get(name)
            values = {section: report[section]["metrics"].get(task, {}).get(name) for section in sections}
            rows.append((task, name, upwards, values))
        rows.append((task, "loss", False, {section: report[section]["losses"].get(task) for section in sections}))
    scores = {section: report[section]["delta_m"] for section in sections}
    if any(score is not None for score in scores.values()):
        rows.append(("all", "Δm %", True, scores))
    return rows


def _change(before: float | None, after: float | None, upwards: bool | None) -> str:
    if before is None or after is None:
        return "-"
    text = f"{after - before:+.3g}"
    if upwards is None or before == after:
        return text
    return f"[green]{text}[/green]" if (after > before) == upwards else f"[red]{text}[/red]"


def _evaluation(trainer: pl.Trainer, stage: str) -> dict[str, Any]:
    metrics: dict[str, dict[str, float | None]] = {}
    losses: dict[str, float | None] = {}
    for key, value in trainer.callback_metrics.items():
        prefix, _, rest = key.partition("/")
        task, _, metric = rest.partition("/")
        if prefix != stage or not metric:
            continue
        if metric == "loss":
            losses[task] = _number(value)
        else:
            metrics.setdefault(task, {})[metric] = _number(value)
    score = trainer.callback_metrics.get(f"{stage}/delta_m")
    return {
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
        "metrics": metrics,
        "losses": losses,
        "delta_m": None if score is None else _number(score),
    }


def _number(value: Any) -> float | None:
    """Return a finite number, or None: JSON has no NaN."""
    number = float(value)
    return number if math.isfinite(number) else None


def _class_path(thing: object) -> str:
    return f"{type(thing).__module__}.{type(thing).__qualname__}"
