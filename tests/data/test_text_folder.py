from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from lightning_mtl.data import DataFileError, DatasetNotFoundError
from lightning_mtl.data.text import SymbolTokenizer, TextFolderDataModule, TextFolderTask
from tests.data.text_folder_tree import ROWS, TASKS, write_text_folder

WORDS = ["red", "green", "dog", "cat", "is", "the", "a", "where"]


def make(root: Path, tasks: Mapping[str, TextFolderTask] | None = None, **options: Any) -> TextFolderDataModule:
    options = {"tokenizer": SymbolTokenizer(WORDS), "cache": False, "num_workers": 0, "batch_size": 4, **options}
    return TextFolderDataModule(root, dict(tasks or {}), **options)


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write rows in the format that the ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as parquet

        parquet.write_table(pa.Table.from_pylist([dict(row) for row in rows]), path)
    elif path.suffix == ".tsv":
        lines = [list(rows[0]), *(row.values() for row in rows)]
        path.write_text("".join("\t".join(map(str, line)) + "\n" for line in lines))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    return path


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv", "parquet"])
def test_the_four_formats_hold_the_same(suffix: str, tmp_path: Path) -> None:
    rows = [{"id": "r1", "text": 'the "red" dog', "label": "yes"}, {"id": "r2", "text": "a, cat", "label": ""}]
    for split in ("train", "val"):
        write(tmp_path / "kind" / f"{split}.{suffix}", rows)
    records = make(tmp_path, {"kind": TextFolderTask(labels=["no", "yes"], id="id")}).read("kind", "train")
    assert records is not None
    assert records.texts == [('the "red" dog',), ("a, cat",)]
    assert records.targets_of("kind") == ["yes", None]
    assert records.ids == ["r1", "r2"]
    assert records.lines == ([1, 2] if suffix in ("jsonl", "parquet") else [2, 3])


@pytest.mark.parametrize("task", TASKS)
def test_every_kind_of_task_is_read(task: str, tmp_path: Path) -> None:
    root = write_text_folder(tmp_path)
    data = make(root, {task: TASKS[task]}, tokenizer=None, cache=True, cache_dir=str(tmp_path / "cache"))
    data.setup()
    inputs, targets = data.collate([data.datasets["train"][row] for row in range(4)])
    shape = inputs["input_ids"].shape
    expected = {
        "sentiment": (4,),
        "similarity": (4,),
        "entities": shape,
        "answer": (4, 2),
        "reply": (4,),
        "search": (4,),
        "summary": tuple(inputs["decoder_input_ids"].shape) if task == "summary" else (),
    }
    assert tuple(targets[task].shape) == tuple(expected[task])
    assert len(shape) == (3 if task in ("reply", "search") else 2)
    assert len(data.datasets["train"]) == ROWS
    if task == "answer":
        first, last = targets[task][0].tolist()
        assert data.tokenizer.decode(inputs["input_ids"][0, first : last + 1]) == "red"


def test_tasks_on_the_same_columns_share_their_rows(tmp_path: Path) -> None:
    rows = [{"text": "red dog", "kind": "b", "size": 3}, {"text": "cat", "kind": "a", "size": None}] * 3
    for split in ("train", "val"):
        write(tmp_path / f"{split}.jsonl", rows)
    tasks = {
        "kind": TextFolderTask(target="kind", labels=["a", "b"], folder="."),
        "size": TextFolderTask("regression", target="size", folder="."),
    }
    data = make(tmp_path, tasks)
    assert data.sources() == {"kind+size": ("kind", "size")}
    data.setup("fit")
    _, targets = data.collate([data.datasets["train"][row] for row in range(2)])
    assert targets["kind"].tolist() == [1, 0]
    assert targets["size"][0] == 3
    assert targets["size"][1].isnan()


def test_without_validation_files_a_part_of_the_training_rows_is_set_aside(tmp_path: Path) -> None:
    rows = [{"text": "red " * (1 + number), "label": "a", "id": number} for number in range(20)]
    write(tmp_path / "train.jsonl", rows)
    tasks = {"kind": TextFolderTask(labels=["a"], id="id")}

    def ids(seed: int, split: Any) -> list[Any]:
        records = make(tmp_path, tasks, val_fraction=0.25, seed=seed).read("kind", split)
        return [] if records is None else list(records.ids or [])

    assert (len(ids(0, "train")), len(ids(0, "val"))) == (15, 5)
    assert not set(ids(0, "train")) & set(ids(0, "val"))
    assert ids(0, "val") == ids(0, "val") != ids(1, "val")
    assert ids(0, "test") == []


