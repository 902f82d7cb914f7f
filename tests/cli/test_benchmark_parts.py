"""What a benchmark is made of: names of balancers, callbacks of its runs, runs that are handed out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mtl import balancers
from lightning_mtl.cli.benchmark import OnlyTasks, StepTime
from lightning_mtl.cli.benchmark.execution import in_own_process, outcome
from lightning_mtl.cli.benchmark.methods import Method, read_methods, short_names
from lightning_mtl.cli.benchmark.plan import PlannedRun, differences
from lightning_mtl.cli.benchmark.report import summarize
from lightning_mtl.cli.benchmark.spread import through_storage
from lightning_mtl.cli.tables import Row, render
from tests.toys import loader, make_module, make_tasks, make_trainer


# ---------------------------------------------------------------------- names
@pytest.mark.parametrize(
    ("word", "cls"),
    [
        ("equal", "EqualWeighting"),
        ("ew", "EqualWeighting"),
        ("UW", "UncertaintyWeighting"),
        ("rlw", "RandomLossWeighting"),
        ("nash", "NashMTL"),
        ("nash-mtl", "NashMTL"),
        ("imtl_g", "IMTLG"),
        ("MGDA", "MGDA"),
        ("lightning_mtl.balancers.DWA", "DWA"),
    ],
)
def test_a_name_follows_from_the_class(word: str, cls: str) -> None:
    assert read_methods([word]) == [Method(cls, f"lightning_mtl.balancers.{cls}")]


def test_every_balancer_has_a_name_and_no_name_fits_two() -> None:
    names = short_names()
    assert {"EqualWeighting", "NashMTL", "UPGrad", "FAMO"} <= set(names)
    assert "LossWeighting" not in names, "it is the base of others"
    words = [word for cls, short in names.items() for word in (cls.lower(), *short)]
    assert len(words) == len(set(words))
    for cls, short in names.items():
        for word in (cls, cls.upper(), *short):
            assert read_methods([word])[0].class_path == f"lightning_mtl.balancers.{cls}"
            assert hasattr(balancers, cls)


@pytest.mark.parametrize(
    ("word", "label", "arguments"),
    [
        ("nash:every_n_steps=25,max_norm=2.0", "NashMTL(every_n_steps=25,max_norm=2.0)", {"every_n_steps": 25}),
        ("nash:{every_n_steps: 25, max_norm: 2.0}", "NashMTL(every_n_steps=25,max_norm=2.0)", {"max_norm": 2.0}),
        ("fixed:{weights: {a: 1, b: 0.5}}", "FixedWeighting(weights={a: 1, b: 0.5})", {"weights": {"a": 1, "b": 0.5}}),
    ],
    ids=["pairs", "mapping", "nested"],
)
def test_arguments_stand_behind_a_colon(word: str, label: str, arguments: dict[str, Any]) -> None:
    (method,) = read_methods([word])
    assert method.label == label
    assert method.arguments.items() >= arguments.items()
    assert set(method.folder).isdisjoint(" :{}()/")


def test_a_file_names_and_describes_a_balancer(tmp_path: Path) -> None:
    file = tmp_path / "half.yaml"
    file.write_text("class_path: FixedWeighting\ninit_args: {weights: {a: 1.0, b: 0.5}}\n")
    arguments = {"weights": {"a": 1.0, "b": 0.5}}
    assert read_methods([str(file)]) == [Method("half", "lightning_mtl.balancers.FixedWeighting", arguments)]
    file.write_text("balancer: FixedWeighting")
    with pytest.raises(ValueError, match=r"half.yaml: must hold class_path"):
        read_methods([str(file)])
    with pytest.raises(ValueError, match=r"nowhere.yaml: must be a YAML file"):
        read_methods(["nowhere.yaml"])


@pytest.mark.parametrize("word", ["nash:25", "nash:{a", "nash:[1]", "nash:=2"])
def test_arguments_of_another_form_are_refused(word: str) -> None:
    with pytest.raises(ValueError, match="must have its arguments as NAME:key=value"):
        read_methods([word])


# ---------------------------------------------------------------------- callbacks
def test_step_time_counts_and_continues() -> None:
    clock = StepTime(window=3)
    assert clock.seconds is None
    make_trainer(callbacks=[clock]).fit(make_module(), loader())
    assert clock.steps == 8
    assert clock.seconds is not None
    assert clock.seconds > 0
    resumed = StepTime(window=3)
    resumed.load_state_dict(clock.state_dict())
    assert (resumed.steps, resumed.seconds) == (8, clock.seconds)
    assert len(clock.state_dict()["seconds"]) == 3
    with pytest.raises(ValueError, match="StepTime: window must be at least 1, got 0"):
        StepTime(window=0)


def test_only_the_targets_of_the_named_tasks_stay() -> None:
    module = make_module(tasks={"size": make_tasks()["size"]})
    trainer = make_trainer(callbacks=[OnlyTasks(["size"])])
    trainer.fit(module, loader(), loader())
    trainer.test(module, loader(), verbose=False)
    assert {key.split("/")[1] for key in trainer.callback_metrics if key.count("/") == 2} == {"size"}


@pytest.mark.parametrize("nested", [False, True], ids=["one loader a task", "one loader a data set"])
def test_batches_of_several_loaders_are_restricted(nested: bool) -> None:
    row = torch.zeros(1)
    batch: dict[str, Any] = {name: (row, {"a": row, "b": row} if nested else row) for name in ("a", "b")}
    OnlyTasks(["a"]).on_train_batch_start(make_trainer(), make_module(), batch, 0)
    assert {name: list(part[1]) for name, part in batch.items()} == (
        {"a": ["a"], "b": ["a"]} if nested else {"a": [0.0]}
    )


# ---------------------------------------------------------------------- runs
def planned(folder: Path, *names: str, tasks: tuple[str, ...] = ("a",)) -> list[PlannedRun]:
    runs = [PlannedRun(f"single-task {task}", 0, folder / f"single-{task}", "loss", config(), task) for task in tasks]
    return runs + [PlannedRun(name, 0, folder / name, "loss", config()) for name in names]


def config() -> dict[str, Any]:
    return {
        "trainer": {"logger": False, "callbacks": []},
        "results": {},
        "model": {"init_args": {}},
        "seed_everything": 0,
    }


def finish(run: PlannedRun, value: float = 1.0, seconds: float = 1.0) -> None:
    """Write what a run leaves behind."""
    section = {"metrics": {"a": {"error": value}}, "losses": {"a": value}}
    report = {"higher_is_better": {"a": {"error": False}}, "best": section, "test": section, "seconds": 1.0}
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "metrics.json").write_text(json.dumps(report))
    (run.folder / "finished.json").write_text(json.dumps({"seconds_per_step": seconds, "steps": 1}))


def test_differences_name_the_settings_that_matter() -> None:
    before = {"model": {"lr": 0.1, "width": [1, 2]}, "data": {"init_args": {"num_workers": 1}}, "old": None}
    now = {"model": {"lr": 0.2, "width": [1, 2]}, "data": {"init_args": {"num_workers": 4}}, "new": 3}
    assert differences(before, now) == [
        "model.lr: 0.1 there, 0.2 now",
        "old: None there, 'absent' now",
        "new: 'absent' there, 3 now",
    ]


def test_a_change_is_within_the_seed_and_needs_all_baselines(tmp_path: Path) -> None:
    runs = []
    for seed, (base, value) in enumerate(((1.0, 0.9), (2.0, 2.4), (4.0, 1.0))):
        single = PlannedRun("single-task a", seed, tmp_path / f"s{seed}", "loss", {}, "a")
        method = PlannedRun("DWA", seed, tmp_path / f"m{seed}", "loss", {})
        if seed < 2:
            finish(single, base, seconds=3.0)
        finish(method, value, seconds=2.0)
        runs += [single, method]
    summary = summarize([outcome(run) for run in runs])
    baseline, method = summary.rows
    assert method.delta_m == pytest.approx([10.0, -20.0])
    assert method.values["a", "error"] == [0.9, 2.4, 1.0]
    assert (baseline.runs, method.runs) == (2, 3)
    assert baseline.cost == [1.5, 1.5]
    assert method.cost == [1, 1, 1]
    assert summary.per_task["DWA"]["a"] == pytest.approx([10.0, -20.0])
    assert "NOT DONE: single-task a, seed 2." in summary.notes


def test_a_baseline_is_never_the_best_of_a_column() -> None:
    rows = [Row("alone", 1, {("a", "error"): [0.1]}, (), competes=False)]
    rows += [Row(name, 1, {("a", "error"): [value]}, ()) for name, value in (("x", 0.3), ("y", 0.2))]
    lines = render(rows, {"a": {"error": False}}, "md").splitlines()
    assert lines[2:] == ["| alone | 1 | 0.1 |", "| x | 1 | 0.3 |", "| y | 1 | **0.2** |"]


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("echo Traceback; echo ValueError: too wide; exit 3", "exit status 3: ValueError: too wide"),
        (
            "echo fit: error: lr: wrong; echo fit --help lists the options; exit 2",
            "exit status 2: fit: error: lr: wrong",
        ),
        ("exit 1", "exit status 1: no message"),
        ("kill -9 $$", "ended by signal SIGKILL"),
        ("echo all is well", None),
    ],
)
def test_a_process_that_fails_leaves_its_last_words(
    script: str, error: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    (tmp_path / "log.txt").write_text("KeyError: of an earlier attempt\n")
    assert in_own_process(PlannedRun("DWA", 0, tmp_path, "loss", {})) == error


# ---------------------------------------------------------------------- several machines
@pytest.fixture
def storage(tmp_path: Path) -> str:
    pytest.importorskip("optuna", reason="the extra sweeps is not installed")
    return f"sqlite:///{tmp_path / 'runs.db'}"


def trials(storage: str) -> list[tuple[str, str]]:
    import optuna

    study = optuna.load_study(study_name="study", storage=storage)
    return [(trial.user_attrs["run"], trial.state.name) for trial in study.get_trials()]


def trainer_of(trained: list[str], failing: str = "") -> Callable[[PlannedRun], str | None]:
    def train(run: PlannedRun) -> str | None:
        trained.append(run.label)
        if run.label == failing:
            return "broken"
        finish(run)
        return None

    return train


def test_every_run_is_one_trial_and_failed_ones_are_queued_again(storage: str, tmp_path: Path) -> None:
    runs, trained = planned(tmp_path / "out", "DWA", "UW"), []
    through_storage(runs, trainer_of(trained, "DWA"), lambda message: None, storage, "study")
    assert trained == ["single-task a", "DWA", "UW"]
    assert trials(storage) == [
        ("single-task a, seed 0", "COMPLETE"),
        ("DWA, seed 0", "FAIL"),
        ("UW, seed 0", "COMPLETE"),
    ]
    trained.clear()
    through_storage(runs, trainer_of(trained), lambda message: None, storage, "study")
    assert trained == ["DWA"]
    assert trials(storage)[3:] == [("DWA, seed 0", "COMPLETE")]
    assert all(outcome(run).status == "finished" for run in runs)


def test_a_run_of_another_machine_is_left_to_it(storage: str, tmp_path: Path) -> None:
    import optuna

    runs, trained, said = planned(tmp_path / "out", "DWA", "UW"), [], []
    study = optuna.create_study(storage=storage, study_name="study")
    study.enqueue_trial({}, user_attrs={"run": "DWA, seed 0"})
    study.ask()  # the other machine has it
    study.enqueue_trial({}, user_attrs={"run": "DWA, seed 0"})  # both put it into the queue at one moment
    through_storage(runs, trainer_of(trained), said.append, storage, "study")
    assert trained == ["single-task a", "UW"]
    assert ("DWA, seed 0", "PRUNED") in trials(storage)
    assert "DWA, seed 0: still held by another process" in said[-1]
    assert outcome(runs[1]).status == "open"


@pytest.mark.parametrize("address", ["runs.db", "sqlite:////nowhere/at/all/runs.db"])
def test_an_address_of_no_database_is_refused(address: str, storage: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"--storage: .* cannot be used as a database"):
        through_storage(planned(tmp_path), trainer_of([]), lambda message: None, address, "study")
