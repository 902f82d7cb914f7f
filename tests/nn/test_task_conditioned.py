"""Features scaled by an embedding of the question."""

from __future__ import annotations

import copy

import pytest
import torch

from lightning_mtl.nn import MLPEncoder, TaskConditionedEncoder, TimmEncoder


def batch(size: int = 6) -> dict[str, torch.Tensor]:
    return {"image": torch.randn(size, 5), "task": torch.arange(size) % 3}


def test_features_are_those_of_the_encoder_times_one_plus_the_embedding() -> None:
    inner = MLPEncoder(5, [4])
    encoder = TaskConditionedEncoder(inner, 3)
    inputs = batch()
    with torch.no_grad():
        features, plain = encoder(inputs), inner(inputs["image"])
        for row in range(6):
            expected = plain[row] * (1 + encoder.embedding.weight[row % 3])
            torch.testing.assert_close(features[row], expected)
    assert encoder.feature_spec == inner.feature_spec


def test_every_parameter_gets_a_gradient_and_questions_that_are_not_asked_none() -> None:
    encoder = TaskConditionedEncoder(MLPEncoder(5, [4]), 4)
    encoder(batch()).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    assert encoder.embedding.weight.grad is not None
    assert encoder.embedding.weight.grad[3].eq(0).all()


def test_weights_survive_state_dict_and_deepcopy() -> None:
    encoder, other = (TaskConditionedEncoder(MLPEncoder(5, [4]), 3) for _ in range(2))
    other.load_state_dict(encoder.state_dict())
    inputs = batch()
    assert other(inputs).equal(encoder(inputs))
    assert copy.deepcopy(encoder)(inputs).equal(encoder(inputs))


def test_wrong_arguments_and_batches_say_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="TimmEncoder must give pooled features"):
        TaskConditionedEncoder(TimmEncoder("resnet18", "maps"), 3)
    with pytest.raises(ValueError, match=r"num_tasks must be positive and init_std not negative, got 0 and 1\.0"):
        TaskConditionedEncoder(MLPEncoder(5, [4]), 0)
    with pytest.raises(ValueError, match=r"inputs must hold \['task'\], got \['image'\]"):
        TaskConditionedEncoder(MLPEncoder(5, [4]), 3)({"image": torch.zeros(1, 5)})
