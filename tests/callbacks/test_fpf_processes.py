"""Replay and finetuning on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.callbacks.fpf_worker import train
from tests.processes import start


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    processes = start("tests.callbacks.fpf_worker", str(folder / "two"))
    for process in processes:
        assert process.wait(timeout=300) == 0
    return [torch.load(folder / f"two.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", ["er", "der", "kfpf", "fpf"])
def test_two_processes_end_where_one_ends_on_the_joined_batch(
    name: str, runs: list[dict[str, Any]], tmp_path: Path
) -> None:
    alone = train(name, 1, tmp_path)
    for found in (run[name] for run in runs):
        torch.testing.assert_close(found["memory"], alone["memory"], rtol=0, atol=0)
        torch.testing.assert_close(found["weights"], alone["weights"], rtol=0, atol=1e-7)
        torch.testing.assert_close(found["matrix"], alone["matrix"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["er", "der", "kfpf", "fpf"])
def test_both_processes_have_the_very_same_weights(name: str, runs: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(runs[0][name]["weights"], runs[1][name]["weights"], rtol=0, atol=0)
