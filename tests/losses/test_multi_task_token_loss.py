"""Losses of a language model on mixed batches, against the values of independent code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mtl.losses import MultiTaskTokenLoss, TaskFocalLoss, TokenCrossEntropy

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "mft-losses.json").read_text())["cases"]
MODES = [case for case in GOLDEN if "mode" in case["args"]]
FOCAL = [case for case in GOLDEN if case["args"].get("fn") == "task_focal_loss"]


def given(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inputs = case["inputs"]
    logits = torch.tensor(inputs["logits"], dtype=torch.float64)
    return logits, torch.tensor(inputs["labels"]), torch.tensor(inputs["task_id"]), torch.tensor(inputs["loss_mask"])


def batch(rows: int = 5, length: int = 4, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, length, 6, generator=generator)
    labels = torch.randint(6, (rows, length), generator=generator)
    labels[torch.rand(rows, length, generator=generator) < 0.3] = -100
    labels[:, 0] = 1
    return logits, labels, torch.arange(rows) % 2


def test_golden_vectors_of_every_kind_were_found() -> None:
    assert [case["args"]["mode"] for case in MODES] == ["case1", "case2", "case3", "case4"]
    assert {case["args"]["level"] for case in FOCAL} == {"sample", "task"}


@pytest.mark.parametrize("case", MODES, ids=lambda case: case["args"]["mode"])
def test_the_four_modes_give_the_golden_values(case: dict[str, Any]) -> None:
    logits, labels, tasks, mask = given(case)
    args = case["args"]
    loss, per_task, tokens = MultiTaskTokenLoss(args["num_tasks"], args["mode"], args["task_weights"])(
        logits, labels, tasks, mask
    )
    assert loss.item() == pytest.approx(case["expected"]["loss"], rel=case["rtol"])
    if args["mode"] != "case4":
        for task, expected in case["expected"]["task_loss"].items():
            assert per_task[int(task)].item() == pytest.approx(expected, rel=case["rtol"])
    for task in range(args["num_tasks"]):
        assert tokens[task] == mask[tasks == task].sum()
        assert per_task[task].isnan() == (tokens[task] == 0)


@pytest.mark.parametrize("case", FOCAL, ids=lambda case: f"{case['args']['level']}-{case['args']['gamma']}")
def test_focal_losses_give_the_golden_values(case: dict[str, Any]) -> None:
    args = case["args"]
    loss = TaskFocalLoss(len(args["alpha"]), args["gamma"], args["alpha"], args["level"])
    assert loss(*given(case))[0].item() == pytest.approx(case["expected"]["loss"], rel=case["rtol"])


@pytest.mark.parametrize("level", ["sample", "task"])
def test_without_focus_the_focal_loss_is_the_sum_of_the_tasks_means_over_samples(level: Any) -> None:
    logits, labels, tasks = batch()
    expected = sum(
        MultiTaskTokenLoss(2, "case2")(logits[tasks == i], labels[tasks == i], tasks[tasks == i])[0] for i in (0, 1)
    )
    torch.testing.assert_close(TaskFocalLoss(2, gamma=0.0, level=level)(logits, labels, tasks)[0], expected)


def test_absent_tasks_and_samples_without_answer_do_not_enter_the_mean() -> None:
    logits, labels, _ = batch(3)
    labels[1] = -100
    tasks = torch.tensor([2, 0, 2])
    for mode in ("case1", "case2", "case3", "case4"):
        loss = MultiTaskTokenLoss(3, mode, [1.0, 1.0, 5.0])  # type: ignore[arg-type]
        found, per_task, tokens = loss(logits, labels, tasks)
        alone = loss(logits[::2], labels[::2], tasks[::2])[0]
        torch.testing.assert_close(found, alone)
        assert loss.dropped == 1
        assert tokens[:2].tolist() == [0, 0]
        assert per_task[:2].isnan().all()


@pytest.mark.parametrize(
    "loss", [MultiTaskTokenLoss(2), MultiTaskTokenLoss(2, "case2"), TaskFocalLoss(2, level="task")]
)
def test_a_batch_without_any_label_has_no_loss_and_zero_gradients(loss: torch.nn.Module) -> None:
    logits = torch.randn(2, 3, 4, requires_grad=True)
    total, _, tokens = loss(logits, torch.full((2, 3), -100), torch.tensor([0, 1]))
    total.backward()
    assert total == 0
    assert tokens.sum() == 0
    assert logits.grad is not None
    assert (logits.grad == 0).all()


def test_one_sample_and_half_precision_are_scored_in_float32() -> None:
    logits, labels, tasks = batch(1)
    for loss in (MultiTaskTokenLoss(2), TaskFocalLoss(2), TokenCrossEntropy()):
        more = () if isinstance(loss, TokenCrossEntropy) else (tasks,)
        half = loss(logits.bfloat16(), labels, *more)
        full = loss(logits.bfloat16().float(), labels, *more)
        half, full = (half, full) if isinstance(loss, TokenCrossEntropy) else (half[0], full[0])
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, full)


def test_the_focus_of_a_sample_is_that_of_the_card() -> None:
    logits, labels, tasks = batch()
    expected = TaskFocalLoss(1, gamma=1.5)(logits, labels, torch.zeros_like(tasks))[0]
    torch.testing.assert_close(TokenCrossEntropy("samples", gamma=1.5)(logits, labels), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiTaskTokenLoss(0), "MultiTaskTokenLoss: num_tasks must be at least 1, got 0"),
        (lambda: MultiTaskTokenLoss(2, "case5"), "mode must be 'case1'"),  # type: ignore[arg-type]
        (lambda: MultiTaskTokenLoss(2, task_weights=[1.0]), "task_weights must be 2 non-negative numbers"),
        (lambda: TaskFocalLoss(2, gamma=-1.0), "TaskFocalLoss: gamma must not be negative"),
        (lambda: TaskFocalLoss(2, level="token"), "level must be 'sample' or 'task'"),  # type: ignore[arg-type]
        (lambda: TokenCrossEntropy("rows"), "average must be 'tokens' or 'samples'"),  # type: ignore[arg-type]
        (lambda: TokenCrossEntropy(gamma=1.0), "gamma must be 0 with average='tokens'"),
    ],
)
def test_arguments_are_checked(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_wrong_batches_are_refused() -> None:
    logits, labels, tasks = batch()
    loss = MultiTaskTokenLoss(2)
    with pytest.raises(ValueError, match=r"MultiTaskTokenLoss: logits must be \(B, L, V\)"):
        loss(logits[0], labels, tasks)
    with pytest.raises(ValueError, match=r"task_id must be \(B,\)"):
        loss(logits, labels, tasks[:2])
    with pytest.raises(ValueError, match=r"task_id must be in 0..1, got \[0, 2"):
        loss(logits, labels, 2 * tasks)
    with pytest.raises(ValueError, match=r"labels must hold tokens 0..5 or the ignored value, got 6"):
        loss(logits, labels.masked_fill(labels == 1, 6), tasks)
