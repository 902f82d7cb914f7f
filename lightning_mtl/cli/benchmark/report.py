"""What a benchmark found: tables, a chart, and how it was made."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_mtl.cli.benchmark.execution import LOG, Outcome
from lightning_mtl.cli.benchmark.worker import machine, versions, write_json
from lightning_mtl.cli.tables import Row, render, select
from lightning_mtl.functional.delta_m import delta_m

RECORD = "benchmark.json"
BASELINE_ROW = "single task"

_SELECTED = {
    "loss": "the epoch with the lowest validation loss (sum over the tasks, without weights)",
    "delta_m": "the epoch with the highest Δm on the validation set; that of a single-task model by validation loss",
    "last": "the last epoch",
}


@dataclass(frozen=True)
class Summary:
    """The numbers of a benchmark.

    Args:
        rows: The single-task baselines, then every method.
        directions: Task -> metric -> whether higher is better.
        per_task: Method -> task -> change against the single-task model of every seed, in percent.
        notes: What must be said with the table.
    """

    rows: Sequence[Row]
    directions: dict[str, dict[str, bool]]
    per_task: dict[str, dict[str, list[float]]]
    notes: Sequence[str]


def summarize(outcomes: Sequence[Outcome]) -> Summary:
    """Turn the outcomes of all runs into numbers: test metrics, Δm within each seed, and time of a step.

    Args:
        outcomes: One a run, baselines first.
    """
    tasks = list(dict.fromkeys(result.run.task for result in outcomes if result.run.task is not None))
    seeds = list(dict.fromkeys(result.run.seed for result in outcomes))
    labels = list(dict.fromkeys(result.run.label for result in outcomes if result.run.task is None))
    finished = {(r.run.label, r.run.seed): r for r in outcomes if r.status == "finished"}
    singles = {(r.run.task, r.run.seed): r for r in finished.values() if r.run.task is not None}
    directions: dict[str, dict[str, bool]] = {}
    for result in finished.values():
        for task, known in result.report["higher_is_better"].items():
            directions.setdefault(task, {}).update(known)

    complete = [seed for seed in seeds if all((task, seed) in singles for task in tasks)]
    baselines = {seed: {task: singles[task, seed].metrics("test").get(task, {}) for task in tasks} for seed in complete}
    reference = next((label for label in labels if label == "EqualWeighting"), labels[0])

    def cost(seed: int, *parts: Outcome) -> list[float]:
        base = finished.get((reference, seed))
        if base is None:
            return []
        return [sum(part.record["seconds_per_step"] for part in parts) / base.record["seconds_per_step"]]

    costs = [ratio for seed in complete for ratio in cost(seed, *(singles[task, seed] for task in tasks))]
    rows = [
        Row(BASELINE_ROW, len(complete), _values(list(baselines.values())), (), costs, competes=False),
    ]
    per_task: dict[str, dict[str, list[float]]] = {}
    for label in labels:
        mine = {seed: finished[label, seed] for seed in seeds if (label, seed) in finished}
        metrics = {seed: result.metrics("test") for seed, result in mine.items()}
        per_task[label] = {}
        changes = []
        for seed in complete:
            if seed not in mine:
                continue
            if (change := delta_m(metrics[seed], baselines[seed], directions)) is not None:
                changes.append(change)
            for task in tasks:
                alone = delta_m({task: metrics[seed].get(task, {})}, baselines[seed], directions)
                if alone is not None:
                    per_task[label].setdefault(task, []).append(alone)
        ratios = [ratio for seed, result in mine.items() for ratio in cost(seed, result)]
        rows.append(Row(label, len(mine), _values(list(metrics.values())), changes, ratios))
    return Summary(rows, directions, per_task, _notes(outcomes, finished, reference))


def _values(found: Sequence[dict[str, dict[str, float]]]) -> dict[tuple[str, str], list[float]]:
    values: dict[tuple[str, str], list[float]] = {}
    for metrics in found:
        for task, named in metrics.items():
            for name, value in named.items():
                values.setdefault((task, name), []).append(value)
    return values


def _notes(outcomes: Sequence[Outcome], finished: dict[tuple[str, int], Outcome], reference: str) -> list[str]:
    steps = [r.record["seconds_per_step"] for (label, _), r in finished.items() if label == reference]
    unit = f" ({statistics.fmean(steps):.3g} s)" if steps else ""
    notes = [
        "Test metrics, mean ± sample standard deviation over the seeds (none for one seed); best mean in bold.",
        "Δm: mean over the tasks of the mean relative change of their metrics against the single-task models of the "
        "same seed, positive is better; taken within each seed, then averaged.",
        f"Tested: {_SELECTED[outcomes[0].run.select]}.",
        f"Step time: median of a training step without loading its batch, as a multiple of {reference}'s{unit}; for "
        "the single-task models, one step of each.",
    ]
    for result in outcomes:
        if result.status == "failed":
            notes.append(f"FAILED: {result.run.name}: {result.error} (see {result.run.folder / LOG}).")
        elif result.status == "open":
            notes.append(f"NOT DONE: {result.run.name}.")
    return notes


def write_tables(summary: Summary, out: Path, patterns: Sequence[str]) -> None:
    """Write ``table.md``, ``table.csv`` and ``table.tex``.

    Args:
        summary: The numbers.
        out: Folder of the benchmark.
        patterns: Which metrics to show; Δm is over all.
    """
    rows = select(summary.rows, patterns)
    notes = "".join(f"- {note}\n" for note in summary.notes)
    comments = "".join(f"% {note}\n" for note in summary.notes)
    (out / "table.md").write_text(f"{render(rows, summary.directions, 'md')}\n{notes}", encoding="utf-8")
    (out / "table.csv").write_text(render(rows, summary.directions, "csv"), encoding="utf-8")
    (out / "table.tex").write_text(comments + render(rows, summary.directions, "latex"), encoding="utf-8")


def write_record(out: Path, command: str, base: dict[str, Any], outcomes: Sequence[Outcome], previous: Any) -> None:
    """Write ``benchmark.json``: command, versions, machine, seeds, and what became of every run.

    Args:
        out: Folder of the benchmark.
        command: The command that was given.
        base: The recipe's configuration without balancer and seed.
        outcomes: One a run.
        previous: What the file held before; its commands are kept.
    """
    commands = [*(previous or {}).get("commands", [])]
    write_json(
        out / RECORD,
        {
            "commands": commands if command in commands else [*commands, command],
            "select": outcomes[0].run.select,
            "seeds": list(dict.fromkeys(result.run.seed for result in outcomes)),
            "versions": versions(),
            "machine": machine(),
            "runs": [_described(result, out) for result in outcomes],
            "config": base,
        },
    )


def _described(result: Outcome, out: Path) -> dict[str, Any]:
    found: dict[str, Any] = {
        "run": result.run.label,
        "seed": result.run.seed,
        "folder": result.run.folder.relative_to(out).as_posix(),
        "status": result.status,
    }
    if result.error is not None:
        found["error"] = result.error
    if result.status == "finished":
        section = "last" if result.run.select == "last" else "best"
        chosen = {key: result.report[section].get(key) for key in ("epoch", "step", "monitor", "score")}
        found |= {"selected": chosen, "seconds": result.report["seconds"], **result.record}
    return found
