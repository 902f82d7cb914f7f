"""Encoders with features for every task on two processes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.nn.task_aware_worker import EXACT, RUNS, train
from tests.processes import start


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    for process in start("tests.nn.task_aware_worker", str(folder / "two")):
        assert process.wait(timeout=300) == 0
    return [torch.load(folder / f"two.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", RUNS)
def test_both_processes_take_the_same_step_in_bf16_mixed(name: str, runs: list[dict[str, dict[str, Tensor]]]) -> None:
    first, second = (run[name] for run in runs)
    for key in first:
        assert first[key].isfinite().all()
        torch.testing.assert_close(first[key], second[key], rtol=0, atol=0)


@pytest.mark.parametrize("name", EXACT)
def test_two_processes_equal_one(name: str, runs: list[dict[str, dict[str, Tensor]]]) -> None:
    torch.testing.assert_close(runs[0][name], train(RUNS[name], world=1), rtol=0, atol=1e-9)
