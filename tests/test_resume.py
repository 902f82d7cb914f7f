"""Killed and resumed, a run goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

STEPS, KILL_AT = 75, 19


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tests.resume_worker", *arguments]


def losses(path: Path) -> dict[int, str]:
    lines = path.read_text().splitlines() if path.exists() else []
    return dict(json.loads(line) for line in lines if line.endswith("]"))


@pytest.mark.parametrize(
    "balancer",
    [
        "FAMO",  # state of its own, an inner optimizer, and a second pass
        pytest.param("DWA", marks=pytest.mark.slow),  # with the next about a minute and a half
        pytest.param("RandomLossWeighting", marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_resumes_with_the_same_losses(balancer: str, tmp_path: Path) -> None:
    whole = tmp_path / "whole.txt"
    reference = subprocess.Popen(command(str(tmp_path / "a"), str(whole), balancer, str(STEPS)))

    killed = tmp_path / "killed.txt"
    process = subprocess.Popen(command(str(tmp_path / "b"), str(killed), balancer, str(STEPS)))
    deadline = time.monotonic() + 120
    while len(losses(killed)) < KILL_AT and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert reference.wait(timeout=120) == 0

    resumed = tmp_path / "resumed.txt"
    again = command(str(tmp_path / "b"), str(resumed), balancer, str(STEPS), str(tmp_path / "b" / "last.ckpt"))
    assert subprocess.run(again, check=False).returncode == 0
    expected, found = losses(whole), losses(resumed)
    assert min(found) % 12, "the checkpoint should lie in the middle of an epoch"
    assert len(found) >= 50
    assert found == {step: expected[step] for step in found}
