"""What holds for every data module."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lightning_mtl.data import (
    DatasetNotFoundError,
    EmptySplitError,
    JointTransform,
    SyntheticScenes,
    SyntheticScenesDataModule,
)
from lightning_mtl.data.dense.base import DenseDataModule
from tests.data.cases import BOXES, CASES, DENSE, TRANSFORMS, Case
from tests.data.trees import fingerprint


def check_boxes(targets: list[dict[str, torch.Tensor]], images: torch.Tensor) -> None:
    assert len(targets) == len(images)
    for target in targets:
        boxes, labels, size = target["boxes"], target["labels"], target["size"]
        assert boxes.shape == (len(labels), 4)
        assert (boxes.dtype, labels.dtype, size.dtype) == (torch.float32, torch.int64, torch.int64)
        assert (boxes[:, 2:] > boxes[:, :2]).all()
        assert (boxes >= 0).all()
        assert (boxes <= size.flip(0).repeat(2)).all()
        assert (size <= torch.tensor(images.shape[-2:])).all()
        assert target["iscrowd"].shape == target["area"].shape == labels.shape
        assert target["image_id"].shape == ()


cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
with_files = pytest.mark.parametrize("case", [case for case in CASES if case.files], ids=lambda case: case.id)


@cases
@pytest.mark.parametrize("split", ["train", "val", "test", "predict"])
def test_batches_hold_what_is_promised(case: Case, split: str, tmp_path: Path) -> None:
    data = case.make(tmp_path)
    data.setup()
    loader = data.make_loader(split)
    inputs, targets = next(iter(loader))
    batch = min(4, len(data.datasets[split]))
    images = inputs["image"] if isinstance(inputs, dict) else inputs
    assert images.shape == (batch, *case.image)
    assert images.dtype == torch.float32
    assert set(targets) == set(case.targets)
    for task, (shape, dtype) in case.targets.items():
        if (shape, dtype) == BOXES:
            check_boxes(targets[task], images)
            continue
        assert targets[task].shape == (batch, *shape), task
        assert targets[task].dtype == dtype, task


@cases
def test_targets_are_in_range(case: Case, tmp_path: Path) -> None:
    data = case.make(tmp_path)
    data.setup("fit")
    for inputs, targets in data.train_dataloader():
        assert all(leaf.isfinite().all() for leaf in tree_leaves(inputs))
        for task, value in targets.items():
            if isinstance(value, list):
                labels = torch.cat([target["labels"] for target in value])
                assert ((labels >= 1) & (labels <= data.num_classes[task])).all()
                continue
            kind = data.targets[task].kind if isinstance(data, DenseDataModule) else task
            if kind in ("segmentation", "left", "right"):
                classes = data.num_classes if isinstance(data.num_classes, int) else data.num_classes[task]
                assert ((value >= 0) & (value < classes) | (value == 255)).all()
            elif kind in ("edges", "saliency"):
                assert ((value == 0) | (value == 1) | (value == 255)).all()
            elif kind == "regression":
                assert not value.isinf().any()
                assert not value.isnan().all()
            elif kind == "disparity":
                assert value.isfinite().all()
                assert (value >= 0).all()
            elif kind == "normals":
                length = value.norm(dim=1)
                assert ((length - 1).abs() < 1e-4).logical_or(length == 0).all()
            else:
                assert (value >= 0).all()
                assert value.max() <= 10.001


@cases
def test_the_same_seed_gives_the_same_batches_and_another_seed_others(case: Case, tmp_path: Path) -> None:
    def batches(seed: int) -> list[list[str]]:
        data = case.make(tmp_path, seed=seed, **({"val_split": "test"} if case.id.startswith("nyuv2") else {}))
        data.setup("fit")
        return [fingerprint(batch) for batch in data.train_dataloader()]

    assert batches(3) == batches(3)
    assert batches(3) != batches(4)


@cases
def test_splits_are_disjoint(case: Case, tmp_path: Path) -> None:
    data = case.make(tmp_path, **case.still)
    data.setup()
    seen = {s: {fingerprint(d[i][0])[0] for i in range(len(d))} for s, d in data.datasets.items()}
    assert all(seen.values())
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]
    assert seen["predict"] == seen["test"]


@cases
def test_setup_twice_keeps_the_data(case: Case, tmp_path: Path) -> None:
    data = case.make(tmp_path)
    data.setup("fit")
    before = dict(data.datasets)
    data.setup("fit")
    data.setup("test")
    assert all(data.datasets[split] is dataset for split, dataset in before.items())
    assert set(data.datasets) == {"train", "val", "test"}


@cases
def test_a_loader_leaves_the_global_generator_alone(case: Case, tmp_path: Path) -> None:
    data = case.make(tmp_path)
    before = torch.get_rng_state()
    data.setup("fit")
    list(data.train_dataloader())
    list(data.val_dataloader())
    assert torch.get_rng_state().equal(before)


@cases
def test_evaluation_is_the_same_every_time(case: Case, tmp_path: Path) -> None:
    data = case.make(tmp_path)
    data.setup("test")
    loader = data.test_dataloader()
    first = [fingerprint(batch) for batch in loader]
    loader.sampler.set_epoch(5)
    assert [fingerprint(batch) for batch in loader] == first


@cases
def test_workers_change_nothing(case: Case, tmp_path: Path) -> None:
    def batches(workers: int) -> list[list[str]]:
        data = case.make(tmp_path, num_workers=workers, persistent_workers=False)
        data.setup("fit")
        return [[str(x.double().sum().item()) for x in tree_leaves(b)] for b in data.train_dataloader()]

    assert batches(0) == batches(2)


@cases
def test_label_fraction_blanks_whole_samples_of_the_training_split_alone(case: Case, tmp_path: Path) -> None:
    task = next(iter(case.targets))
    data = case.make(tmp_path, label_fraction={task: 0.5}, drop_last=False)
    data.setup()
    ignored = -1 if data.ignore_values[task] is None else data.ignore_values[task]

    def is_blank(value: object) -> bool:
        return value is None or (isinstance(value, torch.Tensor) and bool(torch.eq(value, ignored).all()))

    blank = [is_blank(targets[task]) for _, targets in data.datasets["train"]]
    assert blank.count(False) == round(0.5 * len(blank))
    for other in set(case.targets) - {task, "human_parts"}:  # photographs without people have no parts
        assert not any(is_blank(t[other]) for _, t in data.datasets["train"])
    assert not any(is_blank(t[task]) for _, t in data.datasets["val"])


@with_files
def test_a_missing_root_says_what_to_do(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LIGHTNING_MTL_DATA", raising=False)
    with pytest.raises(DatasetNotFoundError, match=r"root must name.*--data\.root.*LIGHTNING_MTL_DATA.*(http|docs/)"):
        case.build(num_workers=0).setup("fit")
    with pytest.raises(DatasetNotFoundError, match=r"root '.*nowhere' is not a folder.*(http|docs/data)"):
        case.build(root=tmp_path / "nowhere", num_workers=0).setup("fit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"data not found in '.*empty': missing .*(http|docs/data)"):
        case.build(root=tmp_path / "empty", num_workers=0).setup("fit")


@with_files
def test_root_none_reads_the_environment(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert case.files is not None
    case.files(tmp_path / case.folder)
    monkeypatch.setenv("LIGHTNING_MTL_DATA", str(tmp_path))
    data = case.build(batch_size=4, num_workers=0)
    data.setup("fit")
    assert len(data.datasets["train"]) > 4


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_a_transform_follows_its_generator_and_leaves_its_input(transform: JointTransform) -> None:
    maps = SyntheticScenes(1, tasks=DENSE, size=(24, 30))._render(0)
    before = {key: value.clone() for key, value in maps.items()}
    sample = {**maps, "name": "kept"}
    first = transform(sample, torch.Generator().manual_seed(1))
    again = transform(sample, torch.Generator().manual_seed(1))
    assert first["name"] == "kept"
    for key in before:
        assert maps[key].equal(before[key])
        assert first[key].equal(again[key])
        assert first[key].shape[-2:] == first["image"].shape[-2:]


def test_an_empty_split_is_refused() -> None:
    data = SyntheticScenesDataModule(num_train=4, num_val=0, batch_size=2, size=(8, 8))
    with pytest.raises(EmptySplitError, match="split 'val' must hold at least one sample, got 0"):
        data.setup("fit")
