"""SICK: two tasks on one input, and the three files as they were distributed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mtl.data import DatasetNotFoundError
from lightning_mtl.data.base import Split
from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.text import SICKDataModule, SymbolTokenizer
from tests.data.benchmark_trees import WORDS, write_sick

HEADER = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n"


def build(root: Path, **options: Any) -> SICKDataModule:
    tokenizer = SymbolTokenizer(WORDS, level="word")
    return SICKDataModule(
        root, **{"tokenizer": tokenizer, "batch_size": 4, "num_workers": 0, "cache": False, **options}
    )


def real() -> Path:
    root = os.environ.get("LIGHTNING_MTL_DATA")
    if root is None or not (Path(root) / "sick").is_dir():
        pytest.skip("LIGHTNING_MTL_DATA/sick is not there")
    return Path(root) / "sick"


def test_a_batch_has_both_targets_of_one_input(tmp_path: Path) -> None:
    data = build(write_sick(tmp_path / "sick"))
    data.setup("fit")
    for inputs, targets in data.train_dataloader():
        assert list(targets) == ["relatedness", "entailment"]
        assert inputs["input_ids"].shape[0] == 4
        assert targets["relatedness"].dtype == torch.float32
        assert targets["entailment"].dtype == torch.int64
        assert ((targets["relatedness"] >= 1) & (targets["relatedness"] <= 5)).all()
        assert ((targets["entailment"] >= 0) & (targets["entailment"] < 3)).all()


@pytest.mark.parametrize("task", ["relatedness", "entailment"])
def test_one_task_alone_gives_the_same_rows(task: str, tmp_path: Path) -> None:
    both, one = build(write_sick(tmp_path / "sick")), build(tmp_path / "sick", tasks=[task])
    for data in (both, one):
        data.setup("test")
    for (inputs, targets), (inputs_too, targets_too) in zip(both.test_dataloader(), one.test_dataloader(), strict=True):
        assert inputs["input_ids"].equal(inputs_too["input_ids"])
        assert list(targets_too) == [task]
        assert targets[task].equal(targets_too[task])


def test_the_files_of_the_task_read_to_the_end() -> None:
    data = build(real())
    sizes: dict[Split, int] = {"train": 4500, "val": 500, "test": 4927}  # SemEval-2014 task 1, Table 2
    classes = {"train": (1299, 2536, 665), "val": (144, 282, 74), "test": (1414, 2793, 720)}
    for split, size in sizes.items():
        records = data.read("sick", split)
        assert len(records) == size
        judged = list(records.targets["entailment"])
        assert tuple(judged.count(name) for name in data.class_names["entailment"]) == classes[split]
        assert all(1 <= float(score) <= 5 for score in records.targets["relatedness"])
        assert not any("\r" in text for pair in records.texts for text in pair)
    assert (records.ids or [])[:2] == ["6", "7"]


def test_what_the_page_says_of_repeated_pairs_is_so() -> None:
    data = build(real())
    pairs = {split: data.read("sick", split).texts for split in ("train", "val", "test")}
    labels: dict[Any, set[Any]] = {}
    train = data.read("sick", "train")
    for pair, *label in zip(train.texts, train.targets["relatedness"], train.targets["entailment"], strict=True):
        labels.setdefault(pair, set()).add(tuple(label))
    repeated = [pair for pair in labels if pairs["train"].count(pair) > 1]
    assert len(repeated) == 27
    assert sum(len(labels[pair]) > 1 for pair in repeated) == 22
    shared = {other: len(set(pairs["train"]) & set(pairs[other])) for other in ("val", "test")}
    assert shared == {"val": 3, "test": 49}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("pair_ID\tsentence_A\tsentence_B\tscore\n1\ta\tb\t3\n", "txt:1'.*must have the columns .*relatedness_score"),
        (HEADER + "1\ta\tb\t3\tNEUTRAL\n2\ta\tb\t3\n", "txt:3'.*must have 5 columns .* got 4"),
        (HEADER + "1\ta\tb\t3\tMAYBE\n", "txt:2'.*label must be one of ENTAILMENT, NEUTRAL, .*'MAYBE'"),
        (HEADER + "1\ta\tb\t5.5\tNEUTRAL\n", r"txt:2'.*score must be a number in \[1, 5\], got '5.5'"),
        (HEADER + "1\ta\tb\tnan\tNEUTRAL\n", r"txt:2'.*score must be a number in \[1, 5\], got 'nan'"),
        (HEADER + "1\ta\t\udce9\t3\tNEUTRAL\n", "txt:2'.*must be UTF-8, got the byte 0xe9"),
        (HEADER, "txt': must hold at least one row"),
        ("", "txt': must hold at least one row, got an empty file"),
    ],
)
def test_a_bad_file_is_one_error_with_file_and_line(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "SICK_train.txt").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataFileError, match=f"SICKDataModule: '.*SICK_train.{message}"):
        build(tmp_path).make_dataset("train")


def test_a_missing_file_and_an_unknown_task_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"missing SICK_trial\.txt.*semeval2014"):
        build(tmp_path).read("sick", "val")
    with pytest.raises(
        ValueError, match=r"tasks must be some of \['relatedness', 'entailment'\], got \['similarity'\]"
    ):
        build(tmp_path, tasks=["similarity"])
