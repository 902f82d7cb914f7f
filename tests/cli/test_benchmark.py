"""Several balancers and seeds on one recipe, once each."""

from __future__ import annotations

import copy
import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_mtl.cli import main
from lightning_mtl.cli.benchmark import command, worker
from lightning_mtl.cli.benchmark.plan import PlannedRun
from tests.cli.benchmark_toys import CRASH, PAUSE

CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "lightning_mtl.MultiTaskModule",
        "init_args": {
            "encoder": {"class_path": "tests.cli.benchmark_toys.NoisyEncoder"},
            "tasks": {
                "size": {"class_path": "lightning_mtl.tasks.Regression"},
                "kind": {"class_path": "lightning_mtl.tasks.MulticlassClassification", "init_args": {"num_classes": 3}},
            },
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}},
        },
    },
    "data": {"class_path": "tests.cli.benchmark_toys.Tables", "init_args": {"tasks": ["size", "kind"]}},
    "trainer": {
        "max_epochs": 4,
        "accelerator": "cpu",
        "logger": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}],
    },
    "results": {"show": False, "untrained": False},
}
METRICS = {"size": ["mae", "pearson", "r2", "rmse", "spearman"], "kind": ["accuracy", "f1"]}
DOWN = {"mae", "rmse"}
Bench = Callable[..., int]


class Here:
    """Trains in this process, which is faster than starting one a run, and remembers what it trained."""

    def __init__(self) -> None:
        self.trained: list[str] = []

    def __call__(self, run: PlannedRun) -> str | None:
        self.trained.append(run.name)
        try:
            worker.train(run.folder, run.checkpoint)
        except (Exception, SystemExit) as error:
            return f"{type(error).__name__}: {error}"
        return None


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    train = Here()
    monkeypatch.setattr(command, "in_own_process", train)
    return train


def write_config(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda config: None) -> Path:
    config = copy.deepcopy(CONFIG)
    change(config)
    file = folder / "toy.yaml"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    return file


def words(config: Path, out: Path, balancers: str = "equal dwa", seeds: str = "0 1", more: str = "") -> list[str]:
    arguments = ["--config", str(config), "--balancers", *balancers.split(), "--seeds", *seeds.split()]
    return ["benchmark", *arguments, "--out", str(out), *more.split()]


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def metrics_of(out: Path) -> dict[str, Any]:
    """Return the test metrics of every run by its folder."""
    return {str(file.parent.relative_to(out)): read(file)["test"]["metrics"] for file in out.rglob("metrics.json")}


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    return printed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished benchmark; tests that write work on a copy."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "in_own_process", Here())
        assert main(words(write_config(folder), folder / "out")) == 0
    return folder / "out"


@pytest.fixture
def copied(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "out")
    return tmp_path / "out"


