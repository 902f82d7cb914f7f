"""Replay and finetuning on two processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from typing import Any

import pytest
import torch

from tests.callbacks.fpf_worker import train

pytestmark = pytest.mark.xdist_group("processes")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = dict(os.environ) | {
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_USE_AGENT_STORE": "False",
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.callbacks.fpf_worker", str(folder / "two")]
        processes.append(subprocess.Popen(command, env=environment))
    for process in processes:
        assert process.wait(timeout=300) == 0
    return [torch.load(folder / f"two.{rank}", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", ["er", "der", "kfpf", "fpf"])
def test_two_processes_end_where_one_ends_on_the_joined_batch(name: str, runs: list[dict[str, Any]]) -> None:
    alone = train(name, 1)
    for found in (run[name] for run in runs):
        torch.testing.assert_close(found["memory"], alone["memory"], rtol=0, atol=0)
        torch.testing.assert_close(found["weights"], alone["weights"], rtol=0, atol=1e-7)
        torch.testing.assert_close(found["matrix"], alone["matrix"], rtol=0, atol=0)


@pytest.mark.parametrize("name", ["er", "der", "kfpf", "fpf"])
def test_both_processes_have_the_very_same_weights(name: str, runs: list[dict[str, Any]]) -> None:
    torch.testing.assert_close(runs[0][name]["weights"], runs[1][name]["weights"], rtol=0, atol=0)
