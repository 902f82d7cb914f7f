"""Controllable networks in two processes."""

from __future__ import annotations

import pytest
import torch

from tests.controllable.slimmable_worker import RUNS, train
from tests.processes import start


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    out = tmp_path_factory.mktemp("slimmable") / "found"
    processes = start("tests.controllable.slimmable_worker", str(out))
    assert [process.wait(timeout=240) for process in processes] == [0, 0]
    return [torch.load(f"{out}.{rank}") for rank in range(2)]


@pytest.mark.parametrize("run", RUNS)
def test_two_processes_train_and_measure_like_one_with_the_joined_batch(
    run: str, found: list[dict[str, dict[str, torch.Tensor]]]
) -> None:
    alone = train(RUNS[run], 1)
    assert any(key.startswith("val/narrow/") for key in alone)
    torch.testing.assert_close(found[0][run], found[1][run], rtol=0, atol=0)
    torch.testing.assert_close(found[0][run], alone, rtol=1e-6, atol=1e-7)
