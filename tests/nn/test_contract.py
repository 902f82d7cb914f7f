"""What every encoder and every head does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tests.nn.cases import ENCODERS, HEADS, EncoderCase, HeadCase, features

encoders = pytest.mark.parametrize("case", ENCODERS, ids=lambda c: c.id)
heads = pytest.mark.parametrize("case", HEADS, ids=lambda c: c.id)


def as_list(output: Tensor | list[Tensor]) -> list[Tensor]:
    return [output] if isinstance(output, Tensor) else list(output)


def assert_every_parameter_has_a_gradient(module: nn.Module, output: Tensor | list[Tensor]) -> None:
    if any(True for _ in module.parameters()):
        sum((o * torch.randn_like(o)).sum() for o in as_list(output)).backward()
    assert [name for name, p in module.named_parameters() if p.grad is None] == []


@encoders
@pytest.mark.parametrize("batch", [1, 2])
def test_encoder_gives_what_its_feature_spec_says(case: EncoderCase, batch: int) -> None:
    encoder = case.build().eval()
    spec = encoder.feature_spec
    with torch.no_grad():
        output = encoder(torch.randn(batch, *case.shape))
    if spec.kind == "vector":
        assert isinstance(output, Tensor)
        assert output.shape == (batch, spec.channels[0])
    else:
        assert isinstance(output, list)
        height, width = case.shape[1:]
        expected = [(batch, c, height // s, width // s) for c, s in zip(spec.channels, spec.strides, strict=True)]
        assert [tuple(o.shape) for o in output] == expected
        assert list(spec.strides) == sorted(spec.strides)


@encoders
def test_every_encoder_parameter_gets_a_gradient(case: EncoderCase) -> None:
    encoder = case.build().train()
    assert_every_parameter_has_a_gradient(encoder, encoder(torch.randn(2, *case.shape)))


@encoders
def test_encoder_eval_is_deterministic_and_survives_state_dict_and_deepcopy(case: EncoderCase) -> None:
    torch.manual_seed(0)
    encoder = case.build().eval()
    inputs = torch.randn(1, *case.shape)
    other = case.build().eval()
    other.load_state_dict(encoder.state_dict())
    with torch.no_grad():
        expected = as_list(encoder(inputs))
        for module in (encoder, other, copy.deepcopy(encoder)):
            torch.testing.assert_close(as_list(module(inputs)), expected, rtol=0, atol=0)


@heads
@pytest.mark.parametrize("batch", [1, 2])
def test_head_gives_one_prediction_per_sample_or_token_or_one_map_at_its_stride(case: HeadCase, batch: int) -> None:
    head = case.build(case.spec, 5).eval()
    output = head(features(case.spec, batch))
    one = (batch, 5, 5) if case.per_token else (batch, 5)  # five tokens
    expected = one if case.stride is None else (batch, 5, 64 // case.stride, 64 // case.stride)
    assert output.shape == expected


@heads
def test_every_head_parameter_gets_a_gradient_from_the_smallest_training_batch(case: HeadCase) -> None:
    head = case.build(case.spec, 5).train()
    output = head(features(case.spec, case.smallest_training_batch))
    assert_every_parameter_has_a_gradient(head, output)


@heads
def test_head_eval_is_deterministic_and_survives_state_dict_and_deepcopy(case: HeadCase) -> None:
    torch.manual_seed(0)
    head = case.build(case.spec, 5).eval()
    inputs = features(case.spec, 1)
    other = case.build(case.spec, 5).eval()
    other.load_state_dict(head.state_dict())
    expected = head(inputs)
    for module in (head, other, copy.deepcopy(head)):
        torch.testing.assert_close(module(inputs), expected, rtol=0, atol=0)


@heads
def test_head_leaves_its_features_as_they_are(case: HeadCase) -> None:
    head = case.build(case.spec, 5).train()
    inputs = features(case.spec, 2)
    before = [f.clone() for f in as_list(inputs)]
    head(inputs)
    torch.testing.assert_close(as_list(inputs), before, rtol=0, atol=0)


@heads
def test_head_without_outputs_raises(case: HeadCase) -> None:
    with pytest.raises(ValueError, match="out_channels must be positive, got 0"):
        case.build(case.spec, 0)
