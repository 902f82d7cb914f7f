"""The losses of classes, entries and ranks against their equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from lightning_mtl.losses import CORAL, CORN, BinaryCrossEntropy, CrossEntropy


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_cross_entropy_without_weights_is_that_of_torch() -> None:
    logits, target = torch.randn(6, 4, 3), torch.randint(4, (6, 3))
    target[0] = -100
    ours = CrossEntropy(4, label_smoothing=0.2)(logits, target)
    torch.testing.assert_close(ours, F.cross_entropy(logits, target, label_smoothing=0.2))


def test_weighted_cross_entropy_is_divided_by_the_number_of_labels() -> None:
    logits, target, weights = torch.randn(5, 2), torch.tensor([0, 1, 1, -100, 0]), [1.0, 3.0]
    expected = sum(weights[y] * -logits[i].log_softmax(0)[y] for i, y in enumerate(target) if y >= 0) / 4
    torch.testing.assert_close(CrossEntropy(2, class_weights=weights)(logits, target), expected)


def test_cross_entropy_reads_small_integers() -> None:
    logits, target = torch.randn(2, 3, 4), torch.tensor([[0, 1, 2, 255], [0, 0, 255, 1]])
    loss = CrossEntropy(3, 255)
    assert loss(logits, target.to(torch.uint8)) == loss(logits, target)


def test_cross_entropy_refuses_floats_as_classes() -> None:
    with pytest.raises(ValueError, match=r"integers, got torch.float32; convert it with .long\(\)"):
        CrossEntropy(3)(torch.zeros(2, 3), torch.zeros(2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2, got 1"),
        ({"num_classes": 3, "ignore_index": 2}, r"ignore_index must be outside 0\.\.2, got 2"),
        ({"num_classes": 3, "label_smoothing": 1.0}, r"label_smoothing must be in \[0, 1\), got 1.0"),
        ({"num_classes": 3, "class_weights": [1.0]}, r"class_weights must be 3 non-negative numbers, got \[1.0\]"),
    ],
)
def test_cross_entropy_refuses_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossEntropy(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_binary_cross_entropy_is_that_of_torch(dtype: torch.dtype) -> None:
    logits, target = torch.randn(5, 2), torch.tensor([[1, 0], [0, 0], [1, 1], [0, 1], [-100, 1]], dtype=dtype)
    known = target >= 0
    expected = F.binary_cross_entropy_with_logits(logits[known], target[known].float(), pos_weight=torch.tensor(2.5))
    torch.testing.assert_close(BinaryCrossEntropy(pos_weight=2.5)(logits, target), expected)


def test_binary_cross_entropy_reads_booleans() -> None:
    logits, target = torch.randn(4), torch.tensor([True, False, False, True])
    torch.testing.assert_close(
        BinaryCrossEntropy()(logits, target), F.binary_cross_entropy_with_logits(logits, target.float())
    )


def test_coral_is_its_equation_4() -> None:
    logits, target = torch.randn(3, 4).double(), [0, 2, 4]
    total = 0.0
    for z, y in zip(logits.tolist(), target, strict=True):
        for k in range(4):
            total -= log_sigmoid(z[k]) if y > k else log_sigmoid(z[k]) - z[k]
    assert CORAL(5)(logits, torch.tensor(target)).item() == pytest.approx(total / 3)


def test_corn_asks_a_question_only_where_the_one_before_was_answered_yes() -> None:
    logits, target = torch.randn(5, 3).double(), [0, 1, 2, 3, -100]
    total, asked = 0.0, 0
    for k in range(3):
        for z, y in zip(logits.tolist(), target, strict=True):
            if y >= 0 and y > k - 1:
                asked += 1
                total -= log_sigmoid(z[k]) if y > k else log_sigmoid(z[k]) - z[k]
    loss = CORN(4)
    assert loss(logits, torch.tensor(target)).item() == pytest.approx(total / asked)
    assert loss.labelled(torch.tensor(target)).sum() == asked == 1 + 2 + 3 + 3


def test_coral_at_its_optimum_has_falling_thresholds() -> None:
    # Theorem 1: with one score for all questions, the biases that minimise the loss do not increase.
    torch.manual_seed(1)
    target = torch.randint(5, (40,))
    score = torch.randn(40, 1)
    biases = torch.zeros(4, requires_grad=True)
    optimizer = torch.optim.LBFGS([biases], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        value = CORAL(5)(score + biases, target)
        value.backward()
        return value

    optimizer.step(closure)
    assert (biases.diff() <= 0).all()
