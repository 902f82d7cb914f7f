"""``lightning-mtl affinity``: groups of tasks from the affinities that a run has measured."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped, unused-ignore]
from torch import Tensor

from lightning_mtl.callbacks.affinity.table import FILE_NAME, AffinityTable, read_affinity
from lightning_mtl.cli.task_subset import Config, callbacks, model_tasks, restrict_tasks
from lightning_mtl.functional.interval_clustering import interval_clustering
from lightning_mtl.functional.task_grouping import (
    TaskGrouping,
    affinities_onto,
    select_task_groups,
    spectral_task_groups,
)

_PREFERRED = ("lookahead", "mean_cosine", "cosine")
_METHODS = ("branch-and-bound", "interval", "spectral")
_WATCHER = "TaskAffinity"


def main(args: Sequence[str]) -> int:
    """Print the groups, and write a recipe for each.

    Args:
        args: Words of the command line behind ``affinity``.

    Returns:
        Exit status 0.

    Raises:
        SystemExit: With status 2 and one message, if the files of the run or the options do not fit.
    """
    parser = _parser()
    options = parser.parse_args(args)
    try:
        folder = find_run(options.run)
        table = read_affinity(folder / FILE_NAME)
        measure, matrix = choose_measure(table, options.measure)
        check_complete(table.tasks, matrix, measure, folder / FILE_NAME)
        if not 1 <= options.budget <= len(table.tasks):
            raise ValueError(
                f"--budget must be between 1 and the number of tasks, {len(table.tasks)}, got {options.budget}; more "
                "networks than tasks are of no use."
            )
        alone = self_affinities(options.self_affinity, matrix)
        grouping = group(matrix, options.budget, options.method, alone)
        config = None if options.no_recipes else read_config(folder, table.tasks)
        print(described(table.tasks, matrix, grouping, measure, alone))
        if config is not None:
            for file in write_recipes(config, table.tasks, grouping, options.out or folder / "groups", options.force):
                print(file)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-mtl affinity",
        description="Choose which tasks to train together from the affinity.csv that the TaskAffinity callback wrote, "
        "and write a recipe for each group.",
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="log folder of the run, or one above it")
    parser.add_argument("--budget", type=int, required=True, help="largest number of networks, at most one per task")
    parser.add_argument(
        "--method",
        choices=_METHODS,
        default=_METHODS[0],
        help="branch-and-bound: exact choice of groups that may overlap (TAG); interval: contiguous groups of ordered "
        "tasks, such as noise levels, exact; spectral: spectral clustering, for very many tasks",
    )
    parser.add_argument(
        "--measure",
        choices=_PREFERRED,
        help="which affinity to use; by default the first of these that was measured",
    )
    parser.add_argument(
        "--self-affinity",
        default="none",
        metavar="VALUE",
        help="what a network for one task alone counts in branch-and-bound: 'none' never trains one (TAG's code), "
        "'diagonal' takes the task's affinity onto itself, or a number, for example 0",
    )
    parser.add_argument("--out", type=Path, help="folder of the recipes; by default `groups` in the run's folder")
    parser.add_argument("--force", action="store_true", help="overwrite recipes that exist")
    parser.add_argument("--no-recipes", action="store_true", help="print the groups only; needs no config.yaml")
    return parser


# ---------------------------------------------------------------------- reading
def find_run(folder: Path) -> Path:
    """Return the folder of the one affinity file in or below a folder.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If there are several.
    """
    if (folder / FILE_NAME).is_file():
        return folder
    found = sorted(file.parent for file in folder.rglob(FILE_NAME))
    if not found:
        raise FileNotFoundError(
            f"{folder}: no {FILE_NAME} in or below this folder; train with the callback "
            "lightning_mtl.callbacks.TaskAffinity and name the log folder of that run."
        )
    if len(found) > 1:
        raise ValueError(f"{folder}: holds several runs, name one of {', '.join(map(str, found))}.")
    return found[0]


def choose_measure(table: AffinityTable, wanted: str | None) -> tuple[str, Tensor]:
    """Return the measure to use and its matrix.

    Raises:
        ValueError: If it was not measured.
    """
    measured = [measure for measure, layer in table.values if not layer]
    for measure in _PREFERRED if wanted is None else [wanted]:
        if measure in measured:
            return measure, table.values[measure, ""]
    raise ValueError(
        f"{FILE_NAME}: has no {wanted or 'known measure'}, only {', '.join(measured) or 'single layers'}; name it in "
        "measures= of TaskAffinity, or choose another --measure."
    )


def check_complete(tasks: Sequence[str], matrix: Tensor, measure: str, file: Path) -> None:
    """Raise ValueError if there are no two tasks, or a pair of them was never measured."""
    if len(tasks) < 2:
        raise ValueError(f"{file}: must hold at least two tasks, got {list(tasks)}; there is nothing to group.")
    for i, source in enumerate(tasks):
        for j, target in enumerate(tasks):
            if i != j and not math.isfinite(matrix[i, j]):
                raise ValueError(
                    f"{file}: the {measure} affinity of {source!r} onto {target!r} is {float(matrix[i, j])}, so the "
                    "two were never measured together; train on batches with labels of both, look more often "
                    "(every_n_steps), or take another --measure."
                )


def read_config(folder: Path, tasks: Sequence[str]) -> Config:
    """Return the configuration of a run.

    Raises:
        FileNotFoundError: If it has none.
        ValueError: If it cannot be read, or its tasks are not these.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file}: there is no such file, so no recipes can be written; train with `lightning-mtl fit`, or take "
            "--no-recipes for the groups alone."
        )
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: is no YAML file ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: must hold a configuration, got {type(config).__name__}; take --no-recipes.")
    known = model_tasks(config)
    if set(known) != set(tasks):
        raise ValueError(
            f"{FILE_NAME} has the tasks {sorted(set(tasks) - set(known))}, which config.yaml lacks, and lacks "
            f"{sorted(set(known) - set(tasks))}; in {folder} are files of two different runs: train again, or take "
            "--no-recipes."
        )
    return config


