"""Two processes take the steps of one with the joined batch."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.processes import start


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    alone = start("tests.optim.worker", str(tmp_path / "one"), world=1)
    together = start("tests.optim.worker", str(tmp_path / "two"))
    assert [process.wait(timeout=300) for process in (*alone, *together)] == [0, 0, 0]
    one = torch.load(tmp_path / "one.0", weights_only=True)
    for rank in range(2):
        two = torch.load(tmp_path / f"two.{rank}", weights_only=True)
        assert two["drawn"] == one["drawn"]
        assert sum(one["drawn"].values()) == 18
        torch.testing.assert_close(two["norms"], one["norms"], rtol=1e-9, atol=0)
        for name, value in one["model"].items():
            torch.testing.assert_close(two["model"][name], value, rtol=1e-8, atol=1e-12)
