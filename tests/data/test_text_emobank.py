"""EmoBank: ratings of several people, from two perspectives, in four forms."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mtl.data import DatasetNotFoundError
from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.text import EmoBankDataModule, SymbolTokenizer
from lightning_mtl.data.text.emobank import TASKS
from lightning_mtl.data.text.emobank_rows import read_rows
from lightning_mtl.tasks import OrdinalClassification, Regression
from tests.data.benchmark_trees import WORDS, write_emobank

DIMENSIONS = {"valence": "V", "arousal": "A", "dominance": "D"}


def build(root: Path, **options: Any) -> EmoBankDataModule:
    options = {"tokenizer": SymbolTokenizer(WORDS, level="word"), "batch_size": 4, "num_workers": 0, **options}
    return EmoBankDataModule(root, **{"cache": False, **options})


def real() -> Path:
    root = os.environ.get("LIGHTNING_MTL_DATA")
    if root is None or not (Path(root) / "emobank").is_dir():
        pytest.skip("LIGHTNING_MTL_DATA/emobank is not there")
    return Path(root) / "emobank"


def table(root: Path, file: str) -> dict[str, list[dict[str, str]]]:
    found: dict[str, list[dict[str, str]]] = {}
    for row in read_rows("test", root / "corpus" / file, ("id",)):
        found.setdefault(row.fields["id"], []).append(row.fields)
    return found


def test_means_are_those_of_the_files(tmp_path: Path) -> None:
    root = write_emobank(tmp_path)
    data = build(root, tasks=TASKS[:-1])
    records = data.read("emobank", "train")
    files = {"": "emobank.csv", "reader_": "reader.csv", "writer_": "writer.csv"}
    for prefix, file in files.items():
        expected = table(root, file)
        for dimension, column in DIMENSIONS.items():
            given = records.targets[prefix + dimension]
            assert given == [float(expected[name][0][column]) for name in records.ids or []]
    assert len(records) == 24


@pytest.mark.parametrize("ratings", ["moments", "distribution"])
def test_moments_and_shares_are_those_of_the_single_ratings(ratings: str, tmp_path: Path) -> None:
    root = write_emobank(tmp_path)
    data = build(root, tasks=["valence", "reader_valence", "writer_dominance"], ratings=ratings)
    records = data.read("emobank", "train")
    sides = {side: table(root, f"individual_{side}_ratings.csv") for side in ("reader", "writer")}
    asked = {"valence": ("V", sides), "reader_valence": ("V", ["reader"]), "writer_dominance": ("D", ["writer"])}
    for task, (column, chosen) in asked.items():
        for name, given in zip(records.ids or [], records.targets[task], strict=True):
            rows = [row for side in chosen for row in sides[side][name]]
            scores = np.array([int(row[column]) for row in rows if {row["V"], row["A"], row["D"]} != {"1"}])
            if ratings == "moments":
                expected = [scores.mean(), scores.std()]
            else:
                expected = [float((scores == score).mean()) for score in range(1, 6)]
            np.testing.assert_allclose(given, expected, atol=1e-12)


def test_single_ratings_are_samples_that_label_the_tasks_of_their_perspective(tmp_path: Path) -> None:
    root = write_emobank(tmp_path)
    data = build(root, tasks=["arousal", "reader_arousal", "writer_arousal", "genre"], ratings="single")
    data.setup("fit")
    sides = {side: table(root, f"individual_{side}_ratings.csv") for side in ("reader", "writer")}
    train = set(data.read("emobank", "train").ids or [])
    meant = {
        side: [int(row["A"]) - 1 for name in train for row in rows[name] if {row["V"], row["A"], row["D"]} != {"1"}]
        for side, rows in sides.items()
    }
    targets = [targets for _, targets in data.datasets["train"]]
    assert len(targets) == len(meant["reader"]) + len(meant["writer"])
    for side in sides:
        labels = [int(target[f"{side}_arousal"]) for target in targets]
        assert sorted(label for label in labels if label >= 0) == sorted(meant[side])
    for target in targets:
        given = {int(target["reader_arousal"]), int(target["writer_arousal"])}
        assert given == {-100, int(target["arousal"])}
        assert target["genre"] >= 0


@pytest.mark.parametrize("ratings", ["moments", "single"])
def test_ratings_of_all_ones_are_kept_where_asked_for(ratings: str, tmp_path: Path) -> None:
    root = write_emobank(tmp_path)
    dropped, kept = (
        build(root, tasks=["reader_valence"], ratings=ratings, drop_all_ones=drop) for drop in (True, False)
    )
    first, first_too = (data.read("emobank", "train") for data in (dropped, kept))
    if ratings == "single":
        assert len(first_too) == len(first) + 1
        assert list(first_too.targets["reader_valence"]).count(1) == 1
        assert 1 not in first.targets["reader_valence"]
    else:
        assert first.targets["reader_valence"][0][0] > first_too.targets["reader_valence"][0][0]
        assert first.targets["reader_valence"][1:] == first_too.targets["reader_valence"][1:]


def test_ratings_without_text_are_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_emobank(tmp_path)
    data = build(root, ratings="single")
    assert data.without_text == {}
    with caplog.at_level("INFO"):
        records = [data.read("emobank", split) for split in ("train", "val", "test")]
    lost = {side: len(table(root, f"individual_{side}_ratings.csv")["lost_0_9"]) for side in ("reader", "writer")}
    assert data.without_text == lost
    assert not any("lost_0_9" in (part.ids or []) for part in records)
    assert caplog.text.count("ratings of 1 sentences are left out") == 2  # once a perspective


def test_texts_keep_quotation_marks_and_line_separators(tmp_path: Path) -> None:
    records = build(write_emobank(tmp_path)).read("emobank", "train")
    assert all(text.startswith('"') and "\u2028" in text and "\u2019" in text for (text,) in records.texts)
    assert list(records.lines) == list(range(2, 26))


@pytest.mark.parametrize(
    ("ratings", "shape", "dtype"),
    [
        ("mean", (4,), torch.float32),
        ("moments", (4, 2), torch.float32),
        ("distribution", (4, 5), torch.float32),
        ("single", (4,), torch.int64),
    ],
)
def test_every_form_is_a_target_of_a_task_and_comes_back_from_the_cache(
    ratings: str, shape: tuple[int, ...], dtype: torch.dtype, tmp_path: Path
) -> None:
    task: Any = OrdinalClassification(5) if ratings == "single" else Regression(1 if ratings == "mean" else shape[1])
    batches = []
    for _ in range(2):
        data = build(write_emobank(tmp_path / "a") if not batches else tmp_path / "a", ratings=ratings)
        data = build(tmp_path / "a", ratings=ratings, cache=True, cache_dir=str(tmp_path / "cache"))
        data.setup("validate")
        (inputs, targets), *_ = data.val_dataloader()
        batches.append(targets)
        assert set(targets) == set(DIMENSIONS)
        assert (targets["valence"].shape, targets["valence"].dtype) == (shape, dtype)
        assert inputs["input_ids"].shape[0] == 4
        prediction = torch.zeros(4, task.out_channels) + (task.thresholds if ratings == "single" else 0)
        assert task.loss(prediction, targets["valence"]) > 0
    assert all(batches[0][name].equal(batches[1][name]) for name in DIMENSIONS)


def test_the_corpus_reads_to_the_end_and_the_authors_means_follow_from_the_ratings() -> None:
    root = real()
    tasks = ["valence", "reader_valence", "writer_valence", "genre"]
    means = {split: build(root, tasks=tasks).read("emobank", split) for split in ("train", "val", "test")}
    assert {split: len(part) for split, part in means.items()} == {"train": 8062, "val": 1000, "test": 1000}
    pooled = build(root, tasks=tasks[:3], ratings="moments")
    spread = pooled.read("emobank", "test")
    assert pooled.without_text == {"reader": 2439, "writer": 2438}
    part = means["test"]
    for task in tasks[:3]:  # over both perspectives every rating counts alike
        given = np.array([mean for mean, _ in spread.targets[task]])
        np.testing.assert_allclose(given, part.targets[task], atol=0.0101)
    every = [set(part.texts) for part in means.values()]
    shared = (every[0] & every[1]) | (every[0] & every[2]) | (every[1] & every[2])
    assert len(shared) == 34
    assert len({name for part in means.values() for name in part.targets["genre"]}) == 7


def test_a_sentence_without_ratings_has_no_label(tmp_path: Path) -> None:
    root = write_emobank(tmp_path)
    path = root / "corpus" / "individual_reader_ratings.csv"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("doc3_")]
    path.write_text("\n".join(lines) + "\n")
    data = build(root, tasks=["reader_valence", "genre"], ratings="moments")
    data.setup("fit")
    target = data.datasets["train"][3][1]["reader_valence"]
    assert target.shape == (2,)
    assert np.isnan(target).all()
    assert not any(
        np.isnan(targets["reader_valence"]).any() for n, (_, targets) in enumerate(data.datasets["train"]) if n != 3
    )


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("emobank.csv", "id,split,V,A,D,text", "id,split,V,A,text,D2", "csv:1'.*must have the columns .* without D;"),
        ("emobank.csv", ",train,", ",training,", r"csv:2'.*split must be train, dev or test, got 'training'"),
        ("emobank.csv", "doc3_3_43,train,", "doc3_3_43,train,9,", r"csv:5'.*must have 6 columns .* got 7"),
        ("individual_reader_ratings.csv", "doc0_0_40,", "doc0_0_40,9,", r"csv:2'.*must have 4 columns .* got 5"),
        ("individual_reader_ratings.csv", "1,1,1", "1,0,1", r"csv:\d+'.*A must be a number in \[1, 5\], got '0'"),
        ("individual_reader_ratings.csv", "1,1,1", "1,1,1.5", r"csv:\d+'.*D must be a whole number, got '1.5'"),
        ("meta.tsv", "\tfiction\t", "\tpoetry\t", r"tsv:3'.*category must be one of SemEval, .* got 'poetry'"),
    ],
)
def test_a_bad_file_is_one_error_with_file_and_line(
    file: str, old: str, new: str, message: str, tmp_path: Path
) -> None:
    path = write_emobank(tmp_path) / "corpus" / file
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new))
    data = build(tmp_path, tasks=["reader_valence", "genre"], ratings="single")
    with pytest.raises(DataFileError, match=f"EmoBankDataModule: '.*{file.split('.')[0]}.{message}"):
        data.make_dataset("train")


def test_a_missing_file_and_unknown_arguments_are_refused(tmp_path: Path) -> None:
    root = write_emobank(tmp_path)
    shutil.move(root / "corpus" / "meta.tsv", root / "meta.tsv")
    with pytest.raises(DatasetNotFoundError, match=r"missing meta\.tsv.*JULIELab/EmoBank"):
        build(root, tasks=["genre"]).read("emobank", "train")
    assert len(build(root / "corpus").read("emobank", "train")) == 24  # the folder itself will do
    with pytest.raises(ValueError, match=r"tasks must be some of .*, got \['joy'\]"):
        build(root, tasks=["joy"])
    with pytest.raises(ValueError, match=r"ratings must be one of .*, got 'median'"):
        build(root, ratings="median")
