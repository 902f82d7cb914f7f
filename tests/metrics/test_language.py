"""Metrics of next-token prediction against plain loops, and against decoding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_mtl.metrics import SequenceExactMatch, TaskMetrics, TokenAccuracy, TokenPerplexity
from lightning_mtl.nn import CausalLanguageModel


def batch(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(5, (rows, 4), generator=generator)
    logits = torch.randn(rows, 4, 5, generator=generator) + 2 * torch.nn.functional.one_hot(target, 5)
    target[torch.rand(rows, 4, generator=generator) < 0.4] = -100
    target[0] = -100
    return logits, target


def collection() -> TaskMetrics:
    metrics = {"accuracy": TokenAccuracy(), "perplexity": TokenPerplexity(), "exact_match": SequenceExactMatch()}
    return TaskMetrics(metrics, shared=[list(metrics)])


def test_values_are_those_of_plain_loops_over_all_batches() -> None:
    metrics, right, losses, exact = collection(), [], [], []
    for seed, rows in enumerate((6, 1, 9)):
        logits, target = batch(rows, seed)
        metrics.update(logits, target)
        for row_logits, row in zip(logits.double(), target, strict=True):
            hits = [bool(z.argmax() == y) for z, y in zip(row_logits, row, strict=True) if y != -100]
            losses += [-float(z.log_softmax(0)[y]) for z, y in zip(row_logits, row, strict=True) if y != -100]
            right += hits
            exact += [all(hits)] if hits else []
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))
    assert found["perplexity"] == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)
    assert found["exact_match"] == pytest.approx(sum(exact) / len(exact))
    assert 0 < found["exact_match"] < 1


def test_without_labels_values_are_nan_and_others_stay() -> None:
    metrics = collection()
    assert all(value.isnan() for value in metrics.compute().values())
    logits, target = batch(5, 0)
    metrics.update(logits, torch.full_like(target, -100))
    assert all(value.isnan() for value in metrics.compute().values())
    metrics.update(logits, target)
    alone = collection()
    alone.update(logits, target)
    assert {k: float(v) for k, v in metrics.compute().items()} == {k: float(v) for k, v in alone.compute().items()}


def test_an_exact_match_is_one_of_greedy_decoding() -> None:
    torch.manual_seed(0)
    model = CausalLanguageModel(6, dim=8, depth=1, eos_token_id=5).eval()
    prompts = torch.randint(5, (200, 2))
    written = model.generate({"input_ids": prompts}, max_new_tokens=3)
    answers = torch.where(torch.rand(200, 1) < 0.5, written, torch.randint(5, written.shape))
    answers = answers.masked_fill((answers == 5).cumsum(1).cumsum(1) > 1, 0)  # nothing behind the end
    ended = (answers == 5).cumsum(1) - (answers == 5).long() > 0
    ids = torch.cat((prompts, answers), dim=1)
    labels = torch.cat((torch.full((200, 1), -100), answers.masked_fill(ended, -100)), dim=1)
    with torch.no_grad():
        logits = model({"input_ids": ids[:, :-1]})
    same = ((written == answers) | ended).all(dim=1)
    metric = SequenceExactMatch()
    metric.update(logits, labels)
    assert 0.3 < float(same.float().mean()) < 0.9
    assert float(metric.compute()) == pytest.approx(float(same.float().mean()))
