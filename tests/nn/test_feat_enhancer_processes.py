"""Two processes on halves of a batch train an enhancement like one process on the whole batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.processes import start


@pytest.mark.slow
def test_two_processes_end_where_one_ends_though_one_of_them_never_sees_the_enhanced_task(tmp_path: Path) -> None:
    worker = "tests.nn.feat_enhancer_worker"
    for run in start(worker, str(tmp_path / "one"), world=1) + start(worker, str(tmp_path / "two")):
        assert run.wait(timeout=300) == 0
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("one.0", "two.0", "two.1"))
    assert len(one) == 4
    for rank in two:
        torch.testing.assert_close(rank, one, rtol=0, atol=1e-9)  # float64
