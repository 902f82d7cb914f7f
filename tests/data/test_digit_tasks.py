"""Rows of digits to reverse, or to find the largest of."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_mtl.data import DigitTasksDataModule
from lightning_mtl.data.sequence.digit_tasks import MARKERS, PAD


def made(**options: Any) -> DigitTasksDataModule:
    data = DigitTasksDataModule(**({"num_train": 320, "num_val": 20} | options))
    data.setup("fit")
    return data


def test_answers_are_right_and_alone_are_trained() -> None:
    data = made(max_share=0.5)
    seen = dict.fromkeys(MARKERS, 0)
    for inputs, targets in data.train_dataloader():
        ids = inputs["input_ids"]
        assert ids.shape == (32, 13)
        assert torch.equal(ids == PAD, inputs["attention_mask"] == 0)
        for task, labels in targets.items():
            rows = (labels != -100).any(1)
            seen[task] += int(rows.sum())
            assert torch.equal(rows, ids[:, 0] == MARKERS[task])
            assert (ids[rows, 7] == MARKERS[task]).all()
            digits = ids[rows, 1:7]
            answer = digits.flip(1) if task == "reverse" else digits.amax(1, keepdim=True)
            width = answer.shape[1]
            assert torch.equal(labels[rows, 7 : 7 + width], answer)
            assert (labels[rows, :7] == -100).all()
            assert (labels[rows, 7 + width :] == -100).all()
            assert torch.equal(ids[rows, 8 : 7 + width], answer[:, :-1])
    assert sum(seen.values()) == 320
    assert abs(seen["max"] - 160) < 4 * 80**0.5


def test_every_batch_has_both_tasks_and_the_rare_one_is_rare() -> None:
    counts = [int((targets["max"] != -100).sum()) for _, targets in made(num_train=3200).train_dataloader()]
    assert min(counts) == 1
    assert 1.0 < sum(counts) / len(counts) < 1.8


def test_every_epoch_draws_new_digits_and_validation_has_its_own() -> None:
    data = made()
    loader = data.train_dataloader()
    first = next(iter(loader))[0]["input_ids"]
    loader.sampler.set_epoch(1)  # type: ignore[attr-defined]
    second = next(iter(loader))[0]["input_ids"]
    val = torch.cat([inputs["input_ids"] for inputs, _ in data.val_dataloader()])
    assert not torch.equal(first, second)
    assert torch.equal(val, torch.cat([inputs["input_ids"] for inputs, _ in made().val_dataloader()]))
    assert torch.equal(first, next(iter(made().train_dataloader()))[0]["input_ids"])
    prompts = {tuple(row[:7].tolist()) for row in val}
    assert not prompts & {tuple(row[:7].tolist()) for row in first}
    assert (val[:, 0] == MARKERS["max"]).float().mean() == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_share": 0.0}, "max_share must be between 0 and 1"),
        ({"num_digits": 0}, "num_digits must be positive"),
        ({"batch_size": 1}, "batch_size must hold both tasks"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"DigitTasksDataModule: {message}"):
        DigitTasksDataModule(**arguments)
