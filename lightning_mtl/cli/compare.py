"""``lightning-mtl compare``: finished runs side by side."""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped, unused-ignore]

from lightning_mtl.callbacks.results_table import SECTIONS
from lightning_mtl.cli.tables import Directions, Row, render, select
from lightning_mtl.functional.delta_m import delta_m

Metrics = Mapping[str, Mapping[str, float]]

_RUN_SPECIFIC = ("seed_everything", "config", "ckpt_path", "results")
_RUN_SPECIFIC_TRAINER = ("default_root_dir", "logger", "callbacks")


@dataclass(frozen=True)
class Run:
    """One finished run.

    Args:
        folder: Where its results were found.
        name: Its name in tables.
        balancer: Class path of its balancer, None if unknown.
        seed: Its seed, None if unknown.
        evaluations: Section (``"last"``, ``"test"``, ...) -> task -> metric -> value.
        higher_is_better: Task -> metric -> direction.
        baselines: Task -> metric -> value of single-task models that it knew.
        settings: Its configuration without what may differ between seeds, as text; None if unknown.
    """

    folder: Path
    name: str
    balancer: str | None
    seed: int | None
    evaluations: Mapping[str, Metrics]
    higher_is_better: Directions = field(default_factory=dict)
    baselines: Metrics = field(default_factory=dict)
    settings: str | None = None


def main(args: Sequence[str]) -> int:
    """Print the comparison.

    Args:
        args: Words of the command line behind ``compare``.

    Returns:
        Exit status 0.

    Raises:
        SystemExit: With status 2 and one message, if a folder holds no results or the options do not fit.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-mtl compare",
        description="Compare finished runs by the metrics.json (or metrics.csv) in their folders. Runs of one "
        "configuration with several seeds become one row, mean and sample standard deviation.",
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="folder of a run, or above several")
    parser.add_argument("--format", choices=("table", "md", "csv", "latex"), default="table", help="of the output")
    parser.add_argument(
        "--section",
        choices=SECTIONS,
        help="which evaluation to compare; by default the test if all runs have one, otherwise the last validation",
    )
    parser.add_argument(
        "--baselines",
        nargs="+",
        type=Path,
        default=[],
        metavar="PATH",
        help="folders of single-task runs, or JSON files {task: {metric: value}}, for the column of changes",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="which metrics to show, for example '*/miou' 'depth/rmse'; the changes are over all",
    )
    options = parser.parse_args(args)
    try:
        runs = load_runs(options.runs)
        section = options.section or common_section(runs)
        directions = join_directions(runs)
        baselines: dict[str, dict[str, float]] = {}
        for path in options.baselines:
            if path.suffix == ".json" and path.name != "metrics.json":
                baselines |= read_baselines(path)
            else:
                single = load_runs([path])
                directions |= {**join_directions(single), **directions}
                baselines |= average(single, section if options.section else common_section(single))
        rows = make_rows(runs, section, baselines or None, directions)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    print(render(select(rows, options.metrics), directions, options.format), end="")
    if options.baselines and not any(row.delta_m for row in rows):
        print("compare: no metric has a baseline and a known direction, so there is no Δm.", file=sys.stderr)
    return 0


# ---------------------------------------------------------------------- reading
def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Return the runs in or below these folders.

    Raises:
        FileNotFoundError: If one of them holds no results.
        ValueError: If a file cannot be read.
    """
    runs = []
    for folder in folders:
        files = _result_files(folder)
        if not files:
            raise FileNotFoundError(
                f"{folder}: no metrics.json or metrics.csv in or below this folder; name the log folder of a run with "
                "the ResultsTable callback or a CSVLogger."
            )
        runs += [_read_json(file) if file.suffix == ".json" else _read_csv(file) for file in files]
    return runs


def _result_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = {file.parent: file for name in ("metrics.csv", "metrics.json") for file in path.rglob(name)}
    return [found[folder] for folder in sorted(found)]  # the JSON file where there are both


def _read_json(file: Path) -> Run:
    try:
        report = json.loads(file.read_text(encoding="utf-8"))
        evaluations = {
            section: {
                task: {name: value for name, value in metrics.items() if value is not None}
                for task, metrics in report[section]["metrics"].items()
            }
            for section in SECTIONS
            if section in report
        }
        return Run(
            folder=file.parent,
            name=report["name"] or file.parent.name,
            balancer=report["balancer"],
            seed=report["seed"],
            evaluations=evaluations,
            higher_is_better=report["higher_is_better"],
            baselines=report["baselines"],
            settings=_settings(_read_config(file.parent)),
        )
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file}: is not what the ResultsTable callback writes ({error!r}); run it again.") from error


def _read_csv(file: Path) -> Run:
    """Read what a CSVLogger wrote: the last value of every column ``val/<task>/<metric>`` and ``test/...``."""
    evaluations: dict[str, dict[str, dict[str, float]]] = {}
    with file.open(newline="", encoding="utf-8") as lines:
        for line in csv.DictReader(lines):
            for column, value in line.items():
                stage, _, rest = (column or "").partition("/")
                task, _, metric = rest.partition("/")
                if value and metric and metric != "loss" and stage in ("val", "test"):
                    section = {"val": "last", "test": "test"}[stage]
                    evaluations.setdefault(section, {}).setdefault(task, {})[metric] = float(value)
    config = _read_config(file.parent)
    return Run(
        folder=file.parent,
        name=file.parent.name,
        balancer=None,
        seed=config.get("seed_everything"),
        evaluations=evaluations,
        settings=_settings(config),
    )


