from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_mtl import MultiTaskModule
from lightning_mtl.data import DataFileError, DatasetNotFoundError
from lightning_mtl.data.text import GLUEDataModule, SymbolTokenizer
from lightning_mtl.data.text.glue import GLUE_TASKS
from lightning_mtl.nn import TextTransformer
from lightning_mtl.tasks import TextClassification, TextRegression
from tests.data.glue_trees import WORDS, write_glue

# Columns of the texts and of the label, and the names of the classes in the order of their ids: the archive's files,
# as read by huggingface/datasets:datasets/glue/glue.py (order of label_classes, 0 and 1 written as they are there),
# huggingface/transformers:src/transformers/data/processors/glue.py (columns) and run_glue.py (names of the tasks).
# Wang et al., ICLR 2019, Table 1 gives the tasks and their metrics.
OFFICIAL: dict[str, tuple[str, tuple[str, ...], str, tuple[str, ...] | None]] = {
    "cola": ("CoLA", ("sentence",), "label", ("0", "1")),  # columns 4 and 2 of 4, without header
    "sst2": ("SST-2", ("sentence",), "label", ("0", "1")),
    "mrpc": ("MRPC", ("#1 String", "#2 String"), "Quality", ("0", "1")),
    "stsb": ("STS-B", ("sentence1", "sentence2"), "score", None),  # columns 8, 9, 10
    "qqp": ("QQP", ("question1", "question2"), "is_duplicate", ("0", "1")),
    "mnli": ("MNLI", ("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction")),
    "qnli": ("QNLI", ("question", "sentence"), "label", ("entailment", "not_entailment")),
    "rte": ("RTE", ("sentence1", "sentence2"), "label", ("entailment", "not_entailment")),
    "wnli": ("WNLI", ("sentence1", "sentence2"), "label", ("0", "1")),
}

# rows of train and dev in the copy of the data that is used for tests: part of the official files
ROWS = {
    "cola": (6841, 522, 532),
    "sst2": (16000, 436, 910),
    "mrpc": (2934, 204, 862),
    "stsb": (4599, 750, 690),
    "rte": (1992, 138, 500),
    "wnli": (508, 36, 73),
}


def make(root: Path, **options: Any) -> GLUEDataModule:
    tokenizer = SymbolTokenizer(WORDS)
    return GLUEDataModule(
        root, **{"tokenizer": tokenizer, "cache": False, "num_workers": 0, "batch_size": 4, **options}
    )


@pytest.mark.parametrize("task", OFFICIAL)
def test_columns_and_order_of_labels_are_the_official_ones(task: str) -> None:
    spec = GLUE_TASKS[task]
    labels = None if task == "stsb" else tuple(spec.form.labels)  # type: ignore[union-attr]
    assert (spec.folder, spec.inputs, spec.label, labels) == OFFICIAL[task]


@pytest.mark.parametrize("task", OFFICIAL)
def test_every_task_reads_texts_labels_and_ids(task: str, tmp_path: Path) -> None:
    root = write_glue(tmp_path)
    data = make(root, tasks=[task])
    folder, columns, label, labels = OFFICIAL[task]
    lines = (root / folder / "train.tsv").read_text(encoding="utf-8-sig").splitlines()
    names = ["source", "label", "mark", "sentence"] if task == "cola" else lines.pop(0).split("\t")
    expected = [dict(zip(names, line.split("\t"), strict=True)) for line in lines]
    (records,) = data.read(task, "train")
    assert records.texts == [tuple(row[column].strip() for column in columns) for row in expected]
    assert records.targets == [row[label] for row in expected]
    assert records.lines[0] == (1 if task == "cola" else 2)
    data.setup("fit")
    inputs, targets = data.datasets["train"][5]
    if labels is None:
        assert targets[task] == pytest.approx(float(expected[5][label]))
    else:
        assert targets[task] == labels.index(expected[5][label])
    words = data.tokenizer.decode(inputs["input_ids"], skip_special_tokens=True)
    assert words == " ".join(expected[5][column].strip() for column in columns)


