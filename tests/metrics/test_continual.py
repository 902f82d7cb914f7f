"""Numbers of the accuracy matrix."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_mtl.metrics import average_accuracy, backward_transfer, forgetting, forward_transfer

GOLDEN = [
    case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "50-fpf.json").read_text())["cases"]
    if case["inputs"]["function"] == "continual_metrics"
]


@pytest.mark.parametrize("case", GOLDEN, ids=[str(i) for i in range(len(GOLDEN))])
def test_numbers_are_the_golden_ones_and_the_matrix_is_left_alone(case: Any) -> None:
    matrix = case["inputs"]["accuracy_matrix"]
    before = json.dumps(matrix)
    for name, function in (
        ("average_accuracy", average_accuracy),
        ("forgetting", forgetting),
        ("backward_transfer", backward_transfer),
    ):
        assert function(matrix) == pytest.approx(case["expected"][name], rel=case["rtol"])
    assert json.dumps(matrix) == before


def test_full_rows_give_what_their_lower_triangle_gives() -> None:
    full = np.random.default_rng(0).random((4, 4)).tolist()
    triangle = [row[: t + 1] for t, row in enumerate(full)]
    for function in (average_accuracy, forgetting, backward_transfer):
        assert function(full) == function(triangle)


def test_forward_transfer_is_the_gain_before_a_task_is_trained() -> None:
    full = np.random.default_rng(1).random((4, 4))
    untrained = np.full(4, 0.2)
    expected = np.mean([full[i - 1, i] - untrained[i] for i in range(1, 4)])
    assert forward_transfer(full.tolist(), untrained.tolist()) == pytest.approx(expected)


def test_improvement_at_the_end_is_no_negative_forgetting() -> None:
    assert forgetting([[0.5], [0.9, 0.5]]) == 0
    assert backward_transfer([[0.5], [0.9, 0.5]]) == pytest.approx(0.4)


def test_a_single_task_has_an_accuracy_and_nothing_else() -> None:
    assert average_accuracy([[0.7]]) == 0.7
    assert math.isnan(forgetting([[0.7]]))
    assert math.isnan(backward_transfer([[0.7]]))
    assert math.isnan(forward_transfer([[0.7]], [0.1]))


@pytest.mark.parametrize(
    ("matrix", "untrained", "message"),
    [
        ([], [], "matrix must have at least one row, got none"),
        ([[0.5], [0.5]], [0, 0], "row 1 of matrix must have at least 2 accuracies, got 1"),
        ([[0.5], [0.5, 0.5]], [0, 0], "row 0 of matrix must reach task 1, got 1 accuracies; evaluate the next task"),
        ([[0.5, 0.1], [0.5, 0.5]], [0], "untrained must have 2 accuracies, got 1"),
    ],
)
def test_incomplete_matrix_is_refused(matrix: Any, untrained: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        forward_transfer(matrix, untrained)