def _read_config(folder: Path) -> dict[str, Any]:
    """Return the configuration that LightningCLI stored with a run, empty if there is none."""
    file = folder / "config.yaml"
    if not file.is_file():
        return {}
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: is no YAML file ({error}).") from error
    return config if isinstance(config, dict) else {}


def _settings(config: Mapping[str, Any]) -> str | None:
    """Return a configuration as text, without what differs between seeds of one configuration; None if empty."""
    kept = {key: value for key, value in config.items() if key not in _RUN_SPECIFIC}
    if isinstance(kept.get("trainer"), dict):
        kept["trainer"] = {k: v for k, v in kept["trainer"].items() if k not in _RUN_SPECIFIC_TRAINER}
    return json.dumps(kept, sort_keys=True, default=str) if kept else None


def read_baselines(file: Path) -> dict[str, dict[str, float]]:
    """Read ``{task: {metric: value}}`` from a JSON file.

    Raises:
        ValueError: If the file has another form.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {
            str(task): {str(name): float(value) for name, value in metrics.items()} for task, metrics in content.items()
        }
    except (json.JSONDecodeError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{file}: must be a JSON file {{task: {{metric: value}}}} ({error}).") from error


# ---------------------------------------------------------------------- arithmetic
def common_section(runs: Sequence[Run]) -> str:
    """Return the evaluation that all runs have: the test, else the last validation, else a separate one.

    Raises:
        ValueError: If there is none.
    """
    for section in ("test", "last", "validate"):
        if all(section in run.evaluations for run in runs):
            return section
    raise ValueError("these runs have no evaluation in common: some have a test, others a validation; use --section.")


def join_directions(runs: Sequence[Run]) -> dict[str, dict[str, bool]]:
    """Return what any of the runs knows about the direction of a metric."""
    joined: dict[str, dict[str, bool]] = {}
    for run in runs:
        for task, metrics in run.higher_is_better.items():
            joined.setdefault(task, {}).update(metrics)
    return joined


def average(runs: Sequence[Run], section: str) -> dict[str, dict[str, float]]:
    """Return the mean of every metric over the runs that have it."""
    collected: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for task, metrics in run.evaluations.get(section, {}).items():
            for name, value in metrics.items():
                collected.setdefault(task, {}).setdefault(name, []).append(value)
    return {
        task: {name: statistics.fmean(found) for name, found in metrics.items()} for task, metrics in collected.items()
    }


def make_rows(runs: Sequence[Run], section: str, baselines: Metrics | None, directions: Directions) -> list[Row]:
    """Put the seeds of one configuration together.

    Runs belong together if their stored configurations are equal but for the seed and where they log; without stored
    configurations, if they share name and balancer. In both cases all seeds must be known and different.

    Args:
        runs: The runs, in order.
        section: The evaluation to compare.
        baselines: Single-task values; None takes those that each run knew.
        directions: Task -> metric -> whether higher is better.

    Raises:
        ValueError: If a run has no such evaluation.
    """
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        if section not in run.evaluations:
            raise ValueError(f"{run.folder}: has no evaluation {section!r}, only {list(run.evaluations)}.")
        key: tuple[Any, ...] = (run.settings,) if run.settings else (run.name, run.balancer)
        if run.seed is None or any(other.seed == run.seed for other in groups.get(key, [])):
            key = (*key, run.folder)  # a repetition says nothing about the spread between seeds
        groups.setdefault(key, []).append(run)
    labels = _labels(list(groups.values()))
    rows = []
    for label, members in zip(labels, groups.values(), strict=True):
        values: dict[tuple[str, str], list[float]] = {}
        scores = []
        for run in members:
            found = run.evaluations[section]
            for task, metrics in found.items():
                for name, value in metrics.items():
                    values.setdefault((task, name), []).append(value)
            known = {
                task: {name: value for name, value in metrics.items() if name in directions.get(task, {})}
                for task, metrics in found.items()
            }
            score = delta_m(known, run.baselines if baselines is None else baselines, directions)
            if score is not None:
                scores.append(score)
        rows.append(Row(label, len(members), values, scores))
    return rows


def _labels(groups: Sequence[Sequence[Run]]) -> list[str]:
    """Name groups as shortly as tells them apart: by name, with the balancer, with the folder."""
    names = [group[0].name for group in groups]
    balancers = [(group[0].balancer or "").rpartition(".")[2] for group in groups]
    longer = [f"{name} ({balancer})" if balancer else name for name, balancer in zip(names, balancers, strict=True)]
    folders = [str(group[0].folder) for group in groups]
    chosen = []
    for name, long, folder in zip(names, longer, folders, strict=True):
        unique = [label for label, all_labels in ((name, names), (long, longer)) if all_labels.count(label) == 1]
        chosen.append(unique[0] if unique else f"{name}, {folder}")
    return chosen
