"""The log-partition penalty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mtl.losses import CrossEntropy, LogPartitionPenalty, SquaredError, log_partition_penalty

GOLDEN = [
    case
    for case in json.loads((Path(__file__).parents[1] / "golden" / "instability.json").read_text())["cases"]
    if case["inputs"]["function"] == "z_loss"
]


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_values(case: dict[str, Any]) -> None:
    logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64)
    assert float(log_partition_penalty(logits)) == pytest.approx(case["expected"]["z_loss"], rel=case["rtol"])


def test_unlabelled_units_do_not_count() -> None:
    logits, target = torch.randn(4, 3, 2), torch.tensor([[0, -100], [1, 2], [-100, -100], [0, 0]])
    labelled = target != -100
    expected = logits.logsumexp(1)[labelled].square().mean()
    torch.testing.assert_close(log_partition_penalty(logits, labelled), expected)
    cross_entropy = CrossEntropy(3)
    total = LogPartitionPenalty(cross_entropy, 0.5)(logits, target)
    torch.testing.assert_close(total, cross_entropy(logits, target) + 0.5 * expected)


def test_nothing_labelled_gives_zero_with_a_gradient() -> None:
    logits = torch.randn(2, 3, requires_grad=True)
    loss = log_partition_penalty(logits, torch.zeros(2, dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_what_is_no_softmax_is_refused() -> None:
    with pytest.raises(ValueError, match="labelled must have the shape"):
        log_partition_penalty(torch.zeros(2, 3), torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="coefficient must not be negative, got -1"):
        LogPartitionPenalty(CrossEntropy(3), -1)
    with pytest.raises(ValueError, match="must have one unit per softmax"):
        LogPartitionPenalty(SquaredError())(torch.zeros(2, 3), torch.zeros(2, 3))
