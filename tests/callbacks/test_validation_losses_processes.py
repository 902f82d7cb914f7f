"""Two processes train language models as one does on the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.callbacks.validation_losses_worker import BALANCERS, main
from tests.processes import start

pytestmark = pytest.mark.xdist_group("processes")


def test_two_processes_equal_one_and_each_other(tmp_path: Path) -> None:
    processes = start("tests.callbacks.validation_losses_worker", str(tmp_path / "two"))
    main(str(tmp_path / "one"))
    assert [process.wait(240) for process in processes] == [0, 0]
    one, first, second = (torch.load(tmp_path / name) for name in ("one.0", "two.0", "two.1"))
    assert set(one) == {*BALANCERS, "losses"}
    for name, found in one.items():
        for key, value in found.items():
            torch.testing.assert_close(
                first[name][key], value, rtol=1e-5, atol=1e-8, msg=lambda m, n=name, k=key: f"{n} {k}: {m}"
            )
            assert torch.equal(first[name][key], second[name][key]), f"{name} {key}"
    assert one["coba"]["weights"][0] != 0.5
    assert one["famo"]["weights"][0] != 0.5
