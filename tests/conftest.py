"""What every test gets: one thread a worker, no GPU surprises, the real data if it is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have the tests that start processes on one worker."""
    from tests.scheduling import ProcessesTogether

    return ProcessesTogether(config, log) if config.getvalue("dist") == "loadgroup" else None


@pytest.fixture(scope="session", autouse=True)
def _tokens_in_a_folder_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ["LIGHTNING_MTL_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """Return a function from the name of a data set to its folder; it skips the test where there is none."""

    def find(name: str) -> Path:
        root = os.environ.get("LIGHTNING_MTL_DATA")
        if root is None:
            pytest.skip("LIGHTNING_MTL_DATA is not set to a folder of data sets")
        folder = Path(root).resolve() / name
        if not folder.is_dir():
            pytest.skip(f"{folder} is not there")
        return folder

    return find
