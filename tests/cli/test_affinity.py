"""Groups of tasks from a finished run, and a recipe for each."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_mtl.cli import main
from lightning_mtl.cli.task_subset import restrict_tasks
from tests.cli.test_app import CONFIG

LOOKAHEAD = {
    ("a", "b"): 0.5,
    ("b", "a"): 0.4,
    ("a", "c"): 0.1,
    ("c", "a"): -0.2,
    ("b", "c"): 0.3,
    ("c", "b"): -0.1,
}


def write_table(folder: Path, pairs: dict[tuple[str, str], float], measure: str = "lookahead") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "affinity.csv"
    lines = [] if file.exists() else ["measure,layer,source,target,affinity,looks"]
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    full = {(i, i): 0.9 for i in names} | pairs
    lines += [f"{measure},,{i},{j},{full[i, j]},3" for i in names for j in names]
    with file.open("a") as out:
        out.write("\n".join(lines) + "\n")
    return folder


def affinity(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["affinity", *map(str, words)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["affinity", *map(str, words)])
    assert exit_.value.code == 2
    return capsys.readouterr().err.strip().rpartition("error: ")[2]


# ---------------------------------------------------------------------- from a run to recipes that train
@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on three tasks of synthetic scenes, whose data module can be told which to give."""
    folder = tmp_path_factory.mktemp("run")
    tasks = {
        "segmentation": {"class_path": "lightning_mtl.tasks.SemanticSegmentation", "init_args": {"num_classes": 6}},
        "depth": {"class_path": "lightning_mtl.tasks.Depth"},
        "edges": {"class_path": "lightning_mtl.tasks.Edges"},
    }
    config = {
        "trainer": {
            "max_epochs": 1,
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder / "logs"), "name": "scenes"},
            },
            "callbacks": [{"class_path": "lightning_mtl.callbacks.TaskAffinity", "init_args": {"every_n_steps": 1}}],
        },
        "model": {
            "class_path": "lightning_mtl.MultiTaskModule",
            "init_args": {
                "encoder": {
                    "class_path": "lightning_mtl.nn.TimmEncoder",
                    "init_args": {"model_name": "test_resnet", "features": "maps"},
                },
                "tasks": tasks,
                "balancer": {
                    "class_path": "lightning_mtl.balancers.FixedWeighting",
                    "init_args": {"weights": {"segmentation": 1.0, "depth": 2.0, "edges": 3.0}},
                },
                "baselines": {"segmentation": {"miou": 0.5}, "depth": {"rmse": 1.0}},
            },
        },
        "data": {
            "class_path": "lightning_mtl.data.SyntheticScenesDataModule",
            "init_args": {
                "tasks": ["edges", "segmentation", "depth"],
                "size": [32, 32],
                "num_train": 4,
                "num_val": 2,
                "num_test": 2,
                "batch_size": 2,
                "label_fraction": {"depth": 0.5, "edges": 1.0},
            },
        },
    }
    file = folder / "scenes.yaml"
    file.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(file), "--results.show", "false"]) == 0
    return folder / "logs" / "scenes" / "version_0"


