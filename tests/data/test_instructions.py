"""Instructions in front of texts, mixtures of such tasks, and the layout of BoX."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mtl.data import DataFileError, DatasetNotFoundError
from lightning_mtl.data.text import (
    BOX_TASKS,
    STRING_TASKS,
    BoXDataModule,
    InstructionExample,
    InstructionMixtureDataModule,
    InstructionTemplate,
    StringTasksDataModule,
    SymbolTokenizer,
    TaskFiles,
    TokenizerTraining,
    cut_shares,
    read_templates,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "box-prompt-and-score.json").read_text())["cases"]
PROMPTS = [case for case in GOLDEN if case["args"]["fn"] == "build_prompt"]
TEMPLATES = {
    "NCBI": {
        "Definition:": "List every disease.",
        "Examples": [{"input": "gout hurts", "output": "gout <Disease>", "explanation": "one"}],
        "Prompt": "Find diseases.",
    },
    "HoC": {"Definition:": "Name the hallmarks.", "Examples": [], "Prompt": "Hallmarks?"},
}
TEXTS = {
    "NCBI": [
        ("asthma, or\ngout", "asthma <Disease>, gout <Disease>"),
        ("nothing here", ""),
        ("gout again", "gout <Disease>"),
    ],
    "HoC": [("asthma, or\ngout", "growth, death"), ('cells "divide"', "growth"), ("cells die", "death")],
}


def write_box(root: Path, ending: str = "csv") -> Path:
    for task, rows in TEXTS.items():
        (root / task).mkdir(parents=True)
        for split in ("train", "validation", "test"):
            lines = ["Input,Output"]
            for text, answer in rows:
                quoted = ['"' + value.replace('"', '""') + '"' for value in (text, answer)]
                lines.append(",".join(quoted) if ending == "csv" else json.dumps({"Input": text, "Output": answer}))
            content = lines if ending == "csv" else lines[1:]
            (root / task / f"{split}.{ending}").write_text("\n".join(content) + "\n", encoding="utf-8")
    (root / "templates.json").write_text(json.dumps(TEMPLATES), encoding="utf-8")
    return root


def box(root: Path, **options: Any) -> BoXDataModule:
    settings: dict[str, Any] = {
        "tasks": list(TEXTS),
        "templates": str(root / "templates.json"),
        "tokenizer": tokenizer(),
        "decoder_start": "bos",
        "cache": False,
        "num_workers": 0,
        "batch_size": 2,
    }
    return BoXDataModule(root, **{**settings, **options})


def tokenizer() -> SymbolTokenizer:
    frames = [json.dumps(TEMPLATES), "Instruction: Definition: , Positive Examples: [[ explanation ] ]; Instance: ?"]
    texts = [text for rows in TEXTS.values() for row in rows for text in row]
    return SymbolTokenizer.of([*frames, *texts, *TEXTS])


def prompts(data: Any, split: str) -> dict[str, list[str]]:
    """Return task -> prompts as they are read, in order of the rows."""
    data.setup()
    dataset = data.datasets[split]
    found: dict[str, list[str]] = {}
    for row in range(len(dataset)):
        inputs, targets = dataset[row]
        ids = inputs["input_ids"][: int(inputs.get("prompt_length", len(inputs["input_ids"])))]
        found.setdefault(next(iter(targets)), []).append(data.tokenizer.decode(ids.tolist()))
    return found


# ---------------------------------------------------------------------- templates
@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["inputs"]["definition"])
def test_the_layout_is_that_of_the_authors(case: dict[str, Any]) -> None:
    given = case["inputs"]
    template = InstructionTemplate(given["definition"], [InstructionExample(**one) for one in given["examples"]])
    assert template.render(given["instance"]) == case["expected"]


def test_modes_show_more_or_less() -> None:
    examples = [InstructionExample("a", "b", "c"), InstructionExample("d", "e")]
    template = InstructionTemplate("Define.", examples, "Prompt.", max_examples=1, include_explanations=False)
    assert template.render("x", "none") == "x"
    assert template.render("x", "task_name", "NCBI") == "Instruction: NCBI; Instance: input: x, output: ?"
    assert template.render("x", "prompt") == "Instruction: Prompt.; Instance: input: x, output: ?"
    shown = (
        "Instruction: Definition: Define., Positive Examples: [[input: a, output: b] ]; Instance: input: x, output: ?"
    )
    assert template.render("x") == shown
    bare = "Instruction: Definition: Define.; Instance: input: x, output: ?"
    assert InstructionTemplate("Define.", examples, max_examples=0).render("x") == bare
    assert "[input: d, output: e] ]" in InstructionTemplate("Define.", examples).render("x")
    with pytest.raises(ValueError, match="mode='prompt' needs a prompt, and the template of task 'T' has none"):
        InstructionTemplate("Define.").render("x", "prompt", "T")
    with pytest.raises(ValueError, match="mode must be 'none', 'task_name', 'prompt' or 'full', got 'long'"):
        template.frame("long")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="max_examples must not be negative, got -1"):
        InstructionTemplate("Define.", max_examples=-1)


def test_templates_are_read_from_a_file(tmp_path: Path) -> None:
    path = write_box(tmp_path) / "templates.json"
    found = read_templates(path, ["HoC", "NCBI"])
    assert found["NCBI"].examples == (InstructionExample("gout hurts", "gout <Disease>", "one"),)
    assert (found["HoC"].definition, found["HoC"].prompt) == ("Name the hallmarks.", "Hallmarks?")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"must be JSON"),
        ("[]", r"must map tasks to templates, got list"),
        ('{"A": {}}', r"must hold the tasks \['HoC'\], got \['A'\]; add them"),
        ('{"HoC": 3}', r"task 'HoC': must be an object, got int"),
        ('{"HoC": {"Prompt": "p"}}', r"task 'HoC': must have 'Definition:', got \['Prompt'\]"),
        ('{"HoC": {"Definition:": 1}}', r"task 'HoC': 'Definition:' must be a text, got int"),
        ('{"HoC": {"Definition:": "d", "Examples": {}}}', r"task 'HoC': 'Examples' must be a list, got dict"),
        (
            '{"HoC": {"Definition:": "d", "Examples": [{"input": "x"}]}}',
            r"task 'HoC, example 1': must have 'output', got \['input'\]",
        ),
        ('{"HoC": {"Definition:": "d", "Examples": [3]}}', r"task 'HoC, example 1': must be an object, got int"),
    ],
)
def test_errors_of_template_files_name_file_task_and_key(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(DataFileError, match=rf"Mine: '.*t\.json': {message}"):
        read_templates(path, ["HoC"], owner="Mine")


def test_a_missing_template_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"Mine: templates: there is no file '.*none\.json'"):
        read_templates(tmp_path / "none.json", ["HoC"], owner="Mine")


# ---------------------------------------------------------------------- mixtures
@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_rows_of_the_box_layout_stand_in_their_instruction(ending: str, tmp_path: Path) -> None:
    found = prompts(box(write_box(tmp_path, ending)), "train")
    assert found["NCBI"][0] == (
        "<bos> Instruction : Definition : List every disease . , Positive Examples : [ [ input : gout hurts , output : "
        "gout < Disease > , explanation : one ] ] ; Instance : input : asthma , or gout , output : ? <eos>"
    )
    assert found["HoC"][1] == (
        '<bos> Instruction : Definition : Name the hallmarks . ; Instance : input : cells " divide " , output : ? <eos>'
    )


def test_the_same_text_keeps_a_row_in_every_task(tmp_path: Path) -> None:
    found = prompts(box(write_box(tmp_path), mode="none"), "train")
    assert found["NCBI"][0] == found["HoC"][0] == "<bos> asthma , or gout <eos>"
    assert {task: len(rows) for task, rows in found.items()} == {"NCBI": 3, "HoC": 3}


def test_batches_of_an_encoder_decoder_are_shifted_by_the_start_token(tmp_path: Path) -> None:
    data = box(write_box(tmp_path))
    data.setup("fit")
    for inputs, targets in data.train_dataloader():
        assert {name: value.dtype for name, value in inputs.items()} == dict.fromkeys(inputs, torch.int64)
        assert inputs["input_ids"].shape == inputs["attention_mask"].shape
        rows = sum((target != -100).any(dim=1).int() for target in targets.values())
        assert (rows == 1).all()  # every row belongs to one task
        for target in targets.values():
            for decoder, labels in zip(inputs["decoder_input_ids"], target, strict=True):
                kept = labels[labels != -100]
                if len(kept):
                    assert decoder[0] == 1
                    assert torch.equal(decoder[1 : len(kept)], kept[:-1])
                    assert kept[-1] == data.tokenizer.eos_token_id


def test_batches_of_a_causal_model_continue_the_prompt(tmp_path: Path) -> None:
    data = box(write_box(tmp_path), model="causal")
    data.setup("fit")
    for inputs, targets in data.train_dataloader():
        assert set(inputs) == {"input_ids", "attention_mask", "prompt_length"}
        for target in targets.values():
            assert target.shape == inputs["input_ids"].shape
            for ids, labels, length in zip(inputs["input_ids"], target, inputs["prompt_length"], strict=True):
                places = (labels != -100).nonzero().flatten()
                if len(places):
                    assert places[0] == length - 1
                    assert torch.equal(labels[places[:-1]], ids[places[:-1] + 1])
                    assert labels[places[-1]] == data.tokenizer.eos_token_id


@pytest.mark.parametrize("model", ["causal", "seq2seq"])
def test_only_the_text_is_cut_and_the_share_is_told(model: str, tmp_path: Path) -> None:
    whole = prompts(box(write_box(tmp_path), model=model), "train")
    longest = max(len(row.split()) for row in whole["NCBI"])
    data = box(tmp_path, model=model, max_source_len=longest - 1)
    with pytest.warns(UserWarning, match=rf"max_source_len={longest - 1} cuts the end of texts, .* NCBI 33\.3%\."):
        found = prompts(data, "train")
    assert cut_shares(data.datasets["train"]) == {"NCBI": pytest.approx(1 / 3), "HoC": 0.0}  # type: ignore[arg-type]
    end = " , output : ?" + (" <eos>" if model == "seq2seq" else "")
    assert found["NCBI"][0] == whole["NCBI"][0].replace(f"gout{end}", end.strip())
    assert found["HoC"] == whole["HoC"]
    with pytest.raises(ValueError, match=r"max_source_len must leave room .* task 'NCBI' takes \d+ of \d+ tokens"):
        box(tmp_path, model=model, max_source_len=20).setup("fit")


def test_answers_are_cut_to_the_longest_target_and_keep_their_end(tmp_path: Path) -> None:
    data = box(write_box(tmp_path), max_target_len=3)
    data.setup("fit")
    written = [data.datasets["train"][row][1] for row in range(3)]
    assert [data.tokenizer.decode(row["NCBI"].tolist()) for row in written] == [
        "asthma < <eos>",
        "<eos>",
        "gout < <eos>",
    ]


def test_few_shot_takes_rows_by_the_seed_and_leaves_evaluation_alone(tmp_path: Path) -> None:
    root = write_box(tmp_path)
    first, again = box(root, few_shot=2, mode="none"), box(root, few_shot=2, mode="none")
    assert prompts(first, "train") == prompts(again, "train")
    assert {task: len(rows) for task, rows in prompts(first, "train").items()} == {"NCBI": 2, "HoC": 2}
    assert {task: len(rows) for task, rows in prompts(first, "val").items()} == {"NCBI": 3, "HoC": 3}
    others = [prompts(box(root, few_shot=1, mode="none", seed=seed), "train")["NCBI"][0] for seed in range(8)]
    assert len(set(others)) > 1


def test_a_trained_tokenizer_reads_and_writes(tmp_path: Path) -> None:
    root = write_box(tmp_path)
    data = box(root, tokenizer=TokenizerTraining(300, model="bpe", min_frequency=1), decoder_start="cls")
    found = prompts(data, "train")
    full = f"[CLS] {read_templates(root / 'templates.json', ['HoC'])['HoC'].render('cells die')}[SEP]"
    assert found["HoC"][2] == full
    room = len(data.datasets["train"][0][0]["input_ids"]) - 2
    cut = box(root, tokenizer=data.tokenizer, decoder_start="cls", max_source_len=room)
    with pytest.warns(UserWarning, match="cuts the end of texts"):
        shorter = prompts(cut, "train")["NCBI"][0]
    assert shorter.endswith(", output: ?[SEP]")
    assert found["NCBI"][0].startswith(shorter.removesuffix(", output: ?[SEP]"))


def test_tokens_come_from_the_cache_and_change_with_the_instruction(tmp_path: Path) -> None:
    root = write_box(tmp_path)
    cache = tmp_path / "cache"

    def made(**options: Any) -> int:
        data = box(root, cache=True, cache_dir=str(cache), **options)
        data.setup("fit")
        assert isinstance(next(iter(data.train_dataloader()))[0]["input_ids"], Tensor)
        return len(list(cache.rglob("*.arrow")))

    first = made()
    assert made() == first
    assert made(mode="prompt") > first


def test_tasks_of_other_files_are_mixed_with_columns_of_any_name(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("text\tanswer\nasthma\tgout\n")
    (tmp_path / "b.jsonl").write_text('{"y": "death", "x": "growth"}\n')
    tasks = {
        "a": TaskFiles(train=str(tmp_path / "a.tsv"), val=str(tmp_path / "a.tsv")),
        "b": TaskFiles(train=str(tmp_path / "b.jsonl"), input_column="x", output_column="y"),
    }
    data = InstructionMixtureDataModule(
        tasks, mode="task_name", tokenizer=tokenizer(), decoder_start="bos", cache=False, num_workers=0
    )
    data.setup("fit")
    train = data.datasets["train"]
    assert [data.tokenizer.decode(train[row][0]["input_ids"].tolist(), skip_special_tokens=True) for row in (0, 1)] == [
        "Instruction : <unk> ; Instance : input : asthma , output : ?",
        "Instruction : <unk> ; Instance : input : growth , output : ?",
    ]
    assert {name for sample in (train[0], train[1]) for name in sample[1]} == {"a", "b"}
    assert len(data.datasets["val"]) == 1  # type: ignore[arg-type]


def test_errors_name_file_line_and_remedy_and_show_no_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = write_box(tmp_path / "box")
    with pytest.raises(DatasetNotFoundError, match=r"missing AnatEM, BC2GM, .* and 25 more\. Lay out every task"):
        BoXDataModule(root, mode="none", tokenizer=tokenizer()).setup("fit")
    (root / "HoC" / "train.csv").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"missing HoC/train\.csv"):
        box(root).setup("fit")
    (root / "HoC" / "train.jsonl").write_text('{"Input": "secret", "Output": 3}\n')
    with pytest.raises(DataFileError, match=r"train\.jsonl:1': column 'Output' must be a text, got int") as caught:
        box(root).setup("fit")
    assert "secret" not in str(caught.value)
    (root / "HoC" / "train.jsonl").write_text('{"Text": "secret"}\n')
    tasks = {"HoC": TaskFiles(str(root / "HoC" / "train.jsonl"), output_column="Output")}
    with pytest.raises(DataFileError, match=r"must have the column 'Output', got Text"):
        InstructionMixtureDataModule(tasks, mode="none", tokenizer=tokenizer(), cache=False).setup("fit")
    with pytest.raises(DatasetNotFoundError, match=r"task 'a': there is no file '.*none\.csv'; correct train of"):
        InstructionMixtureDataModule({"a": TaskFiles("none.csv")}, mode="none", tokenizer=tokenizer()).setup("fit")
    with pytest.raises(ValueError, match=r"templates must hold the tasks \['a'\] for mode='full', got \[\]; give"):
        InstructionMixtureDataModule({"a": TaskFiles("none.csv")})
    with pytest.raises(ValueError, match="tasks must hold at least one task, got none"):
        InstructionMixtureDataModule({})
    with pytest.raises(ValueError, match="tasks must name at least one task and each once"):
        BoXDataModule(root, tasks=["HoC", "HoC"])
    with pytest.raises(ValueError, match=r"BoXDataModule: model must be one of .*, got 'rnn'"):
        box(root, model="rnn")
    with pytest.raises(ValueError, match="max_length must be left out; set max_source_len"):
        box(root, max_length=5)
    with pytest.raises(ValueError, match="few_shot must be at least 1, got 0"):
        box(root, few_shot=0)
    assert not [record for record in caplog.records if record.levelno >= logging.INFO and "secret" in record.message]


def test_box_has_the_thirty_two_tasks() -> None:
    assert len(BOX_TASKS) == 32
    assert Counter(task.category for task in BOX_TASKS.values())["named entity recognition"] == 15
    assert all(task.score == "entity_f1" for task in BOX_TASKS.values() if task.category == "named entity recognition")


# ---------------------------------------------------------------------- generated strings
def solved(task: str, digits: list[int]) -> list[int]:
    if task == "increment":
        return [0 if digit == 9 else digit + 1 for digit in digits]
    order = {"copy": [0, 1, 2, 3, 4], "reverse": [4, 3, 2, 1, 0], "rotate": [1, 2, 3, 4, 0], "swap": [4, 1, 2, 3, 0]}
    return sorted(digits) if task == "sort" else [digits[place] for place in order[task]]


def test_string_tasks_have_right_answers_and_splits_that_never_meet() -> None:
    data = StringTasksDataModule(num_train=60, num_val=20, num_test=20)
    seen: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for task in STRING_TASKS:
            records = data.rows(task, split)  # type: ignore[arg-type]
            assert len(records) == (60 if split == "train" else 20)
            for (text,), answer in zip(records.texts, records.targets, strict=True):
                assert [int(digit) for digit in answer.split()] == solved(task, [int(digit) for digit in text.split()])
                seen.setdefault(split, set()).add(text)
    assert not seen["train"] & seen["val"]
    assert not seen["train"] & seen["test"]
    assert not seen["val"] & seen["test"]


def test_phrases_are_short_and_share_their_words() -> None:
    prompts = [template.prompt for template in StringTasksDataModule().templates().values()]
    words = [set((prompt or "").split()) for prompt in prompts]
    assert len(set(prompts)) == 6
    assert max(len((prompt or "").split()) for prompt in prompts) <= 7
    assert all(any(mine & other for other in words if other is not mine) for mine in words)


def test_a_batch_of_the_mixture_holds_all_tasks_in_proportion() -> None:
    data = StringTasksDataModule(num_train=100)
    data.setup("fit")
    counts: Counter[str] = Counter()
    for _, targets in data.train_dataloader():
        assert len(targets) >= 4
        counts.update({task: int((target != -100).any(dim=1).sum()) for task, target in targets.items()})
    assert sum(counts.values()) == 64 * (600 // 64)
    assert max(counts.values()) < 2 * min(counts.values())


def test_errors_of_string_tasks() -> None:
    with pytest.raises(ValueError, match=r"tasks must be of copy, .*, got \['add'\]"):
        StringTasksDataModule(tasks=["add"])
    with pytest.raises(ValueError, match="num_train must name the tasks"):
        StringTasksDataModule(num_train={"copy": 3})
    with pytest.raises(ValueError, match="length must be at least 2, got 1"):
        StringTasksDataModule(length=1)
    with pytest.raises(ValueError, match="num_val must be at least 1, got 0"):
        StringTasksDataModule(num_val=0)


@pytest.mark.parametrize("model", ["causal", "seq2seq"])
def test_files_without_answers_are_read_for_prediction(model: Any, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"Input": "asthma"}\n{"Input": "gout again"}\n')
    data = InstructionMixtureDataModule(
        {"a": TaskFiles(test=str(tmp_path / "a.jsonl"))},
        mode="none",
        model=model,
        tokenizer=tokenizer(),
        decoder_start="bos",
        cache=False,
        num_workers=0,
    )
    data.setup("predict")
    ((inputs, targets),) = list(data.predict_dataloader())
    assert (targets["a"] == -100).all()
    if model == "causal":
        assert inputs["prompt_length"].tolist() == [2, 3]
        assert targets["a"].shape == inputs["input_ids"].shape
    else:
        assert inputs["decoder_input_ids"].tolist() == [[1], [1]]
