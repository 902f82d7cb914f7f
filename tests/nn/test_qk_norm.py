"""Normalised queries and keys in other people's attention."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl.nn import QKNormLinear, QKNormMultiheadAttention, add_qk_norm


def without_norm(attention: nn.MultiheadAttention) -> QKNormMultiheadAttention:
    layer = QKNormMultiheadAttention(attention)
    layer.q_norm, layer.k_norm = nn.Identity(), nn.Identity()
    return layer


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("layout", ["batch_first", "length_first", "unbatched", "separate"])
def test_without_its_norms_the_layer_is_the_one_it_replaces(layout: str, need_weights: bool) -> None:
    options: dict[str, Any] = {"kdim": 6, "vdim": 4} if layout == "separate" else {}
    attention = nn.MultiheadAttention(8, 2, batch_first=layout != "length_first", **options)
    query, key, value = torch.randn(3, 5, 8), torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    if layout == "separate":
        key, value = torch.randn(3, 5, 6), torch.randn(3, 5, 4)
    padding = torch.tensor([[0, 0, 0, 0, 1]] * 3).bool()
    if layout == "length_first":
        query, key, value = (tensor.transpose(0, 1) for tensor in (query, key, value))
    if layout == "unbatched":
        query, key, value, padding = query[0], key[0], value[0], padding[0]
    masks = {"key_padding_mask": padding, "attn_mask": torch.ones(5, 5).triu(1).bool()}
    expected, weights = attention(query, key, value, need_weights=need_weights, **masks)
    output, found = without_norm(attention)(query, key, value, need_weights=need_weights, **masks)
    torch.testing.assert_close(output, expected, rtol=1e-4, atol=1e-6)
    assert (found is None) == (weights is None) == (not need_weights)
    if need_weights:
        torch.testing.assert_close(found, weights, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("padded", [True, False])
def test_torch_layers_keep_their_norm_in_evaluation(padded: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    assert add_qk_norm(encoder) == ["layers.0.self_attn", "layers.1.self_attn"]
    states = torch.randn(2, 5, 8)
    padding = torch.tensor([[0, 0, 0, 0, 1]] * 2).bool() if padded else None
    outputs = []
    for training in (True, False):
        with torch.no_grad():
            outputs.append(encoder.train(training)(states, src_key_padding_mask=padding)[:, :4])
    torch.testing.assert_close(outputs[1], outputs[0])


def test_timm_attention_is_filled() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2)
    assert add_qk_norm(net, norm="rmsnorm") == ["blocks.0.attn", "blocks.1.attn"]
    assert isinstance(net.blocks[0].attn.q_norm, nn.RMSNorm)
    net(torch.randn(1, 3, 32, 32)).sum().backward()
    assert net.blocks[1].attn.k_norm.weight.grad is not None


class Separate(nn.Module):
    """Attention with projections of its own, as in transformers."""

    def __init__(self, **attributes: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj = nn.Linear(8, 8), nn.Linear(8, 4)
        self.__dict__.update(attributes)


@pytest.mark.parametrize("attributes", [{"num_heads": 2}, {"head_dim": 4}, {}], ids=["heads", "width", "argument"])
def test_separate_projections_are_normalised_per_head(attributes: dict[str, int]) -> None:
    net = nn.Sequential(Separate(**attributes))
    names = set(net.state_dict())
    assert add_qk_norm(net, head_dim=None if attributes else 4) == ["0"]
    assert isinstance(net[0].k_proj, QKNormLinear)
    assert set(net.state_dict()) == names | {"0.q_proj.norm.weight", "0.k_proj.norm.weight"}
    heads: Tensor = net[0].q_proj(torch.randn(2, 3, 8)).unflatten(-1, (2, 4))
    torch.testing.assert_close(heads.mean(-1), torch.zeros(2, 3, 2), rtol=0, atol=1e-6)
    torch.testing.assert_close(heads.std(-1, correction=0), torch.ones(2, 3, 2), rtol=0, atol=1e-3)


def test_what_cannot_be_normalised_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Linear must hold nn.MultiheadAttention, timm attention"):
        add_qk_norm(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="must hold the attention layer, not be it"):
        add_qk_norm(nn.MultiheadAttention(8, 2))
    with pytest.raises(ValueError, match=r"'0' .Separate. says neither.*pass head_dim"):
        add_qk_norm(nn.Sequential(Separate()))
    with pytest.raises(ValueError, match="must not add rows to keys and values"):
        QKNormMultiheadAttention(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    with pytest.raises(ValueError, match="the 8 outputs must be a multiple of head_dim, got 3"):
        QKNormLinear(nn.Linear(4, 8), head_dim=3)