# ---------------------------------------------------------------------- what comes out
def test_every_method_and_every_task_alone_has_one_run_a_seed(whole: Path) -> None:
    expected = {
        f"{name}/seed={seed}" for name in ("single-size", "single-kind", "EqualWeighting", "DWA") for seed in (0, 1)
    }
    assert set(metrics_of(whole)) == expected
    for folder in expected:
        assert (whole / folder / "config.yaml").is_file()
        assert {file.name for file in (whole / folder / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
        assert read(whole / folder / "metrics.json")["seed"] == int(folder[-1])


def test_a_baseline_has_its_task_alone(whole: Path) -> None:
    config = yaml.safe_load((whole / "single-kind" / "seed=1" / "config.yaml").read_text())
    assert list(config["model"]["init_args"]["tasks"]) == ["kind"]
    assert config["data"]["init_args"]["tasks"] == ["kind"]
    assert config["seed_everything"] == 1


def test_the_epoch_with_the_lowest_validation_loss_is_tested(whole: Path) -> None:
    chosen = set()
    for folder in metrics_of(whole):
        report = read(whole / folder / "metrics.json")
        checkpoint = torch.load(whole / folder / "checkpoints" / "best.ckpt", weights_only=False)
        assert report["best"]["monitor"] == "val/loss"
        assert report["best"]["score"] == pytest.approx(sum(report["best"]["losses"].values()))
        assert report["best"]["score"] <= sum(report["last"]["losses"].values()) + 1e-6
        assert report["last"]["epoch"] == 3
        assert checkpoint["epoch"] == report["best"]["epoch"]
        chosen.add(checkpoint["epoch"])
    assert chosen != {3}, "some run should have its best epoch before its last"


def test_the_table_holds_means_deviations_and_changes(whole: Path) -> None:
    found = metrics_of(whole)
    rows = {row["run"]: row for row in csv.DictReader((whole / "table.csv").read_text().splitlines())}
    assert list(rows) == ["single task", "EqualWeighting", "DWA"]
    for method in ("EqualWeighting", "DWA"):
        changes = []
        for seed in (0, 1):
            gains = {}
            for task, names in METRICS.items():
                mine = found[f"{method}/seed={seed}"][task]
                base = found[f"single-{task}/seed={seed}"][task]
                signs = [-1 if name in DOWN else 1 for name in names]
                relative = [
                    sign * (mine[name] - base[name]) / abs(base[name]) for sign, name in zip(signs, names, strict=True)
                ]
                gains[task] = 100 * sum(relative) / len(relative)
            changes.append(sum(gains.values()) / len(gains))
        assert float(rows[method]["delta_m"]) == pytest.approx(sum(changes) / 2)
        assert float(rows[method]["delta_m_std"]) == pytest.approx(abs(changes[0] - changes[1]) / 2**0.5)
        values = [found[f"{method}/seed={seed}"]["size"]["mae"] for seed in (0, 1)]
        assert float(rows[method]["size/mae"]) == pytest.approx(statistics.fmean(values))
        assert float(rows[method]["size/mae_std"]) == pytest.approx(statistics.stdev(values))
        assert rows[method]["seeds"] == "2"
    assert float(rows["EqualWeighting"]["step_time"]) == 1
    assert float(rows["DWA"]["step_time"]) > 0
    assert rows["single task"]["delta_m"] == ""


def test_markdown_latex_and_chart_are_written(whole: Path) -> None:
    markdown = (whole / "table.md").read_text()
    assert "| run | seeds | size/mae ↓ |" in markdown
    assert "| Δm % ↑ | rel. step time |" in markdown
    assert "±" in markdown
    single = next(line for line in markdown.splitlines() if line.startswith("| single task"))
    assert "**" not in single
    assert "**" in markdown
    latex = (whole / "table.tex").read_text()
    assert r"\begin{tabular}" in latex
    assert r"EqualWeighting & 2 &" in latex
    assert (whole / "chart.png").read_bytes().startswith(b"\x89PNG")


def test_the_record_says_how_it_was_made(whole: Path) -> None:
    record = read(whole / "benchmark.json")
    (line,) = record["commands"]
    assert line.startswith("lightning-mtl benchmark --config ")
    assert "--balancers equal dwa --seeds 0 1" in line
    assert {"lightning_mtl", "lightning", "torch", "timm", "python"} <= set(record["versions"])
    assert "CPU cores" in record["machine"]
    assert record["seeds"] == [0, 1]
    assert [run["status"] for run in record["runs"]] == ["finished"] * 8
    assert [run["steps"] for run in record["runs"]] == [12] * 8
    assert all(run["seconds"] > 0 for run in record["runs"])
    assert record["runs"][0]["selected"]["monitor"] == "val/loss"


# ---------------------------------------------------------------------- going on
def test_nothing_is_trained_twice_and_seeds_can_be_added(copied: Path, tmp_path: Path, here: Here) -> None:
    tables = (copied / "table.md").read_text()
    assert main(words(write_config(tmp_path), copied)) == 0
    assert here.trained == []
    assert (copied / "table.md").read_text() == tables

    assert main(words(tmp_path / "toy.yaml", copied, "equal", "1 2")) == 0
    assert here.trained == ["single-task size, seed 2", "single-task kind, seed 2", "EqualWeighting, seed 2"]
    commands = read(copied / "benchmark.json")["commands"]
    assert [line.partition("--seeds ")[2][:3] for line in commands] == ["0 1", "0 1", "1 2"]


def test_other_settings_of_the_recipe_are_named(
    copied: Path, tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path)
    message = refused([*words(config, copied), "--model.optimizer.init_args.lr", "0.2"], capsys)
    assert "belongs to another benchmark" in message
    assert "model.init_args.optimizer.init_args.lr: 0.1 there, 0.2 now" in message
    assert "select: 'loss' there, 'last' now" in refused(words(config, copied, "equal", "0", "--select last"), capsys)
    assert here.trained == []


def test_other_settings_of_a_finished_run_are_named(
    copied: Path, tmp_path: Path, here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "DWA.yaml"
    file.write_text("class_path: lightning_mtl.balancers.DWA\ninit_args: {temperature: 3.0}")
    message = refused(words(write_config(tmp_path), copied, str(file)), capsys)
    assert f"{copied / 'DWA' / 'seed=0'} was trained with other settings" in message
    assert "model.init_args.balancer.init_args.temperature: 2.0 there, 3.0 now" in message
    assert here.trained == []


def test_a_failed_run_is_reported_and_done_again(
    copied: Path, tmp_path: Path, here: Here, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = words(write_config(tmp_path), copied, "tests.cli.benchmark_toys.Crashing dwa:temperature=3.0", "0")
    monkeypatch.setenv(CRASH, "1")
    assert main(arguments) == 1
    assert here.trained == ["Crashing, seed 0", "DWA(temperature=3.0), seed 0"]
    assert "FAILED, RuntimeError: the crash of a test" in capsys.readouterr().out
    table = (copied / "table.md").read_text()
    assert "| Crashing | 0 | - |" in table
    assert "- FAILED: Crashing, seed 0: RuntimeError: the crash of a test" in table
    runs = read(copied / "benchmark.json")["runs"]
    assert [run["status"] for run in runs] == ["finished", "finished", "failed", "finished"]
    monkeypatch.delenv(CRASH)
    here.trained.clear()
    assert main(arguments) == 0
    assert here.trained == ["Crashing, seed 0"]
    assert "FAILED" not in (copied / "table.md").read_text()


@pytest.mark.slow
def test_a_killed_run_continues_and_ends_with_the_same_numbers(whole: Path, tmp_path: Path, here: Here) -> None:
    config, out = write_config(tmp_path), tmp_path / "out"
    for name in ("single-size", "single-kind", "EqualWeighting"):
        shutil.copytree(whole / name, out / name)
    shutil.copy(whole / "benchmark.json", out)
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "lightning_mtl", *words(config, out)],
        env={**os.environ, PAUSE: "0.02"},
        stdout=subprocess.DEVNULL,
    )
    last = out / "DWA" / "seed=0" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 400
    while not last.is_file() and time.monotonic() < deadline:
        assert process.poll() is None, "the benchmark ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with (out / "DWA" / "seed=0" / "lock").open() as lock:
        fcntl = pytest.importorskip("fcntl")
        fcntl.flock(lock, fcntl.LOCK_EX)  # the process of the run ends with the one that started it
    assert torch.load(last, weights_only=False)["epoch"] < 3
    assert not (out / "DWA" / "seed=0" / "finished.json").exists()

    assert main(words(config, out)) == 0
    assert here.trained == ["DWA, seed 0", "DWA, seed 1"]
    assert metrics_of(out) == metrics_of(whole)
    assert read(out / "DWA" / "seed=0" / "finished.json")["steps"] == 12


# ---------------------------------------------------------------------- options
def test_the_checkpoint_may_be_chosen_by_validation_changes(tmp_path: Path, here: Here) -> None:
    out = tmp_path / "out"
    assert main(words(write_config(tmp_path), out, "equal", "3", "--select delta_m --metrics */mae")) == 0
    report = read(out / "EqualWeighting" / "seed=3" / "metrics.json")
    assert report["best"]["monitor"] == "val/delta_m"
    assert report["best"]["delta_m"] == pytest.approx(report["best"]["score"])
    assert report["best"]["delta_m"] >= report["last"]["delta_m"]
    single = read(out / "single-kind" / "seed=3" / "metrics.json")
    assert report["baselines"]["kind"] == single["best"]["metrics"]["kind"]
    assert (out / "table.md").read_text().startswith("| run | seeds | size/mae ↓ | Δm % ↑ |")


def test_the_last_epoch_may_be_tested_and_the_data_seeded(tmp_path: Path, here: Here) -> None:
    out = tmp_path / "out"

    def change(config: dict[str, Any]) -> None:
        config["data"]["init_args"]["val_split"] = "test"
        config["trainer"]["max_epochs"] = 2

    config = write_config(tmp_path, change)
    assert main(words(config, out, "dwa:temperature=1.5", "4", "--select last --seed-data")) == 0
    folder = out / "DWA_temperature=1.5" / "seed=4"
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["data"]["init_args"]["seed"] == 4
    assert written["model"]["init_args"]["balancer"]["init_args"]["temperature"] == 1.5
    (run,) = [run for run in read(out / "benchmark.json")["runs"] if run["run"] == "DWA(temperature=1.5)"]
    assert run["selected"]["epoch"] == 1
    assert torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)["epoch"] == 1


def test_data_that_always_give_all_targets_serve_a_task_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}

    def look(run: PlannedRun) -> str | None:
        config = yaml.safe_load((run.folder / "config.yaml").read_text())
        found[run.task] = [entry["class_path"].rpartition(".")[2] for entry in config["trainer"]["callbacks"]]
        return "not trained"

    monkeypatch.setattr(command, "in_own_process", look)
    data = {"class_path": "tests.cli.toy_data.TableData"}
    assert main(words(write_config(tmp_path, lambda c: c.update(data=data)), tmp_path / "out", "equal", "0")) == 1
    own = ["StepTime", "ModelCheckpoint", "ModelCheckpoint"]
    assert found == {"size": ["OnlyTasks", *own], "kind": ["OnlyTasks", *own], None: own}


