"""Configurations of some of the tasks of a configuration."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Collection, Mapping
from typing import Any

Config = dict[str, Any]


def restrict_tasks(config: Mapping[str, Any], kept: Collection[str]) -> Config:
    """Return a configuration with some of its tasks only.

    Every argument of model and data that lists tasks of the model, or maps them to something, is restricted to those
    that are kept. If the data module cannot be told which tasks to give, a callback takes the other targets out of the
    batches.

    Args:
        config: A configuration for ``lightning-mtl fit``, as the command line stores it with a run.
        kept: Names of the tasks to keep.

    Raises:
        ValueError: If the model has no mapping of tasks, or not these.
    """
    names = model_tasks(config)
    if unknown := [task for task in kept if task not in names]:
        raise ValueError(f"config: model.init_args.tasks must hold {unknown}, got {list(names)}.")
    smaller = copy.deepcopy(dict(config))
    for section in ("model", "data"):
        smaller[section] = _restrict(smaller.get(section), names, kept)
    if not _takes_tasks(smaller.get("data")):
        from lightning_mtl.cli.benchmark.callbacks import OnlyTasks

        path = f"{OnlyTasks.__module__}.{OnlyTasks.__qualname__}"
        trainer = smaller.setdefault("trainer", {})
        ordered = [task for task in names if task in kept]
        trainer["callbacks"] = [*callbacks(config), {"class_path": path, "init_args": {"tasks": ordered}}]
    return smaller


def model_tasks(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the model's tasks.

    Raises:
        ValueError: If there is no mapping of tasks.
    """
    model = config.get("model") or {}
    tasks = (model.get("init_args") or {}).get("tasks")
    if not isinstance(tasks, Mapping) or not tasks:
        raise ValueError(
            "config: the tasks must be a mapping in model.init_args.tasks, as those of MultiTaskModule, got "
            f"{tasks!r} in {model.get('class_path', 'no model')}."
        )
    return tuple(tasks)


def callbacks(config: Mapping[str, Any]) -> list[Any]:
    """Return the entries of ``trainer.callbacks``, which may be one or none."""
    given = (config.get("trainer") or {}).get("callbacks")
    return given if isinstance(given, list) else [given] if given else []


def _takes_tasks(data: Any) -> bool:
    """Return whether the data module has an argument ``tasks``."""
    if not isinstance(data, Mapping) or "class_path" not in data:
        return False
    if "tasks" in (data.get("init_args") or {}):
        return True
    module, _, name = data["class_path"].rpartition(".")
    return "tasks" in inspect.signature(getattr(importlib.import_module(module), name).__init__).parameters


def _restrict(value: Any, names: Collection[str], kept: Collection[str]) -> Any:
    if isinstance(value, dict):
        if _all_in(value, names):
            value = {key: item for key, item in value.items() if key in kept}
        return {key: _restrict(item, names, kept) for key, item in value.items()}
    if isinstance(value, list):
        if _all_in(value, names):
            return [item for item in value if item in kept]
        return [_restrict(item, names, kept) for item in value]
    return value


def _all_in(value: Collection[Any], names: Collection[str]) -> bool:
    return bool(value) and all(isinstance(item, str) and item in names for item in value)
