"""Start a test's worker as several processes that find each other, as ``torchrun`` does it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def start(module: str, *arguments: str, world: int = 2) -> list[subprocess.Popen[bytes]]:
    """Run ``python -m module arguments`` once for every rank."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(world):
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
        command = [sys.executable, "-W", "ignore", "-m", module, *arguments]
        processes.append(subprocess.Popen(command, env=environment))
    return processes
