from __future__ import annotations

import re
from pathlib import Path

import pytest
from jsonargparse import ArgumentError, ArgumentParser

from lightning_mtl.data import MultiTaskDataModule, NYUv2DataModule, PhotometricJitter, RandomScaleCrop
from tests.data.trees import write_mnist, write_png_tree

SCENES = """
class_path: lightning_mtl.data.SyntheticScenesDataModule
init_args:
  {tasks: [depth, edges], size: [16, 24], num_train: 8, num_val: 4, batch_size: 4, label_fraction: {depth: 0.5}}
"""

NYUV2 = """
class_path: lightning_mtl.data.NYUv2DataModule
init_args:
  root: ROOT
  tasks: [segmentation, normals]
  num_classes: 40
  size: [12, 16]
  val_split: test
  batch_size: 4
  num_workers: 0
  augment:
    - {class_path: lightning_mtl.data.RandomScaleCrop, init_args: {scales: [1.0, 1.5]}}
    - {class_path: lightning_mtl.data.PhotometricJitter}
"""

MNIST = """
class_path: lightning_mtl.data.MultiMNISTDataModule
init_args: {root: ROOT, num_train: 40, num_val: 8, num_test: 8, batch_size: 4}
"""


def parse(text: str, *arguments: str) -> MultiTaskDataModule:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_subclass_arguments(MultiTaskDataModule, "data", required=True)
    lines = "\n".join("  " + line for line in text.strip().splitlines())
    config = parser.parse_args(["--config", f"data:\n{lines}\n", *arguments])
    data = parser.instantiate_classes(config).data
    assert isinstance(data, MultiTaskDataModule)
    return data


@pytest.mark.parametrize("text", [SCENES, NYUV2, MNIST], ids=["scenes", "nyuv2", "mnist"])
def test_a_recipe_builds_the_data(text: str, tmp_path: Path) -> None:
    (write_mnist if "MNIST" in text else write_png_tree)(tmp_path)
    data = parse(text.replace("ROOT", str(tmp_path)))
    data.setup("fit")
    inputs, targets = next(iter(data.train_dataloader()))
    assert len(inputs) == 4
    assert set(targets) == set(data.tasks)  # type: ignore[attr-defined]


def test_transforms_come_from_the_recipe_and_the_root_from_the_command_line(tmp_path: Path) -> None:
    data = parse(NYUV2, f"--data.root={write_png_tree(tmp_path)}")
    assert isinstance(data, NYUv2DataModule)
    assert isinstance(data.augment, list)
    assert [type(transform) for transform in data.augment] == [RandomScaleCrop, PhotometricJitter]
    assert str(data.root) == str(tmp_path)
    assert data.size == (12, 16)


@pytest.mark.parametrize("option", ["--data.tasks=[saliency]", "--data.batchsize=3", "--data.num_classes=20"])
def test_a_misspelt_option_is_refused(option: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(option.split("=")[0].split(".")[1])):
        parse(NYUV2, option)