def test_every_recipe_trains_its_group(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    printed = affinity(capsys, run, "--budget", 3, "--self-affinity", "diagonal", "--out", tmp_path).splitlines()
    assert printed[0].startswith("lookahead affinity of 3 tasks; sum over the tasks: ")
    files = sorted(tmp_path.glob("group*.yaml"))
    assert [str(file) for file in files] == [line for line in printed if line.endswith(".yaml")]
    groups = [line.partition("train ")[2].split(", ") for line in printed if line.startswith("group ")]
    assert {task for group in groups for task in group} == {"segmentation", "depth", "edges"}
    for group, file in zip(groups, files, strict=True):
        text = file.read_text()
        assert text.startswith(f"# {file.stem} of {len(files)}: {', '.join(group)}; take from it the predictions of ")
        assert f"# lightning-mtl fit --config {file}" in text
        recipe = yaml.safe_load(text)
        assert set(recipe["data"]["init_args"]["tasks"]) == set(group)
        assert set(recipe["data"]["init_args"]["label_fraction"]) == set(group) - {"segmentation"}
        arguments = recipe["model"]["init_args"]
        assert list(arguments["tasks"]) == [task for task in ("depth", "edges", "segmentation") if task in group]
        assert set(arguments["balancer"]["init_args"]["weights"]) == set(group)
        assert recipe["trainer"]["logger"]["init_args"]["name"] == f"scenes-{file.stem}"
        assert recipe["results"]["name"] == f"scenes-{file.stem}"
        assert "TaskAffinity" not in str(recipe)
        assert "OnlyTasks" not in str(recipe)
        assert main(["fit", "--config", str(file), "--trainer.fast_dev_run", "2"]) == 0


def test_recipes_go_to_the_run_and_are_not_overwritten_unasked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    words = (run.parent, "--budget", 1, "--measure", "cosine")  # a folder above the run will do
    assert str(run / "groups" / "group1.yaml") in affinity(capsys, *words)
    assert "group1.yaml exists; give another --out, or --force" in refused(capsys, *words)
    affinity(capsys, *words, "--force")


def test_targets_that_a_data_module_gives_anyway_are_taken_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = copy.deepcopy(CONFIG)
    config["trainer"]["callbacks"] = [
        {
            "class_path": "lightning_mtl.callbacks.TaskAffinity",
            "init_args": {"every_n_steps": 1, "measures": ["cosine"]},
        }
    ]
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "toy.yaml", "--results.show", "false"]) == 0
    capsys.readouterr()
    affinity(capsys, ".", "--budget", 2, "--method", "spectral")
    recipe = yaml.safe_load(Path("groups/group1.yaml").read_text())
    assert len(recipe["model"]["init_args"]["tasks"]) < 3
    assert recipe["trainer"]["default_root_dir"] == "groups/group1"
    before = Path("config.yaml").read_bytes()
    for file in ("group1", "group2"):
        assert main(["fit", "--config", f"groups/{file}.yaml", "--trainer.max_steps", "2"]) == 0
        assert Path(f"groups/{file}/metrics.json").is_file()
    assert Path("config.yaml").read_bytes() == before


def test_lists_and_mappings_of_tasks_are_restricted_and_nothing_else() -> None:
    config = {
        "model": {
            "class_path": "x",
            "init_args": {"tasks": {"a": {"k": ["a", 1]}, "b": 2, "c": 3}, "order": ["c", "b"], "words": ["c", "d"]},
        },
        "data": {"class_path": "x", "init_args": {"tasks": ["a", "c"], "empty": [], "none": None}},
    }
    found = restrict_tasks(config, ["a", "b"])
    assert found["model"]["init_args"] == {
        "tasks": {"a": {"k": ["a", 1]}, "b": 2},
        "order": ["b"],
        "words": ["c", "d"],
    }
    assert found["data"]["init_args"] == {"tasks": ["a"], "empty": [], "none": None}
    assert "trainer" not in found


# ---------------------------------------------------------------------- groups
def test_groups_are_those_with_the_largest_affinity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, LOOKAHEAD)
    printed = affinity(capsys, tmp_path, "--budget", 2, "--no-recipes")
    assert printed.splitlines() == [
        "lookahead affinity of 3 tasks; sum over the tasks: +1.2",
        "group 1: train a, b",
        "  for a (+0.4), b (+0.5)",
        "group 2: train b, c",
        "  for c (+0.3)",
    ]
    assert not (tmp_path / "groups").exists()


def test_a_task_that_is_only_harmed_trains_alone_where_that_counts_zero(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, LOOKAHEAD | {("a", "c"): -0.5, ("b", "c"): -0.4})
    printed = affinity(capsys, tmp_path, "--budget", 2, "--no-recipes", "--self-affinity", 0)
    assert "group 2: train c\n  for c (+0)" in printed
    assert "train c\n" not in affinity(capsys, tmp_path, "--budget", 2, "--no-recipes")