def test_none_takes_every_task_that_is_there_and_a_named_one_must_be(tmp_path: Path) -> None:
    root = write_glue(tmp_path, ("RTE", "CoLA"), diagnostics=False)
    assert make(root).tasks == ("cola", "rte")
    with pytest.raises(DatasetNotFoundError, match=r"missing QNLI/train\.tsv.*gluebenchmark.*leave 'qnli' out"):
        make(root, tasks=["rte", "qnli"]).setup("fit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"missing CoLA, SST-2"):
        make(tmp_path / "empty").setup("fit")


@pytest.mark.parametrize(("dev", "count"), [("matched", 10), ("mismatched", 10), ("both", 20)])
def test_mnli_is_validated_where_asked_for(dev: str, count: int, tmp_path: Path) -> None:
    data = make(write_glue(tmp_path, ("MNLI",)), mnli_dev=dev)
    data.setup("fit")
    assert len(data.datasets["val"]) == count
    seen = {path.stem for path in data.datasets["val"].sources["mnli"].paths}
    assert seen == {f"dev_{part}" for part in (("matched", "mismatched") if dev == "both" else (dev,))}


def test_rows_of_qqp_that_are_cut_are_left_out_with_a_warning_and_of_others_are_errors(tmp_path: Path) -> None:
    root = write_glue(tmp_path, ("QQP", "RTE"))
    for folder in ("QQP", "RTE"):
        path = root / folder / "train.tsv"
        path.write_text(path.read_text() + "77\tcut here\n")
    with pytest.warns(UserWarning, match=r"QQP/train\.tsv': left out 1 rows"):
        assert len(make(root, tasks=["qqp"]).read("qqp", "train")[0]) == 24
    with pytest.raises(DataFileError, match=r"RTE/train\.tsv:26': must have 4 columns .*got 2"):
        make(root, tasks=["rte"]).read("rte", "train")


def test_quotation_marks_and_odd_line_breaks_are_text(tmp_path: Path) -> None:
    root = write_glue(tmp_path, ("SST-2",))
    (root / "SST-2" / "dev.tsv").write_bytes('sentence\tlabel\r\n"a dog" \x85 runs \u2028 "again\t1\r\n'.encode())
    (records,) = make(root).read("sst2", "val")
    assert records.texts == [('"a dog" \x85 runs \u2028 "again',)]
    assert records.targets == ["1"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", r"train\.tsv:2': label must be one of .*'maybe'"),
        (b"index\tsentence1\tlabel\n0\ta\tentailment\n", r"train\.tsv:1': must have the columns .*without sentence2"),
        (b"", r"train\.tsv': must hold at least one row, got an empty file"),
        (b"index\tsentence1\tsentence2\tlabel\n", r"train\.tsv': must hold at least one row, got none"),
        (b"index\tsentence1\tsentence2\tlabel\n0\tcaf\xe9\tb\tentailment\n", r"train\.tsv:2': must be UTF-8.*0xe9"),
    ],
    ids=["label", "column", "empty", "header-only", "latin-1"],
)
def test_a_damaged_file_is_named_with_its_line(content: bytes, problem: str, tmp_path: Path) -> None:
    root = write_glue(tmp_path, ("RTE",))
    (root / "RTE" / "train.tsv").write_bytes(content)
    with pytest.raises(DataFileError, match=problem):
        make(root).setup("fit")


def test_scores_out_of_range_are_refused(tmp_path: Path) -> None:
    root = write_glue(tmp_path, ("STS-B",))
    path = root / "STS-B" / "dev.tsv"
    path.write_text(path.read_text().replace("\t5.000\n", "\t7.000\n").replace("\t1.400\n", "\t7.000\n"))
    with pytest.raises(DataFileError, match=r"dev\.tsv:\d+': score must be a number in \[0, 5\], got '7.000'"):
        make(root).setup("fit")


def test_the_test_files_have_no_labels_and_testing_says_so(tmp_path: Path) -> None:
    data = make(write_glue(tmp_path, ("STS-B", "RTE")))
    data.setup("test")
    with pytest.raises(MisconfigurationException, match=r"carry no labels.*validate.*holdout.*predict"):
        data.test_dataloader()
    data.setup("predict")
    seen = {task: value for _, targets in data.predict_dataloader() for task, value in targets.items()}
    assert seen["stsb"].isnan().all()
    assert (seen["rte"] == -100).all()


def test_holdout_validates_on_training_rows_and_tests_on_dev(tmp_path: Path) -> None:
    data = make(write_glue(tmp_path, ("RTE",)), val_split="holdout", val_fraction=0.25)
    data.setup()
    rows = {split: set(data.datasets[split].sources["rte"].lines) for split in ("train", "val")}
    assert (len(rows["train"]), len(rows["val"])) == (18, 6)
    assert not rows["train"] & rows["val"]
    assert {path.name for path in data.datasets["val"].sources["rte"].paths} == {"train.tsv"}
    assert {path.name for path in data.datasets["test"].sources["rte"].paths} == {"dev.tsv"}
    assert len(list(data.test_dataloader())) == 3


