"""Writing a text in answer to a text."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.data.text import StringTasksDataModule, SymbolTokenizer
from lightning_mtl.nn import CausalLanguageModel, FeatureSpec, TransformersSeq2Seq
from lightning_mtl.nn.recorded import describe
from lightning_mtl.tasks import TextToText

T5 = {"d_model": 16, "d_ff": 32, "d_kv": 8, "num_layers": 1, "num_decoder_layers": 1, "num_heads": 2}


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **options,
    )


class Writer(nn.Module):
    """Knows the answer: writes what follows the prompt, or always the same."""

    def __init__(self, vocab_size: int, written: Tensor | None = None) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.feature_spec = FeatureSpec("tokens", (vocab_size,))
        self.scale = nn.Parameter(torch.ones(()))
        self.written = written
        self.calls: list[int] = []

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        following = inputs["input_ids"].roll(-1, dims=1)
        return nn.functional.one_hot(following, self.vocab_size).float() * self.scale

    def generate(self, inputs: dict[str, Tensor], max_new_tokens: int) -> Tensor:
        self.calls.append(max_new_tokens)
        rows = []
        for ids, start in zip(inputs["input_ids"], inputs["prompt_length"], strict=True):
            answer = ids[start:] if self.written is None else self.written
            rows.append(nn.functional.pad(answer, (0, max_new_tokens - len(answer))))
        return torch.stack(rows)


def data(**options: Any) -> StringTasksDataModule:
    settings = {"tasks": ["copy", "reverse"], "num_train": 12, "num_val": 5, "num_test": 5, "batch_size": 4}
    return StringTasksDataModule(**{**settings, **options})


def test_written_text_is_scored_as_a_string_and_rows_without_labels_are_left_out() -> None:
    task = TextToText(max_new_tokens=3, scores=["exact_match", "token_f1", "label_f1"])
    task.tokenizer = SymbolTokenizer(["x", "y"])
    tokens = torch.tensor([[4, 5, 2], [5, 2, 0], [4, 4, 4]])
    target = torch.tensor([[-100, 4, 5, 2], [4, 5, 2, -100], [-100, -100, -100, -100]])
    task.update_generated(tokens, target)
    assert task.read_generated(tokens) == ["x y", "y", "x x x"]
    values = task.metrics.compute()
    assert values["exact_match"] == 0.5
    assert values["token_f1"] == pytest.approx((1 + 2 / 3) / 2)
    assert values["label_f1"] == pytest.approx(0.5)
    task.metrics.reset()
    task.update_generated(tokens[2:], target[2:])
    assert all(value.isnan() for value in task.metrics.compute().values())


def test_teacher_forced_logits_do_not_touch_the_scores() -> None:
    task = TextToText()
    task.build_head(FeatureSpec("tokens", (5,)))
    task.update_metrics(torch.zeros(1, 2, 5), torch.tensor([[1, 2]]))
    assert task.metrics.compute()["exact_match"].isnan()
    assert task.loss(task(torch.zeros(1, 2, 5)), torch.tensor([[-100, 2]])).item() == pytest.approx(1.6094, abs=1e-4)


def test_a_model_that_knows_the_answers_scores_one_and_writes_once_for_equal_lengths(tmp_path: Path) -> None:
    module = data()
    encoder = Writer(len(module.tokenizer))
    tasks = {"copy": TextToText(8), "reverse": TextToText(8)}
    found = trainer(tmp_path).validate(MultiTaskModule(encoder, tasks), module, verbose=False)[0]
    assert found["val/copy/exact_match"] == found["val/reverse/exact_match"] == found["val/copy/token_f1"] == 1.0
    assert found["val/copy/loss"] > 0
    assert encoder.calls == [8] * 4  # 5 strings a task in batches of 4, one task a batch
    both = MultiTaskModule(Writer(len(module.tokenizer)), {"copy": TextToText(8), "reverse": TextToText(4)})
    both._generated({"input_ids": torch.ones(1, 3, dtype=torch.long), "prompt_length": torch.tensor([1])}, both.tasks)
    assert both.encoder.calls == [8, 4]  # type: ignore[union-attr]


def test_a_wrong_writer_scores_by_what_it_wrote(tmp_path: Path) -> None:
    module = data(tasks=["copy"])
    module.setup("validate")
    digits = module.tokenizer.encode(module.rows("copy", "val").texts[0][0], add_special_tokens=False)
    encoder = Writer(len(module.tokenizer), torch.tensor([*digits, 2]))
    found = trainer(tmp_path).validate(MultiTaskModule(encoder, {"copy": TextToText(8)}), module, verbose=False)[0]
    assert found["val/copy/exact_match"] == pytest.approx(1 / 5)


def test_predictions_are_texts(tmp_path: Path) -> None:
    module = data(tasks=["reverse"])
    model = MultiTaskModule(Writer(len(module.tokenizer)), {"reverse": TextToText(8)})
    batches = trainer(tmp_path).predict(model, module)
    assert batches is not None
    texts = sorted(text for batch in batches for text in batch["reverse"])
    assert texts == sorted(module.rows("reverse", "predict").targets)


@pytest.mark.parametrize("kind", ["causal", "seq2seq"])
def test_a_small_model_learns_to_write_and_its_checkpoint_reads_again(kind: str, tmp_path: Path) -> None:
    pl.seed_everything(0, verbose=False)
    module = data(tasks=["copy"], length=2, num_train=80, num_val=20, batch_size=40, model=kind, mode="none")
    size = len(module.tokenizer)
    encoder: nn.Module
    if kind == "causal":
        encoder = CausalLanguageModel(size, dim=32, depth=2, num_heads=2, max_length=32, eos_token_id=2)
    else:
        config = {**T5, "vocab_size": size, "eos_token_id": 2}
        encoder = TransformersSeq2Seq("t5", config=config, decoder_start_token_id=0)
    optimizer = functools.partial(torch.optim.AdamW, lr=1e-2)
    model = MultiTaskModule(encoder, {"copy": TextToText(4, ["exact_match"])}, optimizer=optimizer)
    runner = trainer(tmp_path, max_steps=60, max_epochs=-1, limit_val_batches=0)
    before = trainer(tmp_path).validate(model, module, verbose=False)[0]
    runner.fit(model, module)
    after = trainer(tmp_path).validate(model, module, verbose=False)[0]
    assert after["val/copy/loss"] < before["val/copy/loss"] / 2
    runner.save_checkpoint(tmp_path / "last.ckpt")
    loaded = MultiTaskModule.load_from_checkpoint(tmp_path / "last.ckpt", weights_only=True)
    again = trainer(tmp_path).validate(loaded, module, verbose=False)[0]
    assert again == after


def test_the_tokenizer_comes_from_a_folder_or_from_the_data_module(tmp_path: Path) -> None:
    SymbolTokenizer(["a"]).save_pretrained(tmp_path)
    task = TextToText(tokenizer=str(tmp_path))
    task.attach(data())
    assert task.read_generated(torch.tensor([[4, 2, 0]])) == ["a"]
    assert describe(task)["init_args"] == {"tokenizer": str(tmp_path)}
    task = TextToText()
    task.attach(None)
    with pytest.raises(ValueError, match="TextToText: a tokenizer must be there to read what was written; pass"):
        task.read_generated(torch.zeros(1, 1))
    with pytest.raises(FileNotFoundError, match=r"TextToText: tokenizer: '.*none' is not a folder"):
        TextToText(tokenizer=str(tmp_path / "none"))


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1 or None, got 0"):
        TextToText(0)
    with pytest.raises(ValueError, match=r"scores must be of \['exact_match', .*\], got \['bleu'\]"):
        TextToText(scores=["bleu"])  # type: ignore[list-item]
    silent = nn.Linear(2, 2)
    silent.feature_spec = FeatureSpec("tokens", (2,))  # type: ignore[assignment]
    module = MultiTaskModule(silent, {"copy": TextToText(8)})
    with pytest.raises(TypeError, match=r"the tasks \['copy'\] have max_new_tokens, but Linear has no generate"):
        module._generated({}, ["copy"])
    assert (
        MultiTaskModule(nn.Sequential(silent), {"copy": TextToText(None, head=nn.Identity())})._generated({}, ["copy"])
        == {}
    )