# ---------------------------------------------------------------------- grouping
def self_affinities(text: str, matrix: Tensor) -> list[float] | None:
    """Return what each task counts alone.

    Raises:
        ValueError: If the text is neither ``none`` nor ``diagonal`` nor a finite number, or the diagonal is not known.
    """
    if text == "none":
        return None
    if text == "diagonal":
        values: list[float] = matrix.diagonal().tolist()
        if not all(map(math.isfinite, values)):
            raise ValueError(
                "--self-affinity diagonal: a task was never measured with itself; take 'none' or a number."
            )
        return values
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"--self-affinity must be 'none', 'diagonal' or a finite number, got {text!r}.")
    return [value] * len(matrix)


def group(matrix: Tensor, budget: int, method: str, alone: Sequence[float] | None) -> TaskGrouping:
    """Return the groups of a method.

    Args:
        matrix: Affinities, rows are sources.
        budget: Number of groups; the largest one for ``branch-and-bound``.
        method: ``branch-and-bound``, ``interval`` or ``spectral``.
        alone: What each task counts alone.
    """
    if method == "branch-and-bound":
        return select_task_groups(matrix, budget, alone)
    if method == "interval":
        pairs = torch.where(torch.eye(len(matrix), dtype=torch.bool), 0, (matrix + matrix.T) / 2)
        groups = tuple(tuple(range(a, b + 1)) for a, b in interval_clustering(affinity=pairs, k=budget))
    else:
        groups = spectral_task_groups(matrix, budget)
    score = sum(sum(affinities_onto(matrix, members, alone).values()) for members in groups)
    return TaskGrouping(groups, groups, score)


def described(
    tasks: Sequence[str], matrix: Tensor, grouping: TaskGrouping, measure: str, alone: Sequence[float] | None
) -> str:
    """Return the groups as text, with the mean affinity of the group onto every task."""
    total = f"; sum over the tasks: {_number(grouping.score)}" if math.isfinite(grouping.score) else ""
    lines = [f"{measure} affinity of {len(tasks)} tasks{total}"]
    for number, (members, served) in enumerate(zip(grouping.groups, grouping.serves, strict=True), 1):
        onto = affinities_onto(matrix, members, alone)
        lines.append(f"group {number}: train {', '.join(tasks[j] for j in members)}")
        lines.append("  for " + ", ".join(f"{tasks[j]} ({_number(onto[j])})" for j in served))
    return "\n".join(lines)


def _number(value: float) -> str:
    return f"{value:+.4g}" if math.isfinite(value) else "alone"


# ---------------------------------------------------------------------- recipes
def write_recipes(
    config: Mapping[str, Any], tasks: Sequence[str], grouping: TaskGrouping, out: Path, force: bool
) -> list[Path]:
    """Write one recipe for each group and return the files.

    Raises:
        FileExistsError: If one of them exists and ``force`` is not set.
    """
    files = [out / f"group{number}.yaml" for number in range(1, len(grouping.groups) + 1)]
    existing = [file for file in files if file.exists()]
    if existing and not force:
        raise FileExistsError(f"{existing[0]} exists; give another --out, or --force to overwrite it.")
    out.mkdir(parents=True, exist_ok=True)
    for file, members, served in zip(files, grouping.groups, grouping.serves, strict=True):
        recipe = group_recipe(config, [tasks[j] for j in members], file)
        name = (config.get("results") or {}).get("name") or out.parent
        head = [
            f"# {file.stem} of {len(files)}: {', '.join(tasks[j] for j in members)}; take from it the predictions of "
            f"{', '.join(tasks[j] for j in served)}.",
            f"# lightning-mtl fit --config {file}",
            f"# Written by `lightning-mtl affinity` from the run {name}.",
        ]
        file.write_text("\n".join(head) + "\n" + yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return files


def group_recipe(config: Mapping[str, Any], tasks: Sequence[str], file: Path) -> Config:
    """Return the configuration of a run for some of its tasks, without the watcher and with a name of its own.

    Args:
        config: Configuration of the run.
        tasks: The tasks to keep.
        file: Where the recipe will be; its stem goes into names.
    """
    recipe = restrict_tasks(config, tasks)
    recipe["ckpt_path"] = None
    trainer = recipe.setdefault("trainer", {})
    watching = [entry for entry in callbacks(recipe) if _class_name(entry) == _WATCHER]
    trainer["callbacks"] = [entry for entry in callbacks(recipe) if entry not in watching] or None
    loggers = trainer.get("logger")
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if isinstance(logger, dict) and isinstance(logger.get("init_args"), dict):
            arguments = logger["init_args"]
            if arguments.get("name"):
                arguments["name"] = f"{arguments['name']}-{file.stem}"
            if arguments.get("version"):
                arguments["version"] = None
    if loggers is False:  # then all files go to the root folder
        trainer["default_root_dir"] = str(file.with_suffix(""))
    results = recipe.get("results")
    if isinstance(results, dict):
        results["name"] = "-".join(part for part in (results.get("name"), file.stem) if part)
    return recipe


def _class_name(entry: Any) -> str:
    path = entry.get("class_path", "") if isinstance(entry, Mapping) else ""
    return str(path).rpartition(".")[2]