def test_a_submission_has_the_official_names_ids_and_labels(tmp_path: Path) -> None:
    root = write_glue(tmp_path / "glue")
    data = make(root)
    data.setup("predict")
    answer = {"stsb": 9.0, "mnli": 2}  # a score beyond the range, and a class

    def predict(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = len(inputs["input_ids"])
        return {task: torch.full((rows,), answer.get(task, 1)) for task in data.tasks}

    predictions = [predict(inputs) for inputs, _ in data.predict_dataloader()]
    written = data.write_submission(predictions, tmp_path / "out")
    names = {"CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "AX", "QNLI", "RTE", "WNLI"}
    assert {path.stem for path in written} == names
    labels = {"CoLA": "1", "MNLI-mm": "contradiction", "AX": "contradiction", "RTE": "not_entailment", "STS-B": "5.000"}
    for name, label in labels.items():
        header, *lines = (tmp_path / "out" / f"{name}.tsv").read_text().splitlines()
        assert header == "index\tprediction"
        step = 1 if name == "AX" else 3
        assert lines == [f"{step * number}\t{label}" for number in range(len(lines))]
    with pytest.raises(ValueError, match=rf"all {len(predictions)} batches on one process, got 1"):
        data.write_submission(predictions[:1], tmp_path / "out")


def test_a_submission_keeps_every_prediction_with_its_row(tmp_path: Path) -> None:
    data = make(write_glue(tmp_path / "glue", ("SST-2",)), batch_size=3)
    data.setup("predict")
    predictions = [  # the class says whether the text has an even number of tokens
        {"sst2": 1 - inputs["attention_mask"].sum(1) % 2} for inputs, _ in data.predict_dataloader()
    ]
    (path,) = data.write_submission(predictions, tmp_path)
    source = (tmp_path / "glue" / "SST-2" / "test.tsv").read_text().splitlines()[1:]
    expected = [f"{line.split(chr(9))[0]}\t{1 - len(line.split(chr(9))[1].split()) % 2}" for line in source]
    assert path.read_text().splitlines()[1:] == expected


def test_a_trained_module_validates_and_writes_its_submission(tmp_path: Path) -> None:
    data = make(write_glue(tmp_path / "glue"), tokenizer=None, cache=True, cache_dir=str(tmp_path / "cache"))
    tasks: dict[str, Any] = {task: TextClassification(3 if task == "mnli" else 2) for task in data.tasks}
    tasks["stsb"] = TextRegression()
    module = MultiTaskModule(TextTransformer(data.tokenizer.vocab_size, dim=8, depth=1, num_heads=2), tasks)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, datamodule=data)
    assert {f"val/{task}/loss" for task in data.tasks} <= set(trainer.callback_metrics)
    written = data.write_submission(trainer.predict(module, datamodule=data), tmp_path / "out")
    known = {"CoLA": {"0", "1"}, "AX": {"entailment", "neutral", "contradiction"}}
    for path in written:
        labels = {line.split("\t")[1] for line in path.read_text().splitlines()[1:]}
        assert labels <= known.get(path.stem, labels)
    assert len(written) == 11


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"tasks": "rte"}, "tasks must be a list of names"),
        ({"tasks": ["snli"]}, r"tasks must be some of cola.*got \['snli'\]"),
        ({"val_split": "test"}, "val_split must be one of"),
        ({"truncation": "cut"}, "truncation must be one of"),
        ({"max_length": 2}, "max_length must be at least 4, got 2"),
        ({"val_fraction": 0.0}, "val_fraction must be between 0 and 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_wrong_argument_is_named(options: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=problem):
        make(tmp_path, **options)


def test_the_real_files_hold_what_they_should(real_data: Callable[[str], Path]) -> None:
    data = make(real_data("glue"))
    for task, counts in ROWS.items():
        if task not in data.tasks:
            continue
        found = [sum(len(part) for part in data.read(task, split)) for split in ("train", "val", "predict")]
        assert tuple(found) == counts, task
        (train,) = data.read(task, "train")
        form = data.forms()[task]
        values = [form.encode(target) for target in train.targets]
        assert len(set(values)) > 1
        assert not any(text.startswith("\ufeff") for text in train.texts[0])
        assert train.ids is not None
        assert len(set(train.ids)) == len(train.ids)
