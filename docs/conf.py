"""Sphinx configuration."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import lightning_mtl
from lightning_mtl import balancers

project = "lightning_mtl"
author = "The lightning_mtl developers"
release = lightning_mtl.__version__
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build", "methods/generated"]
html_theme = "furo"
html_title = f"lightning_mtl {release}"
html_static_path = ["_static"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_default_options = {"members": True, "show-inheritance": True, "exclude-members": "forward, training, __init__"}
napoleon_custom_sections = ["Shape"]
napoleon_use_ivar = True
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def _reference(cls: type) -> str:
    """Return the first reference of a docstring as one line of Markdown."""
    text = inspect.getdoc(cls) or ""
    block = re.search(r"References:\n(.*?)(?:\n\n|\Z)", text, flags=re.S)
    if block is None:
        return ""
    line = " ".join(part.strip() for part in block.group(1).splitlines())
    return re.sub(r"(https?://\S+)", r"[link](\1)", line).replace("|", r"\|")


def _method_table(classes: list[type[balancers.Balancer]]) -> str:
    rows = ["| Class | What it does | Needs | Reference |", "| --- | --- | --- | --- |"]
    for cls in sorted(classes, key=lambda cls: cls.__name__):
        what = (inspect.getdoc(cls) or "").splitlines()[0].rstrip(".")
        needs = cls.needs.replace("_", " ")
        rows.append(f"| {{py:class}}`~lightning_mtl.balancers.{cls.__name__}` | {what} | {needs} | {_reference(cls)} |")
    return "\n".join(rows) + "\n"


def _write_tables(_: Any) -> None:
    """Write the tables of methods from the docstrings of the classes."""
    folder = HERE / "methods" / "generated"
    folder.mkdir(exist_ok=True)
    found = [getattr(balancers, name) for name in balancers.__all__]
    leaves = [cls for cls in found if isinstance(cls, type) and issubclass(cls, balancers.Balancer)]
    leaves = [cls for cls in leaves if not inspect.isabstract(cls)]
    rooms: dict[str, list[type[balancers.Balancer]]] = {}
    for cls in leaves:
        rooms.setdefault(cls.__module__.split(".")[2], []).append(cls)
    for room, classes in rooms.items():
        (folder / f"{room}.md").write_text(_method_table(classes))


def setup(app: Any) -> None:
    app.connect("builder-inited", _write_tables)
