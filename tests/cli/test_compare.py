"""Runs side by side."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_mtl.cli import main

DIRECTIONS = {"seg": {"miou": True}, "depth": {"rmse": False}}


def write_run(folder: Path, miou: float | None, rmse: float | None, seed: int | None = 0, **changes: Any) -> None:
    """Write the results of a run; a task whose value is None was not trained."""
    metrics = {
        task: {name: value}
        for task, name, value in (("seg", "miou", miou), ("depth", "rmse", rmse))
        if value is not None
    }
    report = {
        "name": "nyuv2",
        "balancer": "lightning_mtl.balancers.EqualWeighting",
        "seed": seed,
        "higher_is_better": {task: DIRECTIONS[task] for task in metrics},
        "baselines": {},
        "last": {"metrics": metrics},
    }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(report | changes))


def compare(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["compare", *map(str, words)]) == 0
    return capsys.readouterr().out


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["compare", *map(str, words)])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_seeds_of_one_configuration_become_mean_and_standard_deviation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed, miou in enumerate((0.4, 0.5, 0.6)):
        write_run(tmp_path / str(seed), miou, 1.0, seed)
    (row,) = rows_of(compare(capsys, tmp_path, "--format", "csv"))
    assert row["seeds"] == "3"
    assert float(row["seg/miou"]) == pytest.approx(0.5)
    assert float(row["seg/miou_std"]) == pytest.approx(0.1)  # of the sample: n - 1
    assert float(row["depth/rmse_std"]) == 0
    assert row["delta_m"] == ""


def test_runs_with_other_settings_stay_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, rate in enumerate((0.1, 0.1, 0.2)):
        folder = tmp_path / str(seed)
        write_run(folder, 0.5, 1.0, seed)
        config = {"seed_everything": seed, "model": {"lr": rate}, "trainer": {"logger": str(seed), "max_epochs": 3}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    rows = rows_of(compare(capsys, tmp_path, "--format", "csv"))
    assert [row["seeds"] for row in rows] == ["2", "1"]
    assert rows[0]["run"] == f"nyuv2, {tmp_path / '0'}"


def test_runs_of_other_balancers_stay_apart_and_are_named_by_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", 0.5, 1.0, 0)
    write_run(tmp_path / "b", 0.5, 1.0, 1, balancer="lightning_mtl.balancers.NashMTL")
    rows = rows_of(compare(capsys, tmp_path, "--format", "csv"))
    assert [row["run"] for row in rows] == ["nyuv2 (EqualWeighting)", "nyuv2 (NashMTL)"]


@pytest.mark.parametrize("seed", [0, None], ids=["same seed", "unknown seed"])
def test_repetitions_and_unknown_seeds_are_not_averaged(
    seed: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", 0.5, 1.0, seed)
    write_run(tmp_path / "b", 0.6, 1.0, seed)
    assert len(rows_of(compare(capsys, tmp_path, "--format", "csv"))) == 2


def test_change_is_against_single_task_runs_of_several_seeds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "multi", 0.55, 0.9)
    for seed, (miou, rmse) in enumerate(((0.4, 0.9), (0.6, 1.1))):
        write_run(tmp_path / "single" / f"seg{seed}", miou, None, seed)
        write_run(tmp_path / "single" / f"depth{seed}", None, rmse, seed)
    text = compare(capsys, tmp_path / "multi", "--baselines", tmp_path / "single", "--format", "csv")
    assert float(rows_of(text)[0]["delta_m"]) == pytest.approx(10.0)  # +10 % miou, -10 % error


def test_change_is_against_a_file_of_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "multi", 0.55, 0.9)
    file = tmp_path / "baselines.json"
    file.write_text(json.dumps({"depth": {"rmse": 1.0}}))
    text = compare(capsys, tmp_path / "multi", "--baselines", file, "--format", "csv")
    assert float(rows_of(text)[0]["delta_m"]) == pytest.approx(10.0)


def test_change_is_against_what_the_run_knew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "multi", 0.4, 0.9, baselines={"seg": {"miou": 0.5}})
    (row,) = rows_of(compare(capsys, tmp_path, "--format", "csv"))
    assert float(row["delta_m"]) == pytest.approx(-20.0)


def test_test_is_compared_when_all_runs_have_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0.5, 1.0, 0, test={"metrics": {"seg": {"miou": 0.7}}})
    text = compare(capsys, tmp_path / "a", "--format", "csv")
    assert rows_of(text)[0]["seg/miou"] == "0.7"
    write_run(tmp_path / "b", 0.4, 1.0, 1)
    text = compare(capsys, tmp_path, "--format", "csv")
    assert float(rows_of(text)[0]["seg/miou"]) == pytest.approx(0.45)


def test_section_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0.5, 1.0, 0, untrained={"metrics": {"seg": {"miou": 0.1}}})
    text = compare(capsys, tmp_path, "--section", "untrained", "--format", "csv")
    assert rows_of(text)[0]["seg/miou"] == "0.1"
    assert "has no evaluation 'best', only ['untrained', 'last']" in refused(capsys, tmp_path, "--section", "best")


def test_columns_of_a_csv_logger_are_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.csv").write_text(
        "epoch,step,train/seg/loss,val/seg/miou,val/seg/loss,val/loss\n0,1,2.0,,,\n0,1,,0.3,1.0,1.0\n1,2,,0.4,0.9,0.9\n"
    )
    (tmp_path / "config.yaml").write_text("seed_everything: 3\n")
    (row,) = rows_of(compare(capsys, tmp_path, "--format", "csv"))
    assert row["seg/miou"] == "0.4"
    assert [key for key in row if key.startswith("seg")] == ["seg/miou", "seg/miou_std"]


def test_missing_values_are_dashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0.5, None, balancer="x.A")
    write_run(tmp_path / "b", None, 1.0, balancer="x.B")
    assert compare(capsys, tmp_path, "--format", "md").splitlines()[2:] == [
        "| nyuv2 (A) | 1 | **0.5** | - |",
        "| nyuv2 (B) | 1 | - | **1** |",
    ]


@pytest.fixture
def two_methods(tmp_path: Path) -> Path:
    for seed, shift in enumerate((0.0, 0.2)):
        write_run(tmp_path / "runs" / f"a{seed}", 0.5 + shift, 1.0, seed, name="nyu_v2")
        write_run(tmp_path / "runs" / f"b{seed}", 0.4 + shift, 0.5, seed, name="other")
    return tmp_path / "runs"


def test_markdown_has_arrows_and_the_best_in_bold(two_methods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(capsys, two_methods, "--format", "md") == (
        "| run | seeds | seg/miou ↑ | depth/rmse ↓ |\n"
        "| :-- | --: | --: | --: |\n"
        "| nyu_v2 | 2 | **0.6 ± 0.14** | 1 ± 0 |\n"
        "| other | 2 | 0.5 ± 0.14 | **0.5 ± 0** |\n"
    )


def test_latex_is_a_booktabs_table(two_methods: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "baselines.json"
    file.write_text(json.dumps({"seg": {"miou": 0.5}}))
    assert compare(capsys, two_methods, "--format", "latex", "--baselines", file).splitlines() == [
        r"\begin{tabular}{lrrrr}",
        r"\toprule",
        r"run & seeds & seg/miou $\uparrow$ & depth/rmse $\downarrow$ & $\Delta_m$ \% $\uparrow$ \\",
        r"\midrule",
        r"nyu\_v2 & 2 & \textbf{0.6 $\pm$ 0.14} & 1 $\pm$ 0 & \textbf{+20.00 $\pm$ 28.28} \\",
        r"other & 2 & 0.5 $\pm$ 0.14 & \textbf{0.5 $\pm$ 0} & +0.00 $\pm$ 28.28 \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_table_has_one_column_per_configuration(two_methods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = compare(capsys, two_methods).splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert cells == [
        ["seeds", "2", "2"],
        ["seg/miou ↑", "0.6 ± 0.14", "0.5 ± 0.14"],
        ["depth/rmse ↓", "1 ± 0", "0.5 ± 0"],
    ]


def test_metrics_are_chosen_by_pattern(two_methods: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = compare(capsys, two_methods, "--format", "md", "--metrics", "*/rmse")
    assert "miou" not in text
    assert "rmse" in text


def test_folder_without_results_gives_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no metrics.json or metrics.csv in or below this folder" in refused(capsys, tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"last": 1}'])
def test_broken_results_name_the_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "metrics.json").write_text(text)
    assert f"{tmp_path / 'metrics.json'}: is not what the ResultsTable callback writes" in refused(capsys, tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", '{"seg": 1}'])
def test_broken_baselines_name_the_file(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0.5, 1.0)
    file = tmp_path / "baselines.json"
    file.write_text(text)
    message = refused(capsys, tmp_path / "a", "--baselines", file)
    assert "must be a JSON file {task: {metric: value}}" in message


def test_baselines_of_other_metrics_are_pointed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0.5, 1.0)
    file = tmp_path / "baselines.json"
    file.write_text(json.dumps({"seg": {"iou": 0.5}}))
    assert main(["compare", str(tmp_path / "a"), "--baselines", str(file)]) == 0
    assert "no metric has a baseline and a known direction" in capsys.readouterr().err


def test_runs_without_a_common_evaluation_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "a", 0.5, 1.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "metrics.csv").write_text("test/seg/miou\n0.5\n")
    assert "have no evaluation in common" in refused(capsys, tmp_path)
