"""What is special about the results table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from torch import Tensor, nn

from lightning_mtl.callbacks import ResultsTable
from tests.toys import Table, loader, make_module, make_trainer


def read(folder: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return report


def fit(folder: Path, *callbacks: Callback, module: pl.LightningModule | None = None, **arguments: Any) -> pl.Trainer:
    trainer = make_trainer(default_root_dir=folder, callbacks=list(callbacks), **arguments)
    trainer.fit(module or make_module(), loader(), loader(Table(seed=1)))
    return trainer


def test_untrained_metrics_are_those_of_a_validation_before_the_fit(tmp_path: Path) -> None:
    expected = make_trainer().validate(make_module(), loader(Table(seed=1)), verbose=False)[0]
    fit(tmp_path, ResultsTable(show=False))
    untrained = read(tmp_path)["untrained"]
    for task, metrics in untrained["metrics"].items():
        for name, value in metrics.items():
            assert value == pytest.approx(expected[f"val/{task}/{name}"])
    assert untrained["losses"] == {
        task: pytest.approx(expected[f"val/{task}/loss"]) for task in ("size", "kind", "age")
    }


def test_last_metrics_are_those_of_the_trained_model(tmp_path: Path) -> None:
    module = make_module()
    trainer = fit(tmp_path, ResultsTable(show=False), module=module, max_epochs=3)
    last = read(tmp_path)["last"]
    assert (last["epoch"], last["step"]) == (2, 24)
    expected = make_trainer().validate(module, loader(Table(seed=1)), verbose=False)[0]
    assert last["metrics"]["kind"] == {
        name.removeprefix("val/kind/"): pytest.approx(value)
        for name, value in expected.items()
        if name.startswith("val/kind/") and not name.endswith("loss")
    }
    assert trainer.global_step == 24


def test_report_says_what_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    module = make_module(baselines={"size": {"mse": 1.0}})
    fit(tmp_path, ResultsTable(name="run", show=False), module=module)
    report = read(tmp_path)
    assert (report["name"], report["seed"]) == ("run", 7)
    assert report["balancer"].endswith(".EqualWeighting")
    assert report["model"] == "lightning_mtl.module.MultiTaskModule"
    assert report["higher_is_better"] == module.higher_is_better()
    assert report["baselines"] == {"size": {"mse": 1.0}}
    assert report["seconds"] > 0
    assert report["versions"]["torch"] == torch.__version__


def test_without_the_untrained_model_the_sanity_check_stays_as_it_is(tmp_path: Path) -> None:
    trainer = fit(tmp_path, ResultsTable(untrained=False, show=False), num_sanity_val_steps=1)
    assert trainer.num_sanity_val_steps == 1
    assert "untrained" not in read(tmp_path)


class Scripted(pl.LightningModule):
    """Somebody's own module: logs a metric that goes up and comes down again."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 1)
        self.values = values

    def training_step(self, batch: Any) -> Tensor:
        return self.layer(batch[0]).mean()

    def validation_step(self, batch: Any) -> None:
        self.log("val/seg/miou", self.values[0 if self.trainer.sanity_checking else self.current_epoch])
        self.log("val/seg/loss", 1.0)
        self.log("val/score", self.values[self.current_epoch])
        self.log("lr", 0.1)

    def test_step(self, batch: Any) -> None:
        self.log("test/seg/miou", 0.25)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_best_follows_the_checkpoint_that_monitors(tmp_path: Path) -> None:
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/score", mode="max")
    fit(
        tmp_path,
        ResultsTable(show=False),
        checkpoint,
        module=Scripted([0.1, 0.3, 0.2]),
        max_epochs=3,
        enable_checkpointing=True,
    )
    report = read(tmp_path)
    assert report["best"]["epoch"] == 1
    assert report["best"]["metrics"] == {"seg": {"miou": pytest.approx(0.3)}}
    assert report["last"]["metrics"] == {"seg": {"miou": pytest.approx(0.2)}}
    assert report["best"]["monitor"] == "val/score"


def test_other_modules_that_log_by_task_are_understood(tmp_path: Path) -> None:
    fit(tmp_path, ResultsTable(show=False), module=Scripted([0.1]))
    report = read(tmp_path)
    assert report["last"]["losses"] == {"seg": 1.0}
    assert (report["balancer"], report["higher_is_better"]) == (None, {})


def test_values_that_are_no_numbers_become_null(tmp_path: Path) -> None:
    fit(tmp_path, ResultsTable(show=False), module=Scripted([float("nan")]))
    assert read(tmp_path)["last"]["metrics"] == {"seg": {"miou": None}}


def test_validation_and_test_have_sections_of_their_own(tmp_path: Path) -> None:
    module = Scripted([0.5])
    trainer = make_trainer(default_root_dir=tmp_path, callbacks=[ResultsTable(show=False)])
    trainer.validate(module, loader(), verbose=False)
    trainer.test(module, loader(), verbose=False)
    report = read(tmp_path)
    assert report["validate"]["metrics"] == {"seg": {"miou": 0.5}}
    assert report["test"]["metrics"] == {"seg": {"miou": 0.25}}
    assert "last" not in report


def test_resumed_run_keeps_the_untrained_model_and_its_time(tmp_path: Path) -> None:
    def run(name: str, epochs: int, seed: int, ckpt_path: Path | None = None) -> dict[str, Any]:
        callbacks = [ResultsTable(show=False), ModelCheckpoint(tmp_path / "checkpoints", save_last=True)]
        folder = tmp_path / name
        trainer = make_trainer(
            default_root_dir=folder, callbacks=callbacks, max_epochs=epochs, enable_checkpointing=True
        )
        trainer.fit(make_module(seed), loader(), loader(Table(seed=1)), ckpt_path=ckpt_path)
        return read(folder)

    before = run("a", 1, 0)
    after = run("b", 2, 1, tmp_path / "checkpoints" / "last.ckpt")
    assert after["untrained"] == before["untrained"]
    assert after["last"]["epoch"] == 1
    assert after["seconds"] > 0.5 * before["seconds"]


def test_table_is_printed_with_the_change_since_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    fit(tmp_path, ResultsTable(name="scripted"), module=Scripted([0.5, 0.75]), max_epochs=2)
    printed = capsys.readouterr().out
    assert "scripted" in printed
    (row,) = [line for line in printed.splitlines() if "miou" in line]
    assert [cell.strip() for cell in row.split("│")[1:-1]] == ["seg", "miou", "0.5", "0.75", "+0.25"]


def test_quiet_table_prints_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(tmp_path, ResultsTable(show=False), module=Scripted([0.5]))
    assert "miou" not in capsys.readouterr().out


def test_fit_without_validation_writes_no_evaluation(tmp_path: Path) -> None:
    trainer = make_trainer(default_root_dir=tmp_path, callbacks=[ResultsTable()])
    trainer.fit(make_module(), loader())
    assert set(read(tmp_path)) & {"untrained", "last", "best", "validate", "test"} == set()
