"""Imports point down."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import lightning_mtl

ROOT = Path(lightning_mtl.__file__).parent
ORDER = {
    "functional": 0,
    "losses": 1,
    "nn": 1,
    "data": 1,
    "metrics": 1,
    "optim": 1,
    "scaling": 1,
    "tasks": 2,
    "balancers": 2,
    "module": 3,
    "callbacks": 4,
    "controllable": 4,
    "diffusion": 4,
    "merging": 4,
    "adaptation": 4,
    "rl": 4,
    "cli": 5,
    "__init__": 6,
    "__main__": 6,
}
FILES = sorted(ROOT.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lightning_mtl"):
            parts = node.module.split(".")
            names |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {a.name.split(".")[1] for a in node.names if a.name.startswith("lightning_mtl.")}
    return {name for name in names if name in ORDER}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    assert here in ORDER, f"{here} is no room of the tree"
    for there in imported_rooms(path) - {here}:
        assert ORDER[there] < ORDER[here], f"{path.relative_to(ROOT)} imports {there}, which is not below {here}"


def test_every_file_was_found() -> None:
    assert len(FILES) > 20


def test_importing_the_package_adds_no_heavy_package_to_those_of_lightning() -> None:
    code = (
        "import sys, lightning.pytorch\n"
        "before = set(sys.modules)\n"
        "import lightning_mtl, lightning_mtl.nn, lightning_mtl.tasks, lightning_mtl.balancers, lightning_mtl.data\n"
        "heavy = {'timm', 'segmentation_models_pytorch', 'matplotlib', 'torchjd', 'scipy', 'onnx', 'transformers'}\n"
        "heavy |= {'tokenizers', 'pyarrow', 'peft'}\n"
        "print(sorted((set(sys.modules) - before) & heavy))"
    )
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
