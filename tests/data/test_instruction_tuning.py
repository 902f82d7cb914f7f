"""Conversations as rows of tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import EqualWeighting
from lightning_mtl.data.errors import DataFileError, DatasetNotFoundError, EmptySplitError
from lightning_mtl.data.samplers import FixedRatios
from lightning_mtl.data.text import InstructionDataModule, SymbolTokenizer
from lightning_mtl.data.text.chat import EncodedSample, Turn, encode_turns, pack_samples
from lightning_mtl.nn import CausalLanguageModel
from lightning_mtl.tasks import LanguageModeling
from tests.toys import make_trainer

MARKERS = {role: role for role in ("system", "human", "bot")}
WORDS = [*MARKERS, *"abcdefgh"]
TOKENIZER = SymbolTokenizer(WORDS)
SYSTEM, HUMAN, BOT, A, B, C = 4, 5, 6, 7, 8, 9
END = SymbolTokenizer.eos_token_id


def write(root: Path, tasks: dict[str, list[Any]]) -> Path:
    for task, rows in tasks.items():
        (root / task).mkdir(parents=True)
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (root / task / "part.jsonl").write_text("\n".join(lines) + "\n")
    return root


def pair(prompt: str, answer: str) -> dict[str, str]:
    return {"prompt": prompt, "answer": answer}


def two_tasks(root: Path) -> Path:
    long = [pair("a b", "c d e f") for _ in range(12)]
    short = [pair("a", "b") for _ in range(8)]
    return write(root, {"long": long, "short": short})


def make(root: Path, **options: Any) -> InstructionDataModule:
    defaults: dict[str, Any] = {"tokenizer": TOKENIZER, "markers": MARKERS, "seq_length": 16, "val_fraction": 0.25}
    return InstructionDataModule(str(root), **(defaults | {"num_workers": 0} | options))


def sample(length: int, start: int = 10) -> EncodedSample:
    trained = np.ones(length, dtype=bool)
    trained[0] = False
    return EncodedSample(np.arange(start, start + length), trained)


def test_every_round_of_the_bot_is_trained_with_its_end_token() -> None:
    turns = [Turn("system", "a"), Turn("human", "b"), Turn("bot", "c a"), Turn("human", "a"), Turn("bot", "b")]
    found = encode_turns(turns, TOKENIZER, END, markers=MARKERS)
    expected = [SYSTEM, A, HUMAN, B, BOT, C, A, END, HUMAN, A, BOT, B, END]
    assert found.ids.tolist() == expected
    assert found.trained.astype(int).tolist() == [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 1, 1]


def test_the_format_is_that_of_the_reference_character_by_character() -> None:
    tokenizer = SymbolTokenizer(sorted(set("<s>systemhumanbot\nHiOk ")), "character")
    found = encode_turns([Turn("system", "s"), Turn("human", "Hi"), Turn("bot", "Ok")], tokenizer, END)
    assert tokenizer.decode(found.ids[:-1]) == "<s>system\ns\n<s>human\nHi\n<s>bot\nOk"
    assert found.ids[-1] == END
    assert tokenizer.decode(found.ids[found.trained], skip_special_tokens=True) == "Ok"


def test_pretraining_trains_on_everything_but_the_first_token() -> None:
    found = encode_turns([Turn("human", "a"), Turn("bot", "b")], TOKENIZER, END, "pretrain", MARKERS)
    assert found.trained.tolist() == [False] + [True] * 4
    plain = encode_turns([Turn("", "a b")], TOKENIZER, END, "pretrain")
    assert plain.ids.tolist() == [A, B, END]


def test_packing_fills_a_row_with_whole_samples_until_the_next_does_not_fit() -> None:
    rows = pack_samples([sample(4), sample(4, 20), sample(3, 30), sample(9, 40)], length=8, packing="pack")
    assert [row.input_ids.tolist() for row in rows] == [
        [10, 11, 12, 13, 20, 21, 22],
        [30, 31],
        [40, 41, 42, 43, 44, 45, 46, 47],
    ]
    assert rows[0].labels.tolist() == [11, 12, 13, -100, 21, 22, 23]
    assert rows[0].segment_ids.tolist() == [1, 1, 1, 1, 2, 2, 2]
    assert rows[0].position_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_a_stream_is_cut_every_row_and_every_label_occurs_once() -> None:
    samples = [sample(5), sample(7, 20), sample(2, 30)]
    rows = pack_samples(samples, length=4, packing="concat")
    assert [row.input_ids.tolist() for row in rows] == [[10, 11, 12, 13], [14, 20, 21, 22], [23, 24, 25, 26], [30]]
    labels = np.concatenate([row.labels for row in rows])
    assert labels[labels != -100].tolist() == [11, 12, 13, 14, 21, 22, 23, 24, 25, 26, 31]
    assert rows[1].segment_ids.tolist() == [1, 2, 2, 2]
    assert rows[1].position_ids.tolist() == [0, 0, 1, 2]


def test_a_batch_is_cut_behind_its_last_trained_position(tmp_path: Path) -> None:
    tail = {"chat_rounds": [*turns(("human", "a"), ("bot", "b")), {"role": "human", "content": "a b c d"}]}
    data = make(write(tmp_path / "x", {"only": [tail] * 4}), batch_size=2)
    data.setup("fit")
    inputs, targets = next(iter(data.train_dataloader()))
    assert inputs["input_ids"].tolist() == [[HUMAN, A, BOT, B]] * 2
    assert targets["only"].tolist() == [[-100, -100, B, END]] * 2
    assert set(inputs) == {"input_ids", "attention_mask"}
    whole = make(tmp_path / "x", batch_size=2, dynamic_padding=False)
    whole.setup("fit")
    inputs, targets = next(iter(whole.train_dataloader()))
    assert inputs["input_ids"].shape == targets["only"].shape == (2, 16)
    assert inputs["attention_mask"].sum(1).tolist() == [9, 9]
    assert (inputs["input_ids"][:, 9:] == 0).all()


def turns(*given: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in given]


@pytest.mark.parametrize("packing", ["padding", "pack", "concat"])
def test_counts_are_those_of_the_rows_and_tasks_share_a_batch(tmp_path: Path, packing: Any) -> None:
    data = make(two_tasks(tmp_path / "x"), packing=packing, batch_size=4, drop_last=False)
    data.setup("fit")
    counts = data.token_counts["train"]
    assert (counts["long"].samples, counts["short"].samples) == (9, 6)
    assert (counts["long"].trained, counts["short"].trained) == (9 * 5, 6 * 2)
    seen = dict.fromkeys(("long", "short"), 0)
    tokens = 0
    for inputs, targets in data.train_dataloader():
        tokens += int(inputs["attention_mask"].sum())
        labelled = torch.stack([(target != -100).any(1) for target in targets.values()])
        assert (labelled.sum(0) == 1).all()  # every row is of one task
        for task, target in targets.items():
            seen[task] += int((target != -100).sum())
        assert ("segment_ids" in inputs) == (packing != "padding")
        if packing != "padding":
            assert ((inputs["segment_ids"] > 0) == (inputs["attention_mask"] > 0)).all()
    assert seen == {task: count.trained for task, count in counts.items()}
    assert tokens == sum(count.tokens for count in counts.values())
    assert data.task_ratios["long"] == pytest.approx(counts["long"].rows / sum(c.rows for c in counts.values()))


def test_validation_is_disjoint_and_its_first_batch_holds_all_tasks(tmp_path: Path) -> None:
    letters = "abcdefgh"
    rows = {task: [pair(f"{x} {y}", "a") for x in letters for y in letters[:2]] for task in ("one", "two")}
    data = make(write(tmp_path / "x", rows), batch_size=2)
    data.setup("fit")
    assert set(next(iter(data.val_dataloader()))[1]) == {"one", "two"}
    prompts = [
        {tuple(row.input_ids.tolist()) for row in data.datasets[split].rows["one"]}  # type: ignore[attr-defined]
        for split in ("train", "val")
    ]
    assert len(prompts[0]) == 12
    assert len(prompts[1]) == 4
    assert not prompts[0] & prompts[1]


def test_samples_without_an_answer_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [pair("a " * 30, "b")] * 4 + [{"chat_rounds": turns(("human", "a"))}] * 4 + [pair("a", "b")] * 12
    data = make(write(tmp_path / "x", {"t": rows}))
    data.setup("fit")
    total = [data.token_counts[split]["t"] for split in ("train", "val")]
    assert sum(count.samples for count in total) == 12
    assert sum(count.dropped for count in total) == 8
    cut = make(write(tmp_path / "y", {"t": [pair("a", "b " * 30)] * 4}))
    cut.setup("fit")
    assert cut.token_counts["train"]["t"].truncated == 3
    nothing = make(write(tmp_path / "z", {"t": [pair("a " * 30, "b")] * 4}))
    with pytest.raises(EmptySplitError, match=r"split 'train' of task 't' must have a sample with an answer within"):
        nothing.setup("fit")


def test_tasks_can_be_drawn_by_other_ratios(tmp_path: Path) -> None:
    data = make(
        two_tasks(tmp_path / "x"), sampling=FixedRatios({"long": 0.1, "short": 0.9}), steps_per_epoch=40, batch_size=8
    )
    data.setup("fit")
    rows = dict.fromkeys(("long", "short"), 0)
    for _, targets in data.train_dataloader():
        for task, target in targets.items():
            rows[task] += int((target != -100).any(1).sum())
    assert sum(rows.values()) == 320
    assert abs(rows["long"] - 32) < 4 * (320 * 0.1 * 0.9) ** 0.5
    assert data.task_ratios == pytest.approx({"long": 0.1, "short": 0.9})


def test_a_share_of_a_tasks_rows_can_keep_its_labels(tmp_path: Path) -> None:
    data = make(two_tasks(tmp_path / "x"), label_fraction={"long": 1 / 3}, drop_last=False)
    data.setup("fit")
    rows = dict.fromkeys(("long", "short"), 0)
    for _, targets in data.train_dataloader():
        for task, target in targets.items():
            rows[task] += int((target != -100).any(1).sum())
    assert rows == {"long": 3, "short": 6}


BAD = [
    ("{", r"must be JSON"),
    ("[1]", r"must be a JSON object"),
    ({"question": "a"}, r"must have 'chat_rounds'.*got the keys \['question'\]"),
    ({"text": "a"}, r"tokenize_mode='pretrain'"),
    ({"prompt": "a"}, r"'answer' must be a text, got None"),
    ({"chat_rounds": []}, r"chat_rounds must be a list of at least one turn"),
    ({"chat_rounds": [{"role": "user", "content": "a"}]}, r"chat_rounds\[0\] must have a role .* got 'user'"),
    ({"chat_rounds": [{"role": "bot"}]}, r"chat_rounds\[0\] must be an object"),
]


@pytest.mark.parametrize(("row", "problem"), BAD)
def test_a_bad_line_is_named(tmp_path: Path, row: Any, problem: str) -> None:
    data = make(write(tmp_path / "x", {"t": [pair("a", "b"), row]}))
    with pytest.raises(DataFileError, match=rf"t/part\.jsonl:2': .*{problem}"):
        data.setup("fit")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match="is not a folder"):
        make(tmp_path / "nowhere").setup("fit")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetNotFoundError, match=r"<task>/\*.jsonl"):
        make(tmp_path / "empty").setup("fit")
    with pytest.raises(DatasetNotFoundError, match=r"three/\*.jsonl"):
        make(two_tasks(tmp_path / "x"), tasks=["long", "three"]).setup("fit")
    one = make(write(tmp_path / "y", {"t": [pair("a", "b")]}))
    with pytest.raises(DataFileError, match="at least 2 samples, one for validation, got 1"):
        one.setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokenizer": None}, "tokenizer must be the folder of a tokenizer"),
        ({"seq_length": 0}, "seq_length must be positive"),
        ({"packing": "bins"}, "packing must be 'padding', 'pack' or 'concat'"),
        ({"tokenize_mode": "rlhf"}, "tokenize_mode must be 'sft' or 'pretrain'"),
        ({"val_fraction": 0.0}, "val_fraction must be between 0 and 1"),
        ({"markers": {"bot": "x"}}, "markers must have one entry for each of"),
        ({"steps_per_epoch": 3}, "steps_per_epoch needs sampling"),
    ],
)
def test_arguments_are_checked(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"InstructionDataModule: {message}"):
        make(tmp_path, **arguments)


def make_module(vocab_size: int = len(TOKENIZER), **options: Any) -> MultiTaskModule:
    torch.manual_seed(0)
    model = CausalLanguageModel(vocab_size, dim=16, depth=1, **options)
    tasks = {name: LanguageModeling() for name in ("long", "short")}
    return MultiTaskModule(model, tasks, EqualWeighting(normalize=True))


def test_a_model_with_a_smaller_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tokenizer must have at most the 10 tokens that the encoder"):
        make_trainer(fast_dev_run=True).fit(make_module(10), make(two_tasks(tmp_path / "x")))


def test_packed_rows_train_like_padded_ones_where_samples_do_not_see_each_other(tmp_path: Path) -> None:
    root = two_tasks(tmp_path / "x")
    losses: dict[tuple[str, str], dict[str, float]] = {}
    for packing in ("padding", "pack"):
        for attention in ("separate", "joint"):
            data = make(root, packing=packing, batch_size=100, drop_last=False)
            data.setup("fit")
            (batch,) = data.train_dataloader()
            found = make_module(packed_attention=attention).task_losses(batch)
            losses[packing, attention] = {name: float(loss.detach()) for name, loss in found.items()}
    assert losses["pack", "separate"] == pytest.approx(losses["padding", "separate"], rel=1e-5)
    assert losses["padding", "joint"] == pytest.approx(losses["padding", "separate"], rel=1e-5)
    assert losses["pack", "joint"] != pytest.approx(losses["padding", "separate"], rel=1e-3)


def test_a_run_learns_from_files(tmp_path: Path) -> None:
    data = make(two_tasks(tmp_path / "x"), packing="pack", batch_size=2)
    module = make_module()
    trainer = make_trainer(max_epochs=12)
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["val/long/loss"]) < 1.0
