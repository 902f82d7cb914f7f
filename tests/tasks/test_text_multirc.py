"""What is special about answers that are judged one by one and scored by question."""

from __future__ import annotations

import pytest
import torch
from sklearn.metrics import f1_score

from lightning_mtl.metrics import QuestionExactMatch
from lightning_mtl.nn import FeatureSpec, FirstTokenHead
from lightning_mtl.tasks import MultiRC


def scored(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(2, (60,), generator=generator)
    question = torch.randint(15, (60,), generator=generator)
    logits = torch.randn(60, 2, generator=generator) + 2 * torch.nn.functional.one_hot(label, 2)
    return logits, torch.stack([label, question], 1)


def test_f1a_is_the_binary_f1_of_scikit_learn_over_all_answers() -> None:
    logits, target = scored()
    task = MultiRC()
    task.update_metrics(logits, target)
    expected = f1_score(target[:, 0].numpy(), logits.argmax(1).numpy())
    assert task.metrics.compute()["f1a"].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("sizes", [[60], [1, 7, 30, 22], [20, 20, 20]], ids=str)
def test_em_asks_for_every_answer_of_a_question_wherever_it_was_evaluated(sizes: list[int]) -> None:
    logits, target = scored()
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    task = MultiRC()
    for rows in order.split(sizes):
        task.update_metrics(logits[rows], target[rows])
    right = logits.argmax(1) == target[:, 0]
    questions = [right[target[:, 1] == q].all().item() for q in target[:, 1].unique()]
    assert task.metrics.compute()["em"].item() == pytest.approx(sum(questions) / len(questions), abs=1e-6)


def test_em_tells_apart_questions_with_large_numbers() -> None:
    metric = QuestionExactMatch()
    numbers = torch.tensor([2**40, 2**40 + 1, 2**40 + 1, 0])
    scores = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    metric.update(scores, torch.stack([torch.tensor([0, 0, 1, 1]), numbers], 1))
    assert metric.compute().item() == pytest.approx(1 / 3)


def test_a_test_split_with_questions_but_without_labels_has_no_loss_and_no_score() -> None:
    task = MultiRC()
    target = torch.tensor([[-100, 3], [-100, 4]])
    assert task.loss(torch.randn(2, 2), target) == 0
    assert task.num_labelled(target) == 0
    task.update_metrics(torch.randn(2, 2), target)
    assert all(value.isnan() for value in task.metrics.compute().values())


def test_a_target_without_question_numbers_is_refused() -> None:
    task = MultiRC()
    for ask in (lambda t: task.loss(torch.zeros(3, 2), t), task.num_labelled):
        with pytest.raises(ValueError, match=r"MultiRC: target must be \(B, 2\), label and number .*, got \(3,\)"):
            ask(torch.zeros(3, dtype=torch.int64))


def test_the_default_head_reads_the_first_token() -> None:
    task = MultiRC()
    task.build_head(FeatureSpec("tokens", (8,)))
    assert isinstance(task.head, FirstTokenHead)
    assert task(torch.zeros(3, 5, 8)).shape == (3, 2)
