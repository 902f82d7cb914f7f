"""One run of a benchmark: ``fit``, then ``test`` with the selected checkpoint.

``python -m lightning_mtl.cli.benchmark.worker RUN_FOLDER CHECKPOINT`` does it in a process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch

from lightning_mtl.cli.benchmark.callbacks import StepTime
from lightning_mtl.cli.benchmark.plan import CHECKPOINTS, LAST

CONFIG = "config.yaml"
FINISHED = "finished.json"


def train(folder: Path, checkpoint: Path) -> None:
    """Train the run whose configuration lies in a folder, from its last checkpoint if there is one, and test it.

    ``finished.json`` is the last thing that is written, and in one go.

    Args:
        folder: Folder of the run.
        checkpoint: The checkpoint to test.

    Raises:
        RuntimeError: If another process works on the run.
        SystemExit: With status 2 and one message, if the configuration or the data are wrong.
    """
    from lightning_mtl.cli.app import run  # which imports this package, for the command `benchmark`

    with _alone(folder):
        words = ["fit", "--config", str(folder / CONFIG)]
        last = folder / CHECKPOINTS / LAST
        if last.is_file():
            words += ["--ckpt_path", str(last)]
        cli = run(words)
        # not by ckpt_path, which would take the callbacks back to that epoch, with all that they saw since
        cli.model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"])
        cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
        if not cli.trainer.is_global_zero:
            return
        callbacks = cast(list[Any], cli.trainer.callbacks)  # type: ignore[attr-defined]
        (clock,) = [callback for callback in callbacks if isinstance(callback, StepTime)]
        record = {
            "steps": clock.steps,
            "seconds_per_step": clock.seconds,
            "versions": versions(),
            "machine": machine(),
        }
        write_json(folder / FINISHED, record)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock of a run; the system lets go of it when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    with (folder / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(f"benchmark: another process trains {folder}; wait for it or end it.") from error
        yield


def write_json(file: Path, content: Any) -> None:
    """Write a file that is there as a whole or not at all."""
    unfinished = file.with_name(f".{file.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    unfinished.replace(file)


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide about the numbers."""
    import lightning
    import timm

    import lightning_mtl

    found = {module.__name__: str(module.__version__) for module in (lightning_mtl, lightning, torch, timm)}
    return {**found, "python": platform.python_version()}


def machine() -> str:
    """Return what kind of machine this is."""
    graphics = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads"
    return f"{cores}, {', '.join(graphics) or 'no GPU'}"


def _end_with_parent() -> None:
    """End this process when the one that started it has ended: its end of the pipe closes."""
    while os.read(0, 1024):  # not through sys.stdin, whose lock the interpreter wants when it ends
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    train(Path(sys.argv[1]), Path(sys.argv[2]))
