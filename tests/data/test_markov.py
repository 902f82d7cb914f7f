"""Markov text with copies."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_mtl.data import MarkovCopy, MarkovCopyDataModule


def test_only_successors_follow_and_copies_are_exact() -> None:
    text = MarkovCopy(50, length=6, copies=2)
    assert (text.transitions > 0).sum(1).tolist() == [4] * 32
    chain = text.tokens[:, :6]
    assert torch.all(text.transitions[chain[:, :-1], chain[:, 1:]] > 0)
    assert torch.equal(text.tokens, chain.repeat(1, 3))
    inputs, targets = text[3]
    assert torch.equal(inputs[1:], targets["next_token"][:-1])


def test_the_best_loss_is_that_of_a_model_that_knows_the_chain() -> None:
    text = MarkovCopy(20_000, length=5, copies=1)
    chain = text.tokens[:, :5]
    losses = -text.transitions[chain[:, :-1], chain[:, 1:]].log()
    assert text.entropy() == pytest.approx(float(losses.sum(1).mean()) / 9, rel=0.01)
    assert MarkovCopy(1, successors=1, length=4).entropy() == 0.0


def test_splits_share_the_chain_and_nothing_else() -> None:
    train, val = MarkovCopy(20, "train"), MarkovCopy(20, "val")
    assert torch.equal(train.transitions, val.transitions)
    assert not torch.equal(train.tokens, val.tokens)
    assert torch.equal(train.tokens, MarkovCopy(20, "train").tokens)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"successors must be in 1..vocab_size=32, got 0"):
        MarkovCopy(1, successors=0)
    with pytest.raises(ValueError, match="a sequence must have at least 2 tokens"):
        MarkovCopy(1, length=1, copies=0)
    assert math.isfinite(MarkovCopy(1, length=2, copies=0).entropy())
    assert MarkovCopyDataModule().ignore_values == {}
