from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from lightning_mtl.data import (
    DatasetNotFoundError,
    EmptySplitError,
    MultiTaskDataModule,
    PartialLabels,
    SyntheticScenes,
    SyntheticScenesDataModule,
)


class Pairs(Dataset[Any]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> Any:
        return torch.tensor(float(index)), {"a": torch.tensor([1.0, 2.0]), "b": 3}


def labelled(fraction: float, seed: int = 0, task: str = "a") -> set[int]:
    ignored = float("nan") if task == "a" else -100
    data = PartialLabels(Pairs(), {task: fraction}, {task: ignored}, seed)
    blank = [data[i][1][task].isnan().all() if task == "a" else data[i][1][task] == -100 for i in range(40)]
    return {i for i in range(40) if not blank[i]}


@pytest.mark.parametrize(("fraction", "count"), [(0.0, 0), (0.1, 4), (0.33, 13), (1.0, 40)])
def test_the_fraction_of_labels_is_exact(fraction: float, count: int) -> None:
    assert len(labelled(fraction)) == count


def test_a_smaller_fraction_keeps_a_subset_of_a_larger_one() -> None:
    assert labelled(0.1) < labelled(0.4) < labelled(0.9)


def test_the_choice_follows_seed_and_task() -> None:
    assert labelled(0.5) == labelled(0.5)
    assert labelled(0.5) != labelled(0.5, seed=1)
    assert labelled(0.5) != labelled(0.5, task="b")


def test_blanking_leaves_the_cached_sample_as_it_was() -> None:
    scenes = SyntheticScenes(4, tasks=("depth",), size=(8, 8), cache=True)
    partial = PartialLabels(scenes, {"depth": 0.0}, {"depth": 0.0})
    assert all((partial[i][1]["depth"] == 0).all() for i in range(4))
    assert any((scenes[i][1]["depth"] > 0).any() for i in range(4))


def test_tasks_whose_labels_cannot_be_left_out_are_refused() -> None:
    data = SyntheticScenesDataModule(
        ("depth", "boxes"), (8, 8), num_train=4, batch_size=2, label_fraction={"boxes": 0.5}
    )
    with pytest.raises(ValueError, match=r"must name tasks whose labels can be left out \(depth\), got 'boxes'"):
        data.setup("fit")


class Minimal(MultiTaskDataModule):
    def make_dataset(self, split: str) -> Dataset[Any]:
        return Pairs()


def test_a_subclass_needs_nothing_but_its_data_sets() -> None:
    data = Minimal(batch_size=4, num_workers=0)
    data.setup()
    inputs, targets = next(iter(data.train_dataloader()))
    assert inputs.shape == (4,)
    assert targets["a"].shape == (4, 2)
    assert targets["b"].tolist() == [3, 3, 3, 3]


def test_a_loader_before_setup_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"Minimal: split 'train' is not set up; call setup\(\) first"):
        Minimal().train_dataloader()


@pytest.mark.parametrize(("cores", "workers"), [(1, 0), (2, 2), (64, 8)])
def test_the_number_of_workers_follows_the_cores(cores: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    data = Minimal()
    assert data.num_workers == workers
    assert data.persistent_workers == (workers > 0)
    assert data.pin_memory == torch.cuda.is_available()


def test_the_last_training_batch_is_left_out_on_demand_and_evaluation_is_whole() -> None:
    lengths = {}
    for drop in (True, False):
        data = Minimal(batch_size=12, num_workers=0, drop_last=drop)
        data.setup()
        lengths[drop] = [len(data.train_dataloader()), len(data.val_dataloader())]
    assert lengths == {True: [3, 4], False: [4, 4]}


def test_errors_list_what_is_missing_and_no_more_than_five() -> None:
    error = DatasetNotFoundError.of("A", Path("."), [f"{i}.png" for i in range(9)], "Get it.")
    assert str(error) == "A: data not found in '.': missing 0.png, 1.png, 2.png, 3.png, 4.png and 4 more. Get it."
    assert isinstance(error, FileNotFoundError)
    assert issubclass(EmptySplitError, ValueError)
