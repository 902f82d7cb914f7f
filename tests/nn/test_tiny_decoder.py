"""What is special to the tiny decoder."""

from __future__ import annotations

import math

import pytest
import torch

from lightning_mtl.nn import TinyDecoder
from lightning_mtl.nn.recorded import describe
from lightning_mtl.nn.tiny_decoder import rotate


def test_a_position_sees_only_itself_and_earlier_ones() -> None:
    model = TinyDecoder(vocab_size=8).eval()
    tokens = torch.randint(8, (2, 10))
    changed = tokens.clone()
    changed[:, 6] = (changed[:, 6] + 1) % 8
    difference = (model(tokens) - model(changed)).abs().amax(dim=(0, 2))
    assert torch.all(difference[:6] == 0)
    assert torch.all(difference[6:] > 0)


@pytest.mark.parametrize("positions", ["rope", "learned", "none"])
@pytest.mark.parametrize("qk_norm", ["layernorm", "rmsnorm", None])
def test_every_variant_trains_all_its_parameters(positions: str, qk_norm: str | None) -> None:
    model = TinyDecoder(8, 16, 1, 2, positions=positions, qk_norm=qk_norm, norm="rmsnorm", dropout=0.1)
    logits = model(torch.randint(8, (2, 5)))
    assert logits.shape == (2, 5, 8)
    (logits * torch.randn_like(logits)).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_rotated_products_depend_on_the_distance_alone() -> None:
    angles = torch.outer(torch.arange(20.0), torch.tensor([1.0, 0.1]))
    query, key = (rotate(torch.randn(4).expand(20, 4), angles.cos(), angles.sin()) for _ in range(2))
    products = query @ key.T
    torch.testing.assert_close(products[3, 1], products[17, 15], rtol=1e-4, atol=1e-5)


def test_weights_start_with_the_stated_spread() -> None:
    model = TinyDecoder(vocab_size=2000, dim=128, depth=1, num_heads=2)
    assert float(model.embedding.weight.detach().std()) == pytest.approx(128**-0.5, rel=0.02)
    for weight in (model.blocks[0].fc1.weight, model.blocks[0].fc2.weight, model.blocks[0].attn.qkv.weight):
        assert float(weight.detach().std()) == pytest.approx(weight.shape[1] ** -0.5, rel=0.02)


def test_a_tied_head_shares_the_embedding_and_sizes_leave_both_out() -> None:
    free, tied = TinyDecoder(8), TinyDecoder(8, tie_head=True)
    assert tied.head is not None
    assert tied.head.weight is tied.embedding.weight
    assert free.num_parameters() == tied.num_parameters() == sum(p.numel() for p in free.parameters()) - 2 * 8 * 32


def test_without_a_head_it_is_an_encoder_that_says_its_shape() -> None:
    model = TinyDecoder(8, head=False)
    assert model(torch.zeros(2, 3, dtype=torch.long)).shape == (2, 3, *model.feature_spec.channels)
    assert describe(model)["init_args"] == {"vocab_size": 8, "head": False}


def test_generation_appends_the_likeliest_or_drawn_tokens() -> None:
    model = TinyDecoder(8, max_length=6).eval()
    start = torch.randint(8, (2, 3))
    greedy = model.generate(start, 5, temperature=0)
    assert greedy.shape == (2, 8)
    assert torch.equal(greedy[:, :3], start)
    assert torch.equal(greedy[:, 3], model(start)[:, -1].argmax(-1))
    drawn = model.generate(start, 2)
    assert int(drawn.max()) < 8


def test_normalised_queries_and_keys_bound_the_logits() -> None:
    attention = TinyDecoder(8, dim=16, num_heads=2).blocks[0].attn
    torch.nn.init.normal_(attention.qkv.weight, std=100)
    qkv = attention.qkv(torch.randn(1, 5, 16)).view(1, 5, 3, 2, 8).permute(2, 0, 3, 1, 4)
    logits = attention.q_norm(qkv[0]) @ attention.k_norm(qkv[1]).transpose(-1, -2) / math.sqrt(8)
    assert float(logits.detach().abs().max()) <= math.sqrt(8) * (1 + 1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 0}, "depth must be positive, got 0"),
        ({"dim": 30, "num_heads": 4}, "dim must be a multiple of num_heads=4, got 30"),
        ({"dim": 6}, "rotary positions need an even number of channels per head, got 3"),
        ({"positions": "sine"}, "positions must be 'rope', 'learned' or 'none', got 'sine'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"head": False, "tie_head": True}, "tie_head=True needs a head"),
    ],
    ids=["depth", "dim", "rope", "positions", "dropout", "head"],
)
def test_wrong_arguments_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"TinyDecoder: {message}"):
        TinyDecoder(8, **arguments)


def test_what_cannot_be_read_or_generated_is_refused() -> None:
    with pytest.raises(ValueError, match="at most max_length=4 tokens, got 5"):
        TinyDecoder(8, max_length=4)(torch.zeros(1, 5, dtype=torch.long))
    with pytest.raises(ValueError, match="generate needs a head"):
        TinyDecoder(8, head=False).generate(torch.zeros(1, 1, dtype=torch.long), 1)
    with pytest.raises(ValueError, match="temperature must not be negative, got -1"):
        TinyDecoder(8).generate(torch.zeros(1, 1, dtype=torch.long), 1, temperature=-1)
