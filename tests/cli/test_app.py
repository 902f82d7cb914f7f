"""The command line trains, and refuses with one message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import lightning_mtl
from lightning_mtl.cli import main
from lightning_mtl.cli.errors import concise

# what Lightning calls of jsonargparse is deprecated there, one name after the other

CONFIG: dict[str, Any] = {
    "model": {
        "class_path": "lightning_mtl.MultiTaskModule",
        "init_args": {
            "encoder": {"class_path": "lightning_mtl.nn.MLPEncoder", "init_args": {"in_features": 8, "hidden": [16]}},
            "tasks": {
                "size": {
                    "class_path": "lightning_mtl.tasks.Regression",
                    "init_args": {"head": {"class_path": "lightning_mtl.nn.MLPHead", "init_args": {"hidden": [4]}}},
                },
                "kind": {"class_path": "lightning_mtl.tasks.MulticlassClassification", "init_args": {"num_classes": 3}},
                "age": {"class_path": "lightning_mtl.tasks.Regression"},
            },
            "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 0.01}},
        },
    },
    "data": {"class_path": "tests.cli.toy_data.TableData"},
    "trainer": {
        "max_epochs": 1,
        "accelerator": "cpu",
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    },
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "toy.yaml"
    file.write_text(yaml.safe_dump(CONFIG))
    return file


def message_of(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(words)
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_fit_writes_results_named_after_the_configuration(config: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(config)]) == 0
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert (report["name"], report["seed"]) == ("toy", 0)
    assert set(report["last"]["metrics"]) == {"size", "kind", "age"}
    assert report["untrained"]["losses"]["kind"] > report["last"]["losses"]["kind"]
    assert (tmp_path / "config.yaml").is_file()


def test_fit_ends_with_a_table(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", str(config)])
    printed = capsys.readouterr().out
    assert "untrained" in printed
    assert "toy · EqualWeighting" in printed


def test_two_runs_of_one_seed_are_equal_and_another_seed_differs(config: Path, tmp_path: Path) -> None:
    reports = []
    for seed in (1, 1, 2):
        main(["fit", "--config", str(config), "--seed_everything", str(seed), "--results.show", "false"])
        reports.append(json.loads((tmp_path / "metrics.json").read_text())["last"]["metrics"])
    assert reports[0] == reports[1] != reports[2]


def test_options_of_the_results_are_in_the_configuration(config: Path, tmp_path: Path) -> None:
    main(["fit", "--config", str(config), "--results.untrained", "false", "--results.name", "mine"])
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["name"] == "mine"
    assert "untrained" not in report


def test_several_configurations_name_the_run(config: Path, tmp_path: Path) -> None:
    other = tmp_path / "short.yaml"
    other.write_text("trainer: {max_steps: 1}")
    main(["fit", "--config", str(config), "--config", str(other)])
    assert json.loads((tmp_path / "metrics.json").read_text())["name"] == "toy+short"


def test_trained_model_is_tested_and_predicts_from_its_checkpoint(config: Path, tmp_path: Path) -> None:
    main(["fit", "--config", str(config)])
    (checkpoint,) = (tmp_path / "checkpoints").glob("*.ckpt")
    for command in ("validate", "test", "predict"):
        assert main([command, "--config", str(config), "--ckpt_path", str(checkpoint)]) == 0
        if command == "test":
            report = json.loads((tmp_path / "metrics.json").read_text())
            assert set(report["test"]["metrics"]) == {"size", "kind", "age"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"]["init_args"].update(balncer=None), "Option 'balncer' is not accepted"),
        (
            lambda c: c["model"]["init_args"]["tasks"]["size"]["init_args"]["head"]["init_args"].update(hiden=[4]),
            "Option 'hiden' is not accepted",
        ),
        (lambda c: c["data"].update(class_path="tests.cli.toy_data.Nothing"), "has no attribute 'Nothing'"),
        (lambda c: c.update(trainr={"max_epochs": 1}), "does not accept option 'trainr.max_epochs'"),
        (
            lambda c: c["model"]["init_args"]["encoder"]["init_args"].update(hidden=[]),
            "error: MLPEncoder: in_features and every width in hidden must be positive",
        ),
        (lambda c: c["data"].update(init_args={"present": False}), "error: TableData: root must name the folder"),
    ],
    ids=["key", "nested key", "class path", "section", "value", "data set"],
)
def test_wrong_configuration_gives_one_message(
    change: Any, message: str, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = yaml.safe_load(yaml.safe_dump(CONFIG))
    change(wrong)
    config.write_text(yaml.safe_dump(wrong))
    printed = message_of(["fit", "--config", str(config)], capsys)
    assert message in printed
    assert "Traceback" not in printed
    assert "Given value" not in printed
    assert "lightning-mtl" in printed


def test_missing_configuration_gives_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert "File does not exist: " in message_of(["fit", "--config", "nowhere.yaml"], capsys)


def test_unknown_command_gives_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'train'" in message_of(["train"], capsys)


def test_debugging_shows_the_traceback(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEBUG", "true")
    with pytest.raises(FileNotFoundError, match="TableData: root must name the folder"):
        main(["fit", "--config", str(config), "--data.present", "false"])


def test_help_names_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    printed = capsys.readouterr().out
    for command in ("fit", "validate", "test", "predict", "recipes", "compare"):
        assert command in printed


def test_module_is_a_program() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "lightning_mtl", "--version"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert printed.strip() == f"lightning-mtl {lightning_mtl.__version__}"


def test_concise_message_keeps_a_short_value_and_a_plain_message() -> None:
    assert concise("lr: wrong\nGiven value: abc") == "lr: wrong\nGiven value: abc"
    assert concise(f"lr: wrong\nGiven value: {'abc' * 50}") == "lr: wrong"
    assert concise("Errors:") == "Errors:"
