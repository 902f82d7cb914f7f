from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lightning_mtl.data import DataFileError, DatasetNotFoundError, MultiMNISTDataModule
from tests.data.trees import write_mnist

IMAGES = "train-images-idx3-ubyte.gz"
LABELS = "train-labels-idx1-ubyte.gz"


def module(root: Path) -> MultiMNISTDataModule:
    return MultiMNISTDataModule(root, num_train=120, num_val=15, num_test=10, batch_size=5)


def test_the_canvas_is_the_brighter_of_two_shifted_digits(tmp_path: Path) -> None:
    data = module(write_mnist(tmp_path))
    data.setup("fit")
    dataset = data.datasets["train"]
    for index in range(5):
        canvas, targets = dataset[index]
        left, right = dataset.pairs[index]
        expected = torch.zeros(36, 36)
        for row in range(28):
            for column in range(28):
                pixel = dataset.digits[left, row, column].item()
                expected[row, column] = max(expected[row, column].item(), pixel)
                pixel = dataset.digits[right, row, column].item()
                expected[row + 8, column + 8] = max(expected[row + 8, column + 8].item(), pixel)
        assert torch.allclose(canvas[0], expected / 255)
        assert targets["left"] == dataset.labels[left]
        assert targets["right"] == dataset.labels[right]


def test_every_digit_is_used_equally_often_on_both_sides(tmp_path: Path) -> None:
    data = module(write_mnist(tmp_path))
    data.setup("fit")
    pairs = data.datasets["train"].pairs  # 120 pairs of the 50 training digits
    for side in range(2):
        counts = torch.bincount(pairs[:, side], minlength=50)
        assert counts.min() >= 2
        assert counts.max() <= 3
    assert (pairs[:, 0] != pairs[:, 1]).float().mean() > 0.9


def test_training_and_validation_digits_come_from_disjoint_parts(tmp_path: Path) -> None:
    data = module(write_mnist(tmp_path))
    data.setup()
    parts = [{digit.numpy().tobytes() for digit in data.datasets[split].digits} for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [50, 10, 20]
    assert len(set.union(*parts)) == 80


def test_files_may_be_unpacked(tmp_path: Path) -> None:
    root = write_mnist(tmp_path)
    for path in list(root.iterdir()):
        path.with_suffix("").write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    data = module(root)
    data.setup()
    assert len(data.datasets["test"]) == 10


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    root = write_mnist(tmp_path)
    (root / LABELS).unlink()
    with pytest.raises(DatasetNotFoundError, match=rf"missing {LABELS}\. Download .*http"):
        module(root).setup("fit")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _short(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-7]))


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (IMAGES, _cut, "must be a readable idx file.*download it again"),
        (IMAGES, lambda p: p.write_bytes(b"not gzip"), "must be a readable idx file.*download it again"),
        (IMAGES, lambda p: p.write_bytes(gzip.compress(b"PK\x03\x04....")), "must start with the idx header 00 00 08"),
        (IMAGES, lambda p: p.write_bytes(gzip.compress(b"\0\0\x08\3\0")), "must hold .* bytes by its header, got"),
        (IMAGES, _short, r"must hold \[60, 28, 28\] bytes by its header, got 47033; download it again"),
    ],
    ids=["truncated-gzip", "no-gzip", "no-idx", "no-sizes", "too-short"],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, spoil: Callable[[Path], None], message: str) -> None:
    root = write_mnist(tmp_path)
    spoil(root / name)
    with pytest.raises(DataFileError, match=rf"MultiMNIST: '.*{name}': {message}"):
        module(root).setup("fit")


def test_images_and_labels_must_belong_together(tmp_path: Path) -> None:
    root = write_mnist(tmp_path / "one")
    other = write_mnist(tmp_path / "other", train=30)
    (root / LABELS).write_bytes((other / LABELS).read_bytes())
    with pytest.raises(DataFileError, match=r"must hold 28 x 28 images for 30 labels .*take both files from the same"):
        module(root).setup("fit")


def test_real_digits_are_read(real_data: Callable[[str], Path]) -> None:
    data = MultiMNISTDataModule(real_data("mnist"), num_train=500, num_val=50, num_test=50)
    data.setup()
    assert len(data.datasets["train"].digits) == 50000
    assert len(data.datasets["test"].digits) == 10000
    canvas, targets = next(iter(data.train_dataloader()))
    assert canvas.shape == (256, 1, 36, 36)
    assert set(targets["left"].tolist()) == set(range(10))
    assert 0.1 < canvas.mean() < 0.2  # two digits, each a tenth of the canvas


@pytest.mark.parametrize("task", ["left", "right"])
def test_one_task_has_the_same_images_and_labels_as_both(tmp_path: Path, task: str) -> None:
    root = write_mnist(tmp_path)
    both = module(root)
    one = MultiMNISTDataModule(root, num_train=120, num_val=15, num_test=10, batch_size=5, tasks=[task])
    for data in (both, one):
        data.setup("fit")
    for index in range(5):
        (image, targets), (expected, wanted) = one.datasets["train"][index], both.datasets["train"][index]
        torch.testing.assert_close(image, expected, rtol=0, atol=0)
        assert targets == {task: wanted[task]}
    assert list(one.ignore_values) == [task]


@pytest.mark.parametrize("tasks", [[], ["top"], ["left", "left"]])
def test_other_tasks_are_refused(tasks: list[str]) -> None:
    with pytest.raises(ValueError, match="tasks must be 'left', 'right' or both"):
        MultiMNISTDataModule(tasks=tasks)
