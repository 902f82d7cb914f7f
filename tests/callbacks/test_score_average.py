"""Averages over the tasks of a benchmark."""

from __future__ import annotations

import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_mtl import MultiTaskModule
from lightning_mtl.callbacks import GLUEAverage, ScoreAverage
from lightning_mtl.nn import MLPEncoder
from lightning_mtl.tasks import TextClassification, TextRegression

GLUE = {
    "cola/matthews": 0.5,
    "sst2/accuracy": 0.9,
    "mrpc/accuracy": 0.8,
    "mrpc/binary_f1": 0.9,
    "stsb/pearson": 0.7,
    "stsb/spearman": 0.6,
    "qqp/accuracy": 0.6,
    "qqp/binary_f1": 0.5,
    "mnli/accuracy": 0.4,
    "qnli/accuracy": 0.6,
    "rte/accuracy": 0.55,
    "wnli/accuracy": 0.45,
}


def test_glue_average_is_the_mean_over_tasks_of_the_mean_of_their_metrics() -> None:
    scores = [0.5, 0.9, 0.85, 0.65, 0.55, 0.4, 0.6, 0.55, 0.45]
    assert GLUEAverage().average({**GLUE, "cola/accuracy": 0.1, "other/accuracy": 1.0}) == pytest.approx(
        100 * sum(scores) / 9
    )
    some = {name: value for name, value in GLUE.items() if name.startswith(("cola", "mrpc"))}
    assert GLUEAverage().average(some) == pytest.approx(100 * (0.5 + 0.85) / 2)


def test_what_is_not_defined_counts_as_zero_and_what_is_not_there_is_left_out() -> None:
    average = ScoreAverage({"a": ["x", "y"], "b": ["x"]}, scale=1.0).average
    assert average({"a/x": 0.5, "a/y": math.nan}) == 0.25
    assert math.isnan(average({}))
    with pytest.raises(KeyError, match=r"ScoreAverage: task 'a' must log \['x', 'y'\].*logs no \['y'\]"):
        average({"a/x": 0.5})
    for wrong in ({}, {"a": []}):
        with pytest.raises(ValueError, match="ScoreAverage: metrics must name tasks"):
            ScoreAverage(wrong)  # type: ignore[arg-type]


def test_average_is_logged_can_be_monitored_and_says_what_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    tasks = {"cola": TextClassification(2, ["matthews"]), "stsb": TextRegression(), "rte": TextClassification(2)}
    module = MultiTaskModule(MLPEncoder(4, [8]), tasks)
    nothing = torch.full((8,), -100)
    batch = (torch.randn(8, 4), {"cola": torch.arange(8) % 2, "stsb": torch.randn(8), "rte": nothing})
    checkpoint = ModelCheckpoint(dirpath=tmp_path, monitor="val/glue_average", mode="max")
    trainer = pl.Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        callbacks=[checkpoint, GLUEAverage()],
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    loader = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    with caplog.at_level("INFO"):
        trainer.fit(module, loader, loader)
    assert caplog.text.count("val/glue_average is without sst2, mrpc, qqp, mnli, qnli, rte, wnli") == 1
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    stsb = (logged["val/stsb/pearson"] + logged["val/stsb/spearman"]) / 2
    assert logged["val/glue_average"] == pytest.approx(100 * (logged["val/cola/matthews"] + stsb) / 2, rel=1e-5)
    assert logged["val/glue_average_num_tasks"] == 2
    assert checkpoint.best_model_score is not None
    assert "val/glue_average" in Path(trainer.log_dir or "", "metrics.csv").read_text()
    trainer.test(module, loader, verbose=False)
    assert float(trainer.callback_metrics["test/glue_average"]) == pytest.approx(logged["val/glue_average"])
