"""Two processes on halves of a batch train like one process on the whole batch."""

from __future__ import annotations

import pytest
import torch

from tests.processes import start
from tests.trainable import TRAINABLE


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    worker = "tests.processes_worker"
    runs = start(worker, str(folder / "one"), *TRAINABLE, world=1) + start(worker, str(folder / "two"), *TRAINABLE)
    for run in runs:
        assert run.wait(timeout=900) == 0
    files = {"one": "one.0", "two, first": "two.0", "two, second": "two.1"}
    return {key: torch.load(folder / name, weights_only=True) for key, name in files.items()}


@pytest.mark.parametrize("name", TRAINABLE)
@pytest.mark.parametrize("rank", ["two, first", "two, second"])
def test_two_processes_end_where_one_ends(
    name: str, rank: str, parameters: dict[str, dict[str, dict[str, torch.Tensor]]]
) -> None:
    one, two = parameters["one"][name], parameters[rank][name]
    assert set(one) == set(two)
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=0, atol=1e-6)