def test_files_can_be_named_one_by_one(tmp_path: Path) -> None:
    write(tmp_path / "2024.csv", [{"text": "red", "label": "a"}])
    write(tmp_path / "new" / "2025.tsv", [{"text": "dog"}])
    task = TextFolderTask(labels=["a"], files={"train": "2024.csv", "val": "2024.csv", "predict": "new/2025.tsv"})
    data = make(tmp_path, {"kind": task})
    data.setup("fit")
    data.setup("predict")
    assert data.datasets["predict"].sources["kind"].paths[0].name == "2025.tsv"
    ((_, targets),) = list(data.predict_dataloader())
    assert targets["kind"].tolist() == [-100]
    lost = {"kind": TextFolderTask(labels=["a"], files={"train": "2023.csv"})}
    with pytest.raises(DatasetNotFoundError, match=r"missing 2023\.csv"):
        make(tmp_path, lost).setup("fit")


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        (
            "train.jsonl",
            b'{"text": "red", "label": "a"}\n{"text": 4, "label": "a"}\n',
            r":2': column 'text' must hold text, got 4",
        ),
        ("train.jsonl", b'{"text": "red", "label": "a"}\n{"text": \n', r"jsonl:2': every line must be JSON"),
        ("train.jsonl", b'["red"]\n', r"jsonl:1': every line must be a JSON object"),
        ("train.jsonl", b'{"text": "red", "label": "a"}', r"train\.jsonl': must hold at least two rows"),
        ("train.jsonl", b"", r"train\.jsonl': must hold at least one row, got an empty file"),
        ("train.jsonl", b'{"text": "caf\xe9", "label": "a"}\n', r"jsonl:1': must be UTF-8, got the byte 0xe9"),
        ("train.jsonl", b'{"text": "red", "label": "z"}\n' * 2, r"jsonl:\d': label must be one of a, b, got 'z'"),
        ("train.csv", b'text,label\nred,a\n"dog\ncat",b,c\n', r"csv:3': must have 2 columns \(text, label\), got 3"),
        ("train.csv", b'text,label\n"red" dog,a\n', r"csv:2': must be csv"),
        (
            "train.csv",
            b"words,label\nred,a\n",
            r"csv:1': must have the columns text, label, got words, label without text",
        ),
        ("train.csv", b"text,label\n", r"train\.csv': must hold at least one row, got none"),
        ("train.tsv", b"text\tlabel\nred\n", r"tsv:2': must have 2 columns \(text, label\), got 1"),
        ("train.parquet", b"PAR", r"train\.parquet': must be a parquet file"),
    ],
    ids=[
        "type",
        "json",
        "object",
        "single",
        "empty",
        "latin-1",
        "label",
        "columns",
        "quotes",
        "header",
        "none",
        "tsv",
        "parquet",
    ],
)
def test_a_damaged_file_is_named_with_its_line(file: str, content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataFileError, match=problem):
        make(tmp_path, {"kind": TextFolderTask(labels=["a", "b"])}, val_fraction=0.4).setup("fit")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"start": 5, "end": "cat"}, r"column 'end' must stand in the passage at character 5, got 'cat' but .*'red'"),
        ({"start": "x", "end": "red"}, r"column 'start' must hold the number of a character, got 'x'"),
        ({"start": 5, "end": 90}, r"the answer must lie in the 8 characters of the passage, got 5\.\.90"),
    ],
    ids=["text", "number", "range"],
)
def test_an_answer_that_is_not_there_is_an_error_with_its_line(
    row: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    write(tmp_path / "train.jsonl", [{"question": "where", "passage": "the  red", **row}])
    task = TextFolderTask("span", ["question", "passage"], ["start", "end"])
    with pytest.raises(DataFileError, match=rf"train\.jsonl:1': {problem}"):
        make(tmp_path, {"answer": task}).read("answer", "train")


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (TextFolderTask(), "must have labels"),
        (TextFolderTask("tagging", texts=["a", "b"], labels=["O"]), r"must have 1 texts, got \['a', 'b'\]"),
        (TextFolderTask("choice", texts=[]), "must name the columns of the alternatives"),
        (TextFolderTask("choice", texts=[], choices=["a"]), r"must have num_choices as many as choices, got 1"),
        (TextFolderTask("regression", choices=["a"]), "has no choices"),
        (TextFolderTask("span", texts=["q", "p"]), "must have two columns as target"),
        (TextFolderTask("regression", target=None), "must have a target"),
        (TextFolderTask("regression", texts="text"), "must have lists of columns"),
        (TextFolderTask("sorting"), "is unknown"),  # type: ignore[arg-type]
    ],
    ids=["labels", "texts", "choices", "num", "no-choices", "span", "target", "list", "kind"],
)
def test_a_task_that_is_described_in_part_is_refused(task: TextFolderTask, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"TextFolderDataModule: tasks\['mine'\] of kind .*{problem}"):
        make(tmp_path, {"mine": task})


def test_missing_folders_and_tasks_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"kind": TextFolderTask(labels=["a"])}
    with pytest.raises(ValueError, match="tasks must describe at least one task"):
        make(tmp_path)
    with pytest.raises(DatasetNotFoundError, match=r"missing train\.jsonl, train\.csv.*docs/data/text_folder\.md"):
        make(tmp_path, tasks).setup("fit")
    monkeypatch.delenv("LIGHTNING_MTL_DATA", raising=False)
    with pytest.raises(DatasetNotFoundError, match=r"root must name the folder"):
        TextFolderDataModule(tasks=tasks, cache=False).setup("fit")
