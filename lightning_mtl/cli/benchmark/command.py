"""The subcommand itself: read the words, do the runs, write what came out."""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_mtl.cli.benchmark.chart import write_chart
from lightning_mtl.cli.benchmark.execution import check_folders, in_own_process, in_sequence, outcome
from lightning_mtl.cli.benchmark.methods import Method, read_methods
from lightning_mtl.cli.benchmark.plan import (
    SELECTIONS,
    PlannedRun,
    base_config,
    differences,
    make_plan,
    resolve,
)
from lightning_mtl.cli.benchmark.report import RECORD, summarize, write_record, write_tables
from lightning_mtl.cli.benchmark.spread import through_storage
from lightning_mtl.cli.tables import render, select
from lightning_mtl.cli.task_subset import Config

_DESCRIPTION = """\
Train one recipe with several balancers and seeds, and every task alone for comparison, and write the tables.

The single-task baselines come first, one a task and seed; all methods share them. Every run is an ordinary
`lightning-mtl fit` in OUT/METHOD/seed=SEED, in a process of its own, and is tested once, with the checkpoint that the
validation set selected. Give the same command again to go on after an interruption: finished runs are not trained
again, others continue from their last epoch. More balancers and seeds may be added. A failed run is reported and does
not stop the others; the exit status is then 1.
"""
_EPILOG = """\
Any further option is one of `lightning-mtl fit` and counts for all runs: --trainer.max_epochs 20 --data.root FOLDER.

OUT then holds table.md, table.csv, table.tex, chart.png, and benchmark.json with the command, versions and times.

Example:
  lightning-mtl benchmark --config recipes/dense/nyuv2_base.yaml --balancers equal uw dwa nash --seeds 0 1 2
"""


def main(args: Sequence[str]) -> int:
    """Do the benchmark, or what is left of it.

    Args:
        args: Words of the command line behind ``benchmark``.

    Returns:
        Exit status: 0 if no run failed, otherwise 1; 130 after an interruption from the keyboard.

    Raises:
        SystemExit: With status 2 and one message, if an option, a configuration or the folder does not fit.
    """
    parser = _parser()
    options, overrides = parser.parse_known_args(args)
    out = (options.out or Path("runs") / f"benchmark_{Path(options.config[-1]).stem}").absolute()
    words = [word for file in options.config for word in ("--config", file)] + overrides
    try:
        _check_seeds(options.seeds)
        methods = read_methods(options.balancers)
        runs, base, previous = _prepare(words, methods, options, out)
        command = shlex.join(["lightning-mtl", "benchmark", *args])
        write_record(out, command, base, [outcome(run) for run in runs], previous)
        if options.storage is None:
            in_sequence(runs, in_own_process, _say)
        else:
            name = f"{out.name}-{hashlib.sha256(json.dumps(base, sort_keys=True).encode()).hexdigest()[:8]}"
            through_storage(runs, in_own_process, _say, options.storage, name)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.error(str(error).removeprefix("benchmark: "))
    except KeyboardInterrupt:
        print("Interrupted. Give the same command again to go on.")
        return 130
    outcomes = [outcome(run) for run in runs]
    write_record(out, command, base, outcomes, previous)
    summary = summarize(outcomes)
    write_tables(summary, out, options.metrics)
    write_chart(summary, out / "chart.png")
    print(render(select(summary.rows, options.metrics), summary.directions, "table"), end="")
    for note in summary.notes:
        print(f"- {note}")
    print(f"Written to {out}")
    return 1 if any(result.status == "failed" for result in outcomes) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-mtl benchmark",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="lightning-mtl benchmark --config FILE --balancers NAME ... --seeds SEED ... [options] [options of fit]",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        action="append",
        required=True,
        metavar="FILE",
        help="configuration with the tasks and without a balancer; may be given several times, as for fit",
    )
    parser.add_argument(
        "--balancers",
        nargs="+",
        required=True,
        metavar="NAME",
        help="names of classes in any case (NashMTL, nash-mtl), without their ending Weighting or MTL (equal, nash) or "
        "by its initials (uw), class paths, or YAML files with class_path and init_args; with arguments as in "
        "nash:every_n_steps=25,max_norm=2 or 'nash:{every_n_steps: 25}'; an unknown name lists them all",
    )
    parser.add_argument("--seeds", nargs="+", required=True, type=int, metavar="SEED", help="seeds of every method")
    parser.add_argument(
        "--out", type=Path, help="folder of the benchmark; runs/benchmark_CONFIG by default, a new or an earlier one"
    )
    parser.add_argument(
        "--select",
        choices=SELECTIONS,
        default="loss",
        help="which epoch is tested: that of the lowest validation loss, summed over the tasks without weights "
        "(default); of the highest Δm on the validation set; or the last one",
    )
    parser.add_argument(
        "--seed-data",
        action="store_true",
        help="give the seed to the data module too: another order, augmentation and hold-out in every seed; otherwise "
        "a seed decides about initial weights and everything random in the model",
    )
    parser.add_argument(
        "--metrics",
        nargs="+",
        default=["*"],
        metavar="PATTERN",
        help="which metrics the tables show, for example '*/miou' 'depth/rmse'; Δm is over all",
    )
    parser.add_argument(
        "--storage",
        metavar="URL",
        help="hand the runs out through this Optuna storage (sqlite:///FILE, mysql://...), so that several machines "
        "with the same command and a shared OUT work on them (needs the extra sweeps)",
    )
    return parser


def _check_seeds(seeds: Sequence[int]) -> None:
    if len(set(seeds)) != len(seeds) or min(seeds) < 0:
        raise ValueError(f"--seeds must be different and not negative, got {' '.join(map(str, seeds))}.")


def _prepare(
    words: Sequence[str], methods: Sequence[Method], options: argparse.Namespace, out: Path
) -> tuple[list[PlannedRun], Config, Any]:
    """Return the runs, the configuration they share, and what an earlier command wrote about them."""
    if options.storage is not None and options.select == "delta_m":
        raise ValueError(
            "--storage and --select delta_m exclude each other: Δm needs the baselines before the methods start, and "
            "machines take runs in any order; select by loss, or train in sequence."
        )
    config = resolve(words)
    base = json.loads(json.dumps(base_config(config, options.select, options.seed_data), default=str))
    base["seed_everything"] = None
    previous = None
    if (out / RECORD).is_file():
        previous = json.loads((out / RECORD).read_text(encoding="utf-8"))
        changed = differences({"select": previous["select"], **previous["config"]}, {"select": options.select, **base})
        if changed:
            raise ValueError(
                f"{out} belongs to another benchmark; take another --out, or restore its settings:\n  "
                + "\n  ".join(changed)
            )
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds other things than a benchmark; take another --out.")
    runs = make_plan(config, methods, options.seeds, out, options.select, options.seed_data)
    check_folders(runs)
    out.mkdir(parents=True, exist_ok=True)
    return runs, base, previous


def _say(message: str) -> None:
    print(message, flush=True)
