"""DynamicPruning in two processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.processes import start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dynamic_pruning")
    processes = start("tests.callbacks.dynamic_pruning_worker", str(out))
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    return out


@pytest.mark.parametrize("mode", ["decoupled", "joint"])
def test_plain_ddp_runs_through_all_phases_and_processes_stay_equal(mode: str, folder: Path) -> None:
    first, second = (torch.load(folder / f"{mode}-{rank}.pt") for rank in range(2))
    assert first["phases"] == [(False, True), (True, True), (True, True), (True, False), (True, False)]
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    changed = [not torch.equal(a, b) for a, b in zip(first["predictors"], first["predictors"][1:], strict=False)]
    assert changed == [True, True, False, False]
