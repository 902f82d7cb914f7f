"""TaskAffinity on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mtl.callbacks import read_affinity
from tests.callbacks.affinity_worker import MEASURES, foreign, own
from tests.processes import start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    processes = start("tests.callbacks.affinity_worker", str(folder))
    for process in processes:
        assert process.wait(timeout=300) == 0
    return folder


@pytest.fixture(scope="module")
def runs(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(folder / f"result.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers")
@pytest.mark.parametrize("name", ["own", "foreign"])
def test_two_processes_measure_what_one_measures_on_the_joined_batch(
    name: str, runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = {"own": own, "foreign": foreign}[name](1, str(tmp_path))
    for found in (run[name] for run in runs):
        assert found["tasks"] == alone["tasks"]
        for measure in MEASURES:
            assert alone[measure].isfinite().all()
            torch.testing.assert_close(found[measure], alone[measure], rtol=1e-9, atol=1e-12)


def test_both_processes_know_the_very_same_and_one_writes_it(runs: list[dict[str, Any]], folder: Path) -> None:
    for measure in MEASURES:
        assert runs[0]["own"][measure].equal(runs[1]["own"][measure])
    table = read_affinity(folder / "affinity.csv")
    assert table.values["lookahead", ""].equal(runs[0]["own"]["lookahead"])


def test_weights_are_those_of_an_unwatched_run_on_two_processes(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        torch.testing.assert_close(run["foreign"]["weights"], run["unwatched"]["weights"], rtol=0, atol=0)


def test_losses_of_different_tasks_are_refused_on_both_processes(runs: list[dict[str, Any]]) -> None:
    for run in runs:
        assert "losses must return the same tasks on every process, got [['a', 'b'], ['a', 'b', 'c']]" in run["error"]
