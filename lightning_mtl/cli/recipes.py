"""``lightning-mtl recipes``: the configuration files that come with the package."""

from __future__ import annotations

import argparse
import difflib
import importlib.resources
from collections.abc import Sequence
from pathlib import Path


def main(args: Sequence[str]) -> int:
    """List the recipes, or copy one to a file.

    Args:
        args: Words of the command line behind ``recipes``.

    Returns:
        Exit status 0.

    Raises:
        SystemExit: With status 2 and one message, if there is no such recipe or the file exists.
    """
    parser = argparse.ArgumentParser(
        prog="lightning-mtl recipes", description="List the recipes, or copy one to a file of your own."
    )
    parser.add_argument("name", nargs="?", help="recipe to copy, for example dense/nyuv2_nash")
    parser.add_argument("--out", type=Path, help="file or folder to copy it to; the current folder by default")
    parser.add_argument("--force", action="store_true", help="overwrite the file if it exists")
    options = parser.parse_args(args)

    recipes = find_recipes()
    if options.name is None:
        width = max((len(name) for name in recipes), default=0)
        for name, path in recipes.items():
            print(f"{name:<{width}}  {first_comment(path)}".rstrip())
        return 0
    try:
        print(copy_recipe(recipes, options.name, options.out, options.force))
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return 0


def recipe_folder() -> Path:
    """Return the folder of the recipes: inside an installed package, or beside the package in its source tree.

    Raises:
        FileNotFoundError: If there is neither.
    """
    package = Path(str(importlib.resources.files("lightning_mtl")))
    for folder in (package / "recipes", package.parent / "recipes"):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(f"recipes: no folder of recipes in {package} or beside it; reinstall lightning-mtl.")


def find_recipes() -> dict[str, Path]:
    """Return name -> file, sorted; a name is the path below the folder without ``.yaml``."""
    folder = recipe_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def first_comment(path: Path) -> str:
    """Return the text of the first comment line of a file, empty if it does not start with one."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return lines[0].lstrip("# ").rstrip() if lines and lines[0].startswith("#") else ""


def copy_recipe(recipes: dict[str, Path], name: str, out: Path | None, force: bool) -> Path:
    """Copy a recipe and return the file that was written.

    Args:
        recipes: Name -> file.
        name: Name of the recipe, or its last part if that is unique.
        out: File or folder to write to; None is the current folder.
        force: Whether to overwrite.

    Raises:
        ValueError: If there is no such recipe, or several.
        FileExistsError: If the file exists and ``force`` is not set.
    """
    matches = [known for known in recipes if name in (known, known.rpartition("/")[2])]
    if len(matches) != 1:
        close = matches or difflib.get_close_matches(name, recipes, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`lightning-mtl recipes` lists them all."
        raise ValueError(f"{'several recipes are' if matches else 'no recipe is'} named {name!r}; {hint}")
    source = recipes[matches[0]]
    target = Path() if out is None else out
    target = target / source.name if target.is_dir() else target
    if target.exists() and not force:
        raise FileExistsError(f"{target} exists; give another --out, or --force to overwrite it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())
    return target