def test_intervals_keep_the_order_of_the_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"t{i}" for i in range(6)]
    pairs = {
        (i, j): 1.0 - 0.3 * abs(a - b) - 0.8 * ((a < 2) != (b < 2))
        for a, i in enumerate(names)
        for b, j in enumerate(names)
        if i != j
    }
    write_table(tmp_path, pairs, "mean_cosine")
    printed = affinity(capsys, tmp_path, "--budget", 2, "--method", "interval", "--no-recipes")
    assert "group 1: train t0, t1\n" in printed
    assert "group 2: train t2, t3, t4, t5\n" in printed


def test_spectral_groups_cover_every_task_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, LOOKAHEAD)
    printed = affinity(capsys, tmp_path, "--budget", 2, "--method", "spectral", "--no-recipes")
    assert "group 1: train a, b\n" in printed
    assert "group 2: train c\n  for c (alone)" in printed
    assert printed.startswith("lookahead affinity of 3 tasks\n")


def test_a_measure_can_be_chosen_and_lookahead_goes_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, dict.fromkeys(LOOKAHEAD, 0.5), "cosine")
    assert affinity(capsys, tmp_path, "--budget", 1, "--no-recipes").startswith("cosine affinity")
    write_table(tmp_path, LOOKAHEAD)
    assert affinity(capsys, tmp_path, "--budget", 1, "--no-recipes").startswith("lookahead affinity")
    chosen = affinity(capsys, tmp_path, "--budget", 1, "--no-recipes", "--measure", "cosine")
    assert chosen.startswith("cosine affinity of 3 tasks; sum over the tasks: +1.5")


# ---------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", 0], "--budget must be between 1 and the number of tasks, 3, got 0"),
        (["--budget", 4], "--budget must be between 1 and the number of tasks, 3, got 4; more networks"),
        (["--budget", 2, "--self-affinity", "much"], "--self-affinity must be 'none', 'diagonal' or a finite number"),
        (["--budget", 2, "--measure", "cosine"], "has no cosine, only lookahead; name it in measures= of TaskAffinity"),
        (["--budget", 2], "config.yaml: there is no such file, so no recipes can be written; train with `lightning"),
    ],
    ids=["budget 0", "budget 4", "self-affinity", "measure", "no config"],
)
def test_options_that_do_not_fit_give_one_message(
    words: list[Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, LOOKAHEAD)
    assert message in refused(capsys, tmp_path, *words)


def test_a_folder_without_affinities_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no affinity.csv in or below this folder; train with" in refused(capsys, tmp_path, "--budget", 2)
    write_table(tmp_path / "one", LOOKAHEAD)
    write_table(tmp_path / "two", LOOKAHEAD)
    assert "holds several runs, name one of" in refused(capsys, tmp_path, "--budget", 2)


def test_a_pair_that_was_never_measured_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, LOOKAHEAD | {("b", "c"): torch.nan})
    message = refused(capsys, tmp_path, "--budget", 2)
    assert "the lookahead affinity of 'b' onto 'c' is nan, so the two were never measured together; train" in message


def test_one_task_cannot_be_grouped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path, {("a", "a"): 0.1})
    assert "must hold at least two tasks, got ['a']" in refused(capsys, tmp_path, "--budget", 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model": {"class_path": "m", "init_args": {"tasks": {"a": {}, "b": {}, "d": {}}}}},
            "affinity.csv has the tasks ['c'], which config.yaml lacks, and lacks ['d']; in",
        ),
        ({"model": {"class_path": "m.Mine"}}, "the tasks must be a mapping in model.init_args.tasks"),
        (["model"], "must hold a configuration, got list"),
    ],
    ids=["other tasks", "no tasks", "a list"],
)
def test_a_configuration_that_does_not_belong_to_the_affinities_is_refused(
    config: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_table(tmp_path, LOOKAHEAD)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert message in refused(capsys, tmp_path, "--budget", 2)
