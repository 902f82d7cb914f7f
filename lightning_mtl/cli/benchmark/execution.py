"""Do the runs of a benchmark, each once, whatever was interrupted before."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped, unused-ignore]

from lightning_mtl.cli.benchmark.plan import CHECKPOINTS, PlannedRun, differences, located
from lightning_mtl.cli.benchmark.worker import CONFIG, FINISHED, write_json

SETTINGS = "settings.json"
FAILED = "failed.json"
LOG = "log.txt"

_ERROR = re.compile(r"^[\w.]*(Error|Exception)\b|: error: ")  # of a traceback, or of the command line

Train = Callable[[PlannedRun], str | None]
"""Trains a run whose folder is prepared; returns what went wrong, None if nothing did."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Args:
        run: The run.
        status: ``"open"`` if it was not started yet, was interrupted, or is in the hands of another process.
        error: Why it failed.
        report: What its ``ResultsTable`` wrote, empty unless it finished.
        record: What it left when it finished: number and time of the steps, versions, machine.
    """

    run: PlannedRun
    status: Literal["finished", "failed", "open"]
    error: str | None
    report: Mapping[str, Any]
    record: Mapping[str, Any]

    def metrics(self, section: str) -> dict[str, dict[str, float]]:
        """Return task -> metric -> value of an evaluation, without those that are no number."""
        found = self.report[section]["metrics"]
        return {
            task: {name: value for name, value in metrics.items() if value is not None}
            for task, metrics in found.items()
        }


def outcome(run: PlannedRun) -> Outcome:
    """Read what became of a run from its folder."""
    if (run.folder / FINISHED).is_file():
        report = _read(run.folder / "metrics.json")
        return Outcome(run, "finished", None, report, _read(run.folder / FINISHED))
    if (run.folder / FAILED).is_file():
        return Outcome(run, "failed", _read(run.folder / FAILED)["error"], {}, {})
    return Outcome(run, "open", None, {}, {})


def check_folders(runs: Sequence[PlannedRun]) -> None:
    """Refuse to go on in folders whose runs had other settings.

    Raises:
        ValueError: If there is one; the message names the settings.
    """
    for run in runs:
        file = run.folder / SETTINGS
        if not file.is_file():
            continue
        changed = differences(_read(file), json.loads(json.dumps(run.settings, default=str)))
        if changed:
            raise ValueError(
                f"benchmark: {run.folder} was trained with other settings:\n  "
                + "\n  ".join(changed)
                + "\nTake another --out, remove that folder to train the run again, or restore the settings."
            )


def perform(run: PlannedRun, planned: Sequence[PlannedRun], train: Train) -> Outcome:
    """Train a run, unless it is finished.

    Args:
        run: The run.
        planned: All runs of the benchmark; its baselines are among them.
        train: How to train it.
    """
    baselines = _baselines(run, planned)
    before = outcome(run)
    if before.status == "finished":
        if baselines and before.report["baselines"] != baselines:
            raise ValueError(
                f"benchmark: {run.folder} was selected by Δm against other single-task models than those here now; "
                "remove that folder to train the run again."
            )
        return before
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / FAILED).unlink(missing_ok=True)
    if baselines is None:
        return _fail(run, "a single-task baseline of this seed failed, so that --select delta_m cannot be done")
    config = located(run, baselines)
    if (run.folder / CONFIG).is_file() and _moved(run):
        shutil.rmtree(run.folder / CHECKPOINTS, ignore_errors=True)  # they know their best one by its old place
    write_json(run.folder / SETTINGS, run.settings)
    (run.folder / CONFIG).write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    error = train(run)
    return outcome(run) if error is None else _fail(run, error)


def _moved(run: PlannedRun) -> bool:
    config = yaml.safe_load((run.folder / CONFIG).read_text(encoding="utf-8"))
    return not isinstance(config, dict) or config["trainer"]["default_root_dir"] != str(run.folder)


def _fail(run: PlannedRun, error: str) -> Outcome:
    write_json(run.folder / FAILED, {"error": error})
    return outcome(run)


def _baselines(run: PlannedRun, planned: Sequence[PlannedRun]) -> dict[str, dict[str, float]] | None:
    """Return the validation metrics of the single-task models of a run's seed, where they select its checkpoint.

    Empty where they do not; None if one of them failed.
    """
    found: dict[str, dict[str, float]] = {}
    if run.select != "delta_m" or run.task is not None:
        return found
    for other in planned:
        if other.task is not None and other.seed == run.seed:
            result = outcome(other)
            if result.status != "finished":
                return None
            found |= result.metrics("best")
    return found


def in_own_process(run: PlannedRun) -> str | None:
    """Train a run in a process of its own, so that nothing that happens to it touches the others.

    What it prints goes to ``log.txt`` in its folder. The process ends when this one does.
    """
    log = run.folder / LOG
    with log.open("ab") as output:
        start = output.tell()
        command = [sys.executable, "-m", "lightning_mtl.cli.benchmark.worker", str(run.folder), str(run.checkpoint)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT) as process:
            status = process.wait()  # when this is interrupted, its stdin is closed, upon which it ends
    if status == 0:
        return None
    if status < 0:
        return f"ended by signal {signal.Signals(-status).name}"
    lines = log.read_bytes()[start:].decode(errors="replace").strip().splitlines() or ["no message"]
    error = next((line for line in reversed(lines) if _ERROR.search(line)), lines[-1])
    return f"exit status {status}: {error.strip()}"


def in_sequence(runs: Sequence[PlannedRun], train: Train, say: Callable[[str], None]) -> None:
    """Do all runs, one behind the other; a failed one does not keep the others from their turn.

    Args:
        runs: The runs, baselines first.
        train: How to train one.
        say: Is told about every run.
    """
    for number, run in enumerate(runs, start=1):
        head = f"[{number}/{len(runs)}] {run.name}"
        if outcome(run).status == "finished":
            perform(run, runs, train)
            say(f"{head}: finished before")
            continue
        say(f"{head}: training")
        start = time.monotonic()
        result = perform(run, runs, train)
        say(f"{head}: {described(result)} after {time.monotonic() - start:.0f} s")


def described(result: Outcome) -> str:
    """Return the status of a run for a message."""
    return f"FAILED, {result.error} (see {result.run.folder / LOG})" if result.error else result.status


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))
