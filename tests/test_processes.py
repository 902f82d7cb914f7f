"""Two processes on halves of a batch train like one process on the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.trainable import TRAINABLE

pytestmark = pytest.mark.xdist_group("processes")


def start(out: Path, world: int, rank: int, port: int) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if world > 1:
        environment |= {
            "WORLD_SIZE": str(world),
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_USE_AGENT_STORE": "False",
        }
    return subprocess.Popen([sys.executable, "-m", "tests.processes_worker", str(out), *TRAINABLE], env=environment)


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = [start(folder / "one", 1, 0, port)] + [start(folder / "two", 2, rank, port) for rank in range(2)]
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
