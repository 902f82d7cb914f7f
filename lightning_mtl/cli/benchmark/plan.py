"""The runs of a benchmark: one configuration each, made from that of the recipe."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml  # type: ignore[import-untyped, unused-ignore]
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_mtl.cli.benchmark.callbacks import StepTime
from lightning_mtl.cli.benchmark.methods import Method
from lightning_mtl.cli.task_subset import Config, callbacks, model_tasks, restrict_tasks

Baselines = Mapping[str, Mapping[str, float]]
Selection = Literal["loss", "delta_m", "last"]
SELECTIONS: tuple[Selection, ...] = ("loss", "delta_m", "last")

CHECKPOINTS = "checkpoints"
BEST, LAST = "best.ckpt", "last.ckpt"

_CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
_WITHOUT_EFFECT = (
    "data.init_args.num_workers",
    "data.init_args.pin_memory",
    "data.init_args.persistent_workers",
    "trainer.enable_model_summary",
    "results.show",
)
"""Settings that may change between two commands: they do not touch the numbers of a run."""


@dataclass(frozen=True)
class PlannedRun:
    """One training of the benchmark.

    Args:
        label: Name of the method, or of the baseline.
        seed: Its seed.
        folder: Where everything of it lies.
        select: Which checkpoint is tested.
        config: Its whole configuration, but for what depends on the folder.
        task: The only task of a baseline; None for a method.
    """

    label: str
    seed: int
    folder: Path
    select: Selection
    config: Config
    task: str | None = None

    @property
    def name(self) -> str:
        """The name in messages."""
        return f"{self.label}, seed {self.seed}"

    @property
    def settings(self) -> Config:
        """All that decides about its numbers."""
        return {"select": self.select, **self.config}

    @property
    def checkpoint(self) -> Path:
        """The checkpoint that is tested."""
        return self.folder / CHECKPOINTS / (LAST if self.select == "last" else BEST)


def resolve(words: Sequence[str]) -> Config:
    """Return the configuration that ``lightning-mtl fit`` has with these words, defaults included.

    Raises:
        SystemExit: With status 2 and one message, if they are wrong.
    """
    from lightning_mtl.cli.app import main  # which imports this package, for the command `benchmark`

    output = io.StringIO()
    try:
        with contextlib.redirect_stdout(output):
            main(["fit", *words, "--print_config"])
    except SystemExit as end:
        if end.code:
            raise
    config: Config = yaml.safe_load(output.getvalue())
    return config


def make_plan(
    config: Config,
    methods: Sequence[Method],
    seeds: Sequence[int],
    out: Path,
    select: Selection = "loss",
    seed_data: bool = False,
) -> list[PlannedRun]:
    """Return the single-task baselines, then every method with every seed.

    Args:
        config: What :func:`resolve` returned for the recipe.
        methods: The balancers.
        seeds: The seeds of all of them.
        out: Folder of the benchmark.
        select: Which checkpoint is tested.
        seed_data: Whether the data module takes the seed as well.

    Raises:
        ValueError: If the configuration cannot be used for a benchmark.
        SystemExit: With status 2 and one message, if a balancer does not take its arguments.
    """
    base = base_config(config, select, seed_data)
    variants: list[tuple[str, str, str | None, Config]] = [
        (f"single-task {task}", f"single-{task}", task, restrict_tasks(base, [task])) for task in task_names(base)
    ]
    variants += [(method.label, method.folder, None, with_balancer(base, method)) for method in methods]
    runs = []
    for label, folder, task, variant in variants:
        for seed in seeds:
            seeded = {**variant, "seed_everything": seed}
            if seed_data:
                data = variant["data"]
                seeded["data"] = {**data, "init_args": {**data["init_args"], "seed": seed}}
            runs.append(PlannedRun(label, seed, out / folder / f"seed={seed}", select, seeded, task))
    return runs


def task_names(config: Config) -> tuple[str, ...]:
    """Return the names of the tasks of a configuration.

    Raises:
        ValueError: If there are fewer than two.
    """
    names = model_tasks(config)
    if len(names) < 2:
        raise ValueError(
            f"benchmark: compares ways to balance several tasks, the configuration has only {names[0]!r}; "
            "add tasks to model.init_args.tasks, or use `lightning-mtl fit`."
        )
    return names


def base_config(config: Config, select: Selection, seed_data: bool) -> Config:
    """Return a recipe's configuration without what a benchmark decides: seed, balancer, folders and checkpoints.

    Raises:
        ValueError: If it has no tasks, does not train, or would select a model on the test set.
    """
    task_names(config)
    base = copy.deepcopy(config)
    for key in ("ckpt_path", "config", "weights_only"):
        base.pop(key, None)
    trainer = base["trainer"]
    if trainer.get("fast_dev_run"):
        raise ValueError("benchmark: trainer.fast_dev_run must be false, since it writes no checkpoints.")
    data = (base.get("data") or {}).get("init_args") or {}
    if data.get("val_split") == "test" and select != "last":
        raise ValueError(
            "benchmark: data.init_args.val_split is 'test', and the test set must not select a model; set it to "
            "'holdout', or take the last epoch of every run with --select last."
        )
    if seed_data and "seed" not in data:
        raise ValueError("benchmark: --seed-data needs a data module with the argument seed; leave the option out.")
    trainer["default_root_dir"] = None
    trainer["logger"] = False if trainer.get("logger") is False else None
    trainer["enable_checkpointing"] = trainer["enable_progress_bar"] = None
    trainer["callbacks"] = [entry for entry in callbacks(config) if not _is_checkpoint(entry)]
    base["results"] = {**base["results"], "name": None, "filename": "metrics.json"}
    arguments = base["model"]["init_args"]
    if "balancer" not in arguments:
        raise ValueError(f"benchmark: {base['model']['class_path']} has no argument balancer; use MultiTaskModule.")
    arguments["balancer"] = None
    if "baselines" in arguments:
        arguments["baselines"] = None  # the benchmark trains its own
    elif select == "delta_m":
        raise ValueError(f"benchmark: {base['model']['class_path']} has no argument baselines; use --select loss.")
    return base


def with_balancer(base: Config, method: Method) -> Config:
    """Return the configuration with a balancer, whose arguments are checked and completed by their defaults."""
    config = copy.deepcopy(base)
    config["model"]["init_args"]["balancer"] = {"class_path": method.class_path, "init_args": method.arguments}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{method.folder}.yaml"
        file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        resolved = resolve(["--config", str(file)])
    config["model"] = resolved["model"]
    return config


def located(run: PlannedRun, baselines: Baselines | None = None) -> Config:
    """Return the configuration with which a run is started: its own, with its folder, checkpoints and clock.

    Args:
        run: The run.
        baselines: Validation metrics of the single-task models, if they are to select the checkpoint.
    """
    config = copy.deepcopy(run.config)
    trainer = config["trainer"]
    trainer |= {"default_root_dir": str(run.folder), "enable_checkpointing": True, "enable_progress_bar": False}
    if trainer["logger"] is None:
        trainer["logger"] = {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": str(run.folder), "name": "", "version": ""},
        }
    monitored = {"monitor": "val/loss", "mode": "min"}
    if run.select == "delta_m" and run.task is None:
        monitored = {"monitor": "val/delta_m", "mode": "max"}
        config["model"]["init_args"]["baselines"] = copy.deepcopy(baselines)
    place = {"dirpath": str(run.folder / CHECKPOINTS), "enable_version_counter": False, "save_top_k": 1}
    best = {**place, **monitored, "filename": Path(BEST).stem}
    # behind the epoch's last hook, and behind the best one, so that a resumed run repeats what it had not kept
    last = {**place, "filename": Path(LAST).stem, "save_on_train_epoch_end": True}
    trainer["callbacks"] = [
        *trainer["callbacks"],
        {"class_path": f"{StepTime.__module__}.{StepTime.__qualname__}"},
        {"class_path": _CHECKPOINT, "init_args": best},
        {"class_path": _CHECKPOINT, "init_args": last},
    ]
    config["results"]["name"] = run.label
    return config


def differences(stored: Config, now: Config) -> list[str]:
    """Return what differs between two configurations, one line a setting."""
    before, after = dict(_flat(stored)), dict(_flat(now))
    missing = object()
    changed = [
        key
        for key in dict.fromkeys([*before, *after])
        if key not in _WITHOUT_EFFECT and before.get(key, missing) != after.get(key, missing)
    ]
    return [f"{key}: {before.get(key, 'absent')!r} there, {after.get(key, 'absent')!r} now" for key in changed]


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, value


def _is_checkpoint(entry: Any) -> bool:
    module, _, name = entry["class_path"].rpartition(".")
    return issubclass(getattr(importlib.import_module(module), name), ModelCheckpoint)
