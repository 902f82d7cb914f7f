"""Nothing public is without a test case, a reference and a page."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

import pytest

from lightning_mtl.balancers import Balancer

ROOT = Path(__file__).parents[1]
ROOMS = [
    path.parent.name if path.name == "__init__.py" else path.stem
    for path in sorted((ROOT / "lightning_mtl").glob("*/__init__.py"))
]
WITH_CASES = ["balancers", "data", "losses", "nn", "tasks", "callbacks", "optim"]


def module(room: str) -> ModuleType:
    return importlib.import_module(f"lightning_mtl.{room}")


def public(room: str) -> list[tuple[str, type]]:
    found = [(name, getattr(module(room), name)) for name in module(room).__all__]
    return [(name, cls) for name, cls in found if inspect.isclass(cls) and not inspect.isabstract(cls)]


def methods() -> list[type[Balancer]]:
    return [cls for _, cls in public("balancers") if issubclass(cls, Balancer)]


def test_the_rooms_were_found() -> None:
    assert {"balancers", "data", "functional", "nn", "tasks"} <= set(ROOMS)
    assert len(methods()) > 10


@pytest.mark.parametrize("room", ROOMS)
def test_everything_exported_exists_and_is_documented(room: str) -> None:
    for name in module(room).__all__:
        assert inspect.getdoc(getattr(module(room), name)), f"lightning_mtl.{room}.{name} has no docstring"


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_has_a_page_in_the_reference(room: str) -> None:
    assert f"automodule:: lightning_mtl.{room}" in (ROOT / "docs" / "api" / f"{room}.md").read_text()
    assert re.search(rf"^{room}$", (ROOT / "docs" / "api" / "index.md").read_text(), flags=re.M)


@pytest.mark.parametrize("room", WITH_CASES)
def test_every_public_class_has_a_case(room: str) -> None:
    text = (ROOT / "tests" / room / "cases.py").read_text()
    missing = [name for name, _ in public(room) if not re.search(rf"\b{name}\b", text)]
    assert not missing, f"tests/{room}/cases.py lacks {missing}"


@pytest.mark.parametrize("cls", methods(), ids=lambda cls: cls.__name__)
def test_every_method_names_its_paper(cls: type[Balancer]) -> None:
    text = inspect.getdoc(cls) or ""
    assert re.search(r"References:\n(.|\n)*https?://", text), f"{cls.__name__} has no reference with a link"


def test_every_recipe_says_what_it_is_and_how_to_run_it() -> None:
    recipes = sorted((ROOT / "recipes").rglob("*.yaml"))
    assert recipes
    for recipe in recipes:
        head = recipe.read_text().splitlines()
        assert head[0].startswith("# "), f"{recipe} does not say what it is in its first line"
        assert any(line.startswith("# lightning-mtl fit --config") for line in head[:8]), f"{recipe} lacks its command"


def test_all_balancers_are_in_the_table_of_a_page() -> None:
    page = (ROOT / "docs" / "methods" / "index.md").read_text()
    rooms = {cls.__module__.split(".")[2] for cls in methods()}
    assert all(f"generated/{room}.md" in page for room in rooms if room != "base")
