"""Recipes are listed and copied."""

from __future__ import annotations

from pathlib import Path

import pytest

import lightning_mtl
from lightning_mtl.cli import main
from lightning_mtl.cli import recipes as module


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    for name, text in {
        "dense/nyuv2_dwa": "# DWA on NYUv2.\n# more\nmodel: 1\n",
        "dense/quick": "model: 2\n",
        "vision/quick": "#  Quick.\n",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.yaml").write_text(text)
    monkeypatch.setattr(module, "recipe_folder", lambda: folder)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return work


def refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["recipes", *words])
    assert exit_.value.code == 2
    return capsys.readouterr().err


def test_list_has_names_and_first_comment_lines(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["dense/nyuv2_dwa  DWA on NYUv2.", "dense/quick", "vision/quick     Quick."]


@pytest.mark.parametrize("name", ["dense/nyuv2_dwa", "nyuv2_dwa"])
def test_recipe_is_copied_to_the_current_folder(name: str, recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes", name]) == 0
    assert capsys.readouterr().out.strip() == "nyuv2_dwa.yaml"
    assert (recipes / "nyuv2_dwa.yaml").read_text() == "# DWA on NYUv2.\n# more\nmodel: 1\n"


def test_recipe_is_copied_to_a_file_or_folder(recipes: Path) -> None:
    main(["recipes", "nyuv2_dwa", "--out", str(recipes / "new" / "mine.yaml")])
    assert (recipes / "new" / "mine.yaml").is_file()
    main(["recipes", "nyuv2_dwa", "--out", str(recipes / "new")])
    assert (recipes / "new" / "nyuv2_dwa.yaml").is_file()


def test_existing_file_is_overwritten_by_force_only(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = recipes / "nyuv2_dwa.yaml"
    target.write_text("precious")
    assert "nyuv2_dwa.yaml exists; give another --out, or --force" in refused(["nyuv2_dwa"], capsys)
    assert target.read_text() == "precious"
    assert main(["recipes", "nyuv2_dwa", "--force"]) == 0
    assert target.read_text().startswith("# DWA")


def test_unknown_recipe_names_close_ones(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["dense/nyuv2_dw"], capsys)
    assert "no recipe is named 'dense/nyuv2_dw'; did you mean dense/nyuv2_dwa?" in message


def test_name_of_two_recipes_is_refused(recipes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = refused(["quick"], capsys)
    assert "several recipes are named 'quick'; did you mean dense/quick or vision/quick?" in message


def test_folder_is_that_of_the_package_or_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lightning_mtl"
    package.mkdir()
    monkeypatch.setattr(module.importlib.resources, "files", lambda name: package)
    with pytest.raises(FileNotFoundError, match="no folder of recipes"):
        module.recipe_folder()
    (tmp_path / "recipes").mkdir()
    assert module.recipe_folder() == tmp_path / "recipes"
    (package / "recipes").mkdir()
    assert module.recipe_folder() == package / "recipes"


def test_source_tree_has_recipes_beside_the_package() -> None:
    root = Path(lightning_mtl.__file__).parent
    assert module.recipe_folder() in (root / "recipes", root.parent / "recipes")