def test_an_interruption_says_how_to_go_on(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(run: PlannedRun) -> str | None:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "in_own_process", interrupted)
    assert main(words(write_config(tmp_path), copied, "equal", "0 5")) == 130
    assert "Give the same command again" in capsys.readouterr().out
    assert not (copied / "single-size" / "seed=5" / "failed.json").exists()


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (
            None,
            {"balancers": "equal nosh"},
            "no balancer is named 'nosh'. Did you mean 'nash'? Known are AlignedMTL (al",
        ),
        (None, {"balancers": "uw UncertaintyWeighting"}, "would be named 'UncertaintyWeighting' in tables, as another"),
        (None, {"balancers": "dwa:heat=2"}, "Option 'heat' is not accepted"),
        (None, {"seeds": ""}, "argument --seeds: expected at least one argument"),
        (None, {"seeds": "1 1"}, "--seeds must be different and not negative, got 1 1"),
        (lambda c: c["model"]["init_args"]["tasks"].pop("kind"), {}, "the configuration has only 'size'"),
        (
            lambda c: c.update(model={"class_path": "lightning.pytorch.demos.boring_classes.BoringModel"}),
            {},
            "the tasks must be a mapping in model.init_args.tasks",
        ),
        (lambda c: c["trainer"].update(fast_dev_run=True), {}, "trainer.fast_dev_run must be false"),
        (None, {"more": "--storage sqlite:///a.db --select delta_m"}, "--storage and --select delta_m exclude"),
        (
            lambda c: c["data"]["init_args"].update(val_split="test"),
            {},
            "the test set must not select a model; set it to 'holdout'",
        ),
    ],
    ids=[
        "name",
        "twice",
        "argument",
        "no seeds",
        "seeds",
        "one task",
        "no tasks",
        "fast_dev_run",
        "delta_m on several machines",
        "validation is test",
    ],
)
def test_what_cannot_be_done_gives_one_message(
    change: Any,
    arguments: dict[str, str],
    message: str,
    tmp_path: Path,
    here: Here,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = write_config(tmp_path, change or (lambda config: None))
    assert message in refused(words(config, tmp_path / "out", **arguments), capsys)
    assert here.trained == []
    assert not (tmp_path / "out").exists()


def test_a_folder_of_other_things_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds other things than a benchmark" in refused(words(write_config(tmp_path), tmp_path), capsys)


def test_help_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["benchmark", "--help"])
    assert exit_.value.code == 0
    assert "--balancers equal uw dwa nash --seeds 0 1 2" in capsys.readouterr().out
