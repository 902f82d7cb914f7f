"""SuperGLUE: what the files hold, what the model reads, what the server gets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_mtl import MultiTaskModule
from lightning_mtl.data import DatasetNotFoundError
from lightning_mtl.data.errors import DataFileError
from lightning_mtl.data.text import SuperGLUEDataModule, SymbolTokenizer
from lightning_mtl.data.text.superglue_rows import LAYOUTS, place_of
from lightning_mtl.nn import TextTransformer
from lightning_mtl.tasks import MultipleChoice, MultiRC, TextClassification
from tests.data.benchmark_trees import SUPERGLUE, WORDS, superglue_lines, write_superglue

# Task: folder, keys of a training line, JSON type of the label, and the classes in the order of their ids. Folders,
# keys and types: the benchmark's files (combined.zip, version 2) as in huggingface/datasets:datasets/super_glue, whose
# class order is taken as well; nyu-mll/jiant reads the same keys and types.
TABLE: dict[str, tuple[str, set[str], type, tuple[str, ...]]] = {
    "boolq": ("BoolQ", {"question", "passage", "idx", "label"}, bool, ("false", "true")),
    "cb": ("CB", {"premise", "hypothesis", "idx", "label"}, str, ("entailment", "contradiction", "neutral")),
    "copa": ("COPA", {"premise", "choice1", "choice2", "question", "idx", "label"}, int, ()),
    "multirc": ("MultiRC", {"idx", "version", "passage"}, int, ()),
    "rte": ("RTE", {"premise", "hypothesis", "idx", "label"}, str, ("entailment", "not_entailment")),
    "wic": (
        "WiC",
        {"word", "sentence1", "sentence2", "idx", "label", "start1", "start2", "end1", "end2", "version"},
        bool,
        ("false", "true"),
    ),
    "wsc": ("WSC", {"text", "target", "idx", "label"}, bool, ("false", "true")),
}
TOKENIZER = SymbolTokenizer([*WORDS, "place", "mark"], level="word")


def build(root: Path, **options: Any) -> SuperGLUEDataModule:
    options = {"tokenizer": TOKENIZER, "batch_size": 4, "num_workers": 0, "cache": False, **options}
    return SuperGLUEDataModule(root, **options)


def one_line(root: Path, task: str, line: dict[str, Any] | str | bytes, split: str = "train") -> SuperGLUEDataModule:
    """A data module on a file with one good line and this one."""
    folder = root / LAYOUTS[task].folder
    folder.mkdir(parents=True, exist_ok=True)
    good = json.dumps(next(superglue_lines(task, split))).encode()
    bad = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    (folder / f"{split}.jsonl").write_bytes(good + b"\n" + bad + b"\n")
    return build(root, tasks=[task])


@pytest.mark.parametrize("task", TABLE)
def test_fields_labels_and_their_order_are_those_of_the_benchmark(task: str, tmp_path: Path) -> None:
    folder, keys, kind, classes = TABLE[task]
    assert LAYOUTS[task].folder == SUPERGLUE[task][0] == folder
    lines = list(superglue_lines(task, "train"))
    assert all(set(line) == keys for line in lines)
    records = build(write_superglue(tmp_path), tasks=[task]).read(task, "train")
    raw = (
        [a["label"] for p in lines for q in p["passage"]["questions"] for a in q["answers"]]
        if task == "multirc"
        else [line["label"] for line in lines]
    )
    assert {type(label) for label in raw} == {kind}
    data = build(tmp_path, tasks=[task])
    assert data.class_names.get(task, ()) == classes
    form = data.forms()[task]
    given = [form.encode(target) for target in records.targets]
    if task == "multirc":
        assert [right for right, _ in given] == raw
    else:
        assert given == [classes.index(str(label).lower()) if classes else label for label in raw]


def test_every_task_gives_batches_of_its_form(tmp_path: Path) -> None:
    data = build(write_superglue(tmp_path))
    data.setup("fit")
    seen = {}
    for inputs, targets in data.val_dataloader():
        ((task, target),) = targets.items()
        assert inputs["input_ids"].dtype == inputs["attention_mask"].dtype == target.dtype == torch.int64
        batch, length = len(target), inputs["input_ids"].shape[-1]
        assert inputs["input_ids"].shape == ((batch, 2, length) if task == "copa" else (batch, length))
        assert target.shape == ((batch, 2) if task == "multirc" else (batch,))
        assert (target >= 0).all()
        seen[task] = seen.get(task, 0) + batch
    assert seen == {"boolq": 8, "cb": 8, "copa": 8, "multirc": 12, "rte": 8, "wic": 8, "wsc": 8}


@pytest.mark.parametrize(
    ("task", "line", "texts"),
    [
        ("boolq", {"question": "is it", "passage": "Title -- text"}, ("Title -- text", "is it")),
        ("cb", {"premise": "a", "hypothesis": "b"}, ("a", "b")),
        ("rte", {"premise": "a", "hypothesis": "b"}, ("a", "b")),
        (
            "wic",
            {
                "word": "run",
                "sentence1": "Run rogue.",
                "sentence2": "She ran 10 miles.",
                "start1": 0,
                "end1": 3,
                "start2": 4,
                "end2": 7,
            },
            ("run: * Run * rogue.", "She * ran * 10 miles."),
        ),
        (
            "wsc",
            {
                "text": "Mark was close to Mr. Singer 's heels. He heard him.",
                "target": {"span1_index": 4, "span1_text": "Mr. Singer", "span2_index": 8, "span2_text": "He"},
            },
            ("Mark was close to * Mr. Singer * 's heels. # He # heard him.",),
        ),
    ],
)
def test_the_model_reads(task: str, line: dict[str, Any], texts: tuple[str, ...]) -> None:
    (row,) = LAYOUTS[task].rows({**line, "idx": 5})
    assert (row.texts, row.idx, row.target) == (texts, 5, None)


@pytest.mark.parametrize(
    ("asked", "words"), [("cause", "What was the cause of this?"), ("effect", "What happened as a result?")]
)
def test_copa_asks_for_cause_or_effect_before_each_alternative(asked: str, words: str) -> None:
    line = {"premise": "It rained.", "choice1": "One.", "choice2": "Two.", "question": asked, "idx": 0, "label": 1}
    (row,) = LAYOUTS["copa"].rows(line)
    assert row.choices == ((f"It rained. {words}", "One."), (f"It rained. {words}", "Two."))
    assert row.target == 1


def test_multirc_makes_a_sample_of_every_answer_and_keeps_the_number_of_its_question() -> None:
    (line, *_) = superglue_lines("multirc", "train")
    rows = list(LAYOUTS["multirc"].rows(line))
    assert [row.idx for row in rows] == [(0, 0, 0), (0, 0, 1), (0, 0, 2), (0, 1, 5), (0, 1, 6), (0, 1, 7)]
    assert [row.target[1] for row in rows] == [0, 0, 0, 1, 1, 1]
    question = line["passage"]["questions"][1]
    assert rows[3].texts == (line["passage"]["text"], f"{question['question']} {question['answers'][0]['text']}")


@pytest.mark.parametrize(
    ("text", "index", "span", "marked"),
    [
        ("Dr. Adams informed her that she retired.", 0, "Dr. Adams", "Dr. Adams"),
        ("The dog chased the cat, which ran.", 3, "The cat", "the cat"),  # other case
        ("Bob paid for it.  He was kind.", 4, "he.", "He"),  # a full stop too many, two spaces in the text
        ("They saw her hat.", 2, "he", "her"),  # no part of a word
    ],
)
def test_spans_of_wsc_are_found_where_their_text_differs_a_little(
    text: str, index: int, span: str, marked: str
) -> None:
    start, end = place_of(text, index, span)
    assert text[start:end] == marked


def test_both_marks_are_right_whichever_comes_first() -> None:
    target = {"span1_index": 3, "span1_text": "Ann", "span2_index": 0, "span2_text": "She"}
    (row,) = LAYOUTS["wsc"].rows({"text": "She was called Ann.", "target": target, "idx": 0})
    assert row.texts == ("# She # was called * Ann *.",)


def test_the_test_files_have_no_labels_and_are_there_to_predict(tmp_path: Path) -> None:
    data = build(write_superglue(tmp_path))
    data.setup()
    assert len(data.datasets["predict"]) == len(data.datasets["test"]) == 6 * 6 + 2 * 6
    for batch in data.predict_dataloader():
        ((task, (_, targets)),) = batch.items()
        assert (targets[task] == -100).all()
    with pytest.raises(
        MisconfigurationException, match=r"test files of SuperGLUE carry no labels.*val_split='holdout'"
    ):
        data.test_dataloader()


def test_holding_out_keeps_paragraphs_whole_and_tests_on_the_validation_file(tmp_path: Path) -> None:
    data = build(write_superglue(tmp_path), tasks=["multirc"], val_split="holdout", val_fraction=0.25)
    parts = {split: {idx[0] for idx in data.read("multirc", split).ids or []} for split in ("train", "val")}
    assert not parts["train"] & parts["val"]
    assert parts["train"] | parts["val"] == set(range(8))
    assert len(parts["val"]) == 2
    data.setup("test")
    labels = [int(t) for _, targets in data.test_dataloader() for t in targets["multirc"][:, 0]]
    assert len(labels) == 12
    assert set(labels) == {0, 1}


def test_the_first_release_of_boolq_reads_like_the_benchmarks(tmp_path: Path) -> None:
    (tmp_path / "boolq").mkdir()
    line = {"question": "is it", "title": "Persian language", "answer": True, "passage": "Persian is old."}
    for name in ("train", "dev"):
        (tmp_path / "boolq" / f"{name}.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line) + "\n")
    records = build(tmp_path, tasks=["boolq"]).read("boolq", "val")
    assert records.path.name == "dev.jsonl"
    assert records.texts[0] == ("Persian language -- Persian is old.", "is it")
    assert (list(records.targets), records.ids) == (["true", "true"], [0, 1])


def test_the_development_file_of_boolq_reads_to_the_end() -> None:
    root = os.environ.get("LIGHTNING_MTL_DATA")
    if root is None or not (Path(root) / "boolq" / "dev.jsonl").is_file():
        pytest.skip("LIGHTNING_MTL_DATA/boolq/dev.jsonl is not there")
    records = build(Path(root), tasks=["boolq"]).read("boolq", "val")
    assert len(records) == 3270
    assert list(records.targets).count("true") == 2033
    assert records.texts[0][0].startswith("Ethanol fuel -- All biomass goes")


def test_a_submission_is_in_the_form_of_the_server(tmp_path: Path) -> None:
    data = build(write_superglue(tmp_path / "in"))
    data.setup("predict")
    guesses = []
    for batch in data.predict_dataloader():
        ((task, (_, targets)),) = batch.items()
        target = targets[task]
        scores = torch.zeros(len(target), 3 if task == "cb" else 2)
        scores[:, 1] = 1
        guesses.append({task: scores})
    paths = data.write_submission(guesses, tmp_path / "out")
    written = {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in paths}
    assert sorted(written) == sorted(folder for folder, *_ in TABLE.values())
    expected = {
        "BoolQ": "true",
        "CB": "contradiction",
        "COPA": 1,
        "RTE": "not_entailment",
        "WiC": "true",
        "WSC": "True",
    }
    for name, label in expected.items():
        assert written[name] == [{"idx": idx, "label": label} for idx in range(6)]
    answers = [{"idx": idx, "label": 1} for idx in range(3)]
    assert written["MultiRC"][0]["passage"]["questions"][0] == {"idx": 0, "answers": answers}
    assert [line["idx"] for line in written["MultiRC"]] == [0, 1]
    guesses[0] = {"boolq": torch.tensor([0, 1, 0, 1])}  # classes, or the probability of true
    guesses[1] = {"boolq": torch.tensor([0.2, 0.9])}
    data.write_submission(guesses, tmp_path / "out")
    labels = [json.loads(line)["label"] for line in (tmp_path / "out" / "BoolQ.jsonl").read_text().splitlines()]
    assert sorted(labels) == ["false"] * 3 + ["true"] * 3
    with pytest.raises(ValueError, match=r"SuperGLUEDataModule: predictions must be those of all \d+ batches"):
        data.write_submission(guesses[:-1], tmp_path / "out")


def without(task: str, *keys: str) -> dict[str, Any]:
    return {key: value for key, value in next(superglue_lines(task, "train")).items() if key not in keys}


def changed(task: str, **values: Any) -> dict[str, Any]:
    return {**next(superglue_lines(task, "train")), **values}


BAD: dict[str, tuple[str, Callable[[], Any], str]] = {
    "no JSON": ("cb", lambda: '{"premise": "a",', "every line must be JSON"),
    "no object": ("cb", lambda: "[1, 2]", "every line must be a JSON object"),
    "not UTF-8": ("cb", lambda: b'{"premise": "caf\xe9"}', "must be UTF-8, got the byte 0xe9"),
    "missing key": ("cb", lambda: without("cb", "hypothesis"), "there must be a key 'hypothesis', got 'premise'"),
    "no label": ("rte", lambda: without("rte", "label"), "there must be a label"),
    "unknown label": ("cb", lambda: changed("cb", label="perhaps"), "label must be one of entailment, contradiction"),
    "string for boolean": (
        "boolq",
        lambda: changed("boolq", label="true"),
        "'label' must be true or false, got 'true'",
    ),
    "boolean for integer": ("copa", lambda: changed("copa", label=True), "'label' must be an integer, got True"),
    "third alternative": ("copa", lambda: changed("copa", label=2), r"choice must be a number in 0\.\.1, got 2"),
    "unknown question": ("copa", lambda: changed("copa", question="why"), "must be one of cause, effect, got 'why'"),
    "range outside": ("wic", lambda: changed("wic", end2=999), "'start2' and 'end2' must be a range of the .* 999"),
    "word outside": (
        "wsc",
        lambda: changed("wsc", target={"span1_index": 99, "span1_text": "a", "span2_index": 0, "span2_text": "b"}),
        "'span1_index' 99 and 'span1_text' 'a' must lie in 'text' of",
    ),
    "number for text": ("rte", lambda: changed("rte", premise=3), "'premise' must be text, got 3"),
    "answers missing": (
        "multirc",
        lambda: {"idx": 1, "passage": {"text": "a", "questions": [{"question": "b", "idx": 0}]}},
        "there must be a key 'answers'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_one_error_with_file_and_line(name: str, tmp_path: Path) -> None:
    task, line, message = BAD[name]
    data = one_line(tmp_path, task, line())
    with pytest.raises(
        DataFileError, match=rf"SuperGLUEDataModule: '.*{LAYOUTS[task].folder}/train\.jsonl:2'.*{message}"
    ):
        data.make_dataset("train")


def test_an_empty_file_and_a_missing_one_say_so(tmp_path: Path) -> None:
    (tmp_path / "CB").mkdir()
    (tmp_path / "CB" / "train.jsonl").write_text("\n")
    data = build(tmp_path, tasks=["cb"])
    with pytest.raises(DataFileError, match=r"CB/train\.jsonl': must hold at least one row, got an empty file"):
        data.read("cb", "train")
    with pytest.raises(DatasetNotFoundError, match=r"missing CB/val\.jsonl.*gluebenchmark.*leave 'cb' out"):
        data.read("cb", "val")


def test_unknown_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tasks must be some of .*, got \['record'\]"):
        build(tmp_path, tasks=["record"])
    with pytest.raises(ValueError, match="val_split must be 'val' or 'holdout', got 'dev'"):
        build(tmp_path, val_split="dev")


def test_seven_tasks_train_validate_and_predict_in_a_trainer(tmp_path: Path) -> None:
    data = build(write_superglue(tmp_path / "in"), batch_size=6)
    text = {"num_classes": 2, "metrics": ["accuracy"]}
    tasks = {
        "boolq": TextClassification(**text),
        "cb": TextClassification(3, metrics=["accuracy", "f1"]),
        "copa": MultipleChoice(2),
        "multirc": MultiRC(),
        "rte": TextClassification(**text),
        "wic": TextClassification(**text),
        "wsc": TextClassification(**text),
    }
    encoder = TextTransformer(len(TOKENIZER), features="cls", dim=8, depth=1, num_heads=2)
    module = MultiTaskModule(encoder, tasks)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    for task, spec in tasks.items():
        assert all(0 <= scores[f"val/{task}/{metric}"] <= 1 for metric in spec.metrics)
    paths = data.write_submission(trainer.predict(module, datamodule=data), tmp_path / "out")
    lines = {path.stem: path.read_text().splitlines() for path in paths}
    assert {name: len(rows) for name, rows in lines.items()} == {
        folder: 2 if folder == "MultiRC" else 6 for folder, *_ in TABLE.values()
    }
