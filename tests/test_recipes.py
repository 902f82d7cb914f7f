"""Every shipped recipe runs through the real command line."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_mtl.cli import main
from tests.data.benchmark_trees import write_superglue
from tests.data.dense_trees import write_cityscapes_mtan, write_folder, write_pascal_context, write_taskonomy
from tests.data.glue_trees import WORDS, write_glue
from tests.data.text_folder_tree import write_text_folder
from tests.data.trees import write_acdc_tree
from tests.nn.local_bert import write_bert

ROOT = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(ROOT.rglob("*.yaml"))
IN_FOLDER = {
    "bccd_fcos": "bccd",
    "dark_bccd_featenhancer": "bccd",
    "chess_multihead": "chess_pieces",
}  # recipes of data modules that read any such folder
ON_DISK = {
    "NYUv2DataModule": "nyuv2",
    "CamVidDataModule": "camvid",
    "MultiMNISTDataModule": "mnist",
    "lightning_mtl.data.MNIST": "mnist",
    "SICKDataModule": "sick",
    "EmoBankDataModule": "emobank",
}
WRITTEN: dict[str, Callable[[Path, tuple[int, int]], Path]] = {
    "CityscapesMTANDataModule": write_cityscapes_mtan,
    "PascalContextDataModule": write_pascal_context,
    "TaskonomyDataModule": write_taskonomy,
    "DenseFolderDataModule": write_folder,
    "ACDCDataModule": lambda root, size: write_acdc_tree(root, size=size),
    "SuperGLUEDataModule": lambda root, size: write_superglue(root),
    "TextFolderDataModule": lambda root, size: write_text_folder(root),
    ".GLUEDataModule": lambda root, size: write_glue(root),
}  # small stand-ins in the encodings of the data sets

WITH_LOCAL_BERT = ("glue_bert",)  # recipes that read a model and its tokenizer from a folder


def test_recipes_were_found() -> None:
    assert ROOT / "quickstart.yaml" in RECIPES


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_recipe_runs_two_steps(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = os.environ.get("LIGHTNING_MTL_DATA")
    for module, folder in ON_DISK.items():
        if module in recipe.read_text():
            if root is None:
                pytest.skip("LIGHTNING_MTL_DATA is not set to a folder of data sets")
            if not (Path(root) / folder).is_dir():
                pytest.skip(f"{Path(root) / folder} is not there")
            monkeypatch.setenv("LIGHTNING_MTL_DATA", str(Path(root).resolve()))
    folder = IN_FOLDER.get(recipe.stem)
    if folder is not None and (root is None or not (Path(root) / folder).is_dir()):
        pytest.skip(f"LIGHTNING_MTL_DATA/{folder} is not there")
    data = [] if folder is None else ["--data.root", str((Path(root or "") / folder).resolve())]
    for module, write in WRITTEN.items():
        if module in recipe.read_text():
            data = ["--data.root", str(write(tmp_path / "data", (64, 96)))]
    if recipe.stem in WITH_LOCAL_BERT:
        model = str(write_bert(tmp_path / "model", WORDS))
        data += ["--model.encoder.model", model, "--data.tokenizer", model]
    monkeypatch.chdir(tmp_path)
    options = ["--trainer.fast_dev_run", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    status = main(["fit", "--config", str(recipe), *options, *data, "--data.num_workers", "0"])
    assert status == 0
