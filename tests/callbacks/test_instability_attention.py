"""What the monitor sees of attention and output softmaxes, without changing a digit."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.callbacks.instability.attention import attention_statistics, log_partition, score_statistics
from lightning_mtl.callbacks.instability.probe import ForwardProbe
from lightning_mtl.nn import TinyDecoder, add_qk_norm

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "instability.json").read_text())["cases"]
GOLDEN_ATTENTION = [case for case in GOLDEN if case["inputs"]["function"] == "attention_stats"]


class Root(nn.Module):
    """Stands for a LightningModule."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


def watch(net: nn.Module, call: Callable[[nn.Module], Any], **options: Any) -> tuple[ForwardProbe, Any]:
    """Run a network under the probe and return what was seen and the output."""
    defaults: dict[str, Any] = {
        "activations": True,
        "attention": [],
        "logits": "auto",
        "max_queries": None,
        "keep_inputs": False,
    }
    probe = ForwardProbe(Root(net), {}, **(defaults | options))
    probe.start(full=True)
    try:
        return probe, call(net)
    finally:
        probe.stop()


def largest(probe: ForwardProbe) -> dict[str, float]:
    return {name: max(float(s.max_logit) for s in calls) for name, calls in probe.attentions.items()}


# ---------------------------------------------------------------------- numbers
@pytest.mark.parametrize("case", GOLDEN_ATTENTION, ids=range(len(GOLDEN_ATTENTION)))
def test_statistics_of_given_queries_and_keys(case: dict[str, Any]) -> None:
    query, key = (torch.tensor(case["inputs"][name], dtype=torch.float64) for name in "qk")
    expected = case["expected"]
    found = attention_statistics(query, key)
    assert float(found.max_logit) == pytest.approx(expected["max_abs_logit"], rel=case["rtol"])
    assert float(found.mean_entropy) == pytest.approx(expected["mean_entropy"], rel=case["rtol"])
    norm = nn.LayerNorm(query.shape[-1], eps=case["args"]["layernorm_eps"], bias=False, dtype=torch.float64)
    bounded = float(attention_statistics(norm(query), norm(key)).max_logit)
    assert bounded == pytest.approx(expected["max_abs_logit_qk_layernorm"], rel=case["rtol"])
    assert bounded <= expected["bound_qk_layernorm"] == pytest.approx(math.sqrt(query.shape[-1]))


def naive(query: Tensor, key: Tensor, visible: Tensor, bias: Tensor, scale: float) -> tuple[float, float]:
    """Go through every query and key one by one."""
    logits, entropies = [0.0], []
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            for i in range(query.shape[2]):
                keys = [j for j in range(key.shape[2]) if visible[b, h, i, j]]
                if not keys:
                    continue
                group = h * key.shape[1] // query.shape[1]
                row = [float(query[b, h, i] @ key[b, group, j]) * scale + float(bias[b, h, i, j]) for j in keys]
                logits += [abs(value) for value in row]
                weights = torch.tensor(row, dtype=torch.float64).softmax(0)
                entropies.append(float(-(weights * weights.log()).sum()))
    return max(logits), sum(entropies) / len(entropies)


@pytest.mark.parametrize("variant", ["plain", "causal", "bool_mask", "float_mask", "grouped", "scaled", "one_mask_row"])
def test_fused_attention_is_examined_as_by_a_naive_loop(variant: str) -> None:
    query, key = torch.randn(2, 4, 5, 6).double() * 3, torch.randn(2, 4, 5, 6).double()
    visible, bias, scale = torch.ones(2, 4, 5, 5).bool(), torch.zeros(2, 4, 5, 5), 6**-0.5
    arguments: dict[str, Any] = {}
    if variant == "causal":
        arguments["is_causal"] = True
        visible = visible.tril()
    elif variant == "bool_mask":
        visible = (torch.rand(2, 1, 5, 5) > 0.4).expand(2, 4, 5, 5)
        arguments["attn_mask"] = visible[:, :1]
    elif variant == "float_mask":
        bias = torch.randn(4, 5, 5).expand(2, 4, 5, 5)
        visible = (torch.rand(2, 4, 5, 5) > 0.4) | torch.eye(5).bool()
        arguments["attn_mask"] = torch.where(visible, bias, torch.tensor(-100.0)).double()
    elif variant == "grouped":
        key = key[:, :2]
        arguments["enable_gqa"] = True
    elif variant == "scaled":
        scale = arguments["scale"] = 2.5
    elif variant == "one_mask_row":
        visible = torch.tensor([True, True, False, True, False]).expand(2, 4, 5, 5)
        arguments["attn_mask"] = visible[:1, :1, :1]
    value = key.clone()

    class Attention(nn.Module):
        def forward(self) -> Tensor:
            return F.scaled_dot_product_attention(query, key, value, **arguments)

    probe, _ = watch(Attention(), lambda net: net())
    (found,) = probe.attentions["net"]
    expected = naive(query, key, visible, bias, scale)
    assert (float(found.max_logit), float(found.mean_entropy)) == pytest.approx(expected, rel=1e-9)


def test_statistics_do_not_depend_on_how_the_batch_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(3, 2, 7, 4), torch.randn(3, 2, 7, 4)
    mask = torch.rand(3, 1, 7, 7) > 0.3
    whole = attention_statistics(query, key, mask)
    monkeypatch.setattr("lightning_mtl.callbacks.instability.attention._CHUNK", 7 * 7)
    cut = attention_statistics(query, key, mask)
    torch.testing.assert_close(cut.max_logit, whole.max_logit, rtol=0, atol=0)
    torch.testing.assert_close((cut.entropy, cut.queries), (whole.entropy, whole.queries))


def test_a_limit_examines_evenly_spaced_queries() -> None:
    query, key = torch.randn(1, 1, 101, 4), torch.randn(1, 1, 101, 4)
    limited = attention_statistics(query, key, is_causal=True, max_queries=3)
    chosen = (query[..., [0, 50, 100], :] @ key.transpose(-1, -2) / 2)[0, 0]
    chosen[0, 1:], chosen[1, 51:] = 0, 0
    assert int(limited.queries) == 3
    assert float(limited.max_logit) == pytest.approx(float(chosen.abs().max()), rel=1e-6)


def test_half_precision_is_examined_in_single_precision() -> None:
    query = torch.full((1, 1, 1, 4), 300.0, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention_statistics(query, query)
    assert found.max_logit.dtype == torch.float32
    assert float(found.max_logit) == pytest.approx(180_000)


def test_scores_at_minus_infinity_or_the_smallest_number_are_masked() -> None:
    scores = torch.tensor([[[1.0, 2.0, -torch.inf], [3.0, torch.finfo(torch.float32).min, -1e4]]])
    assert float(score_statistics(scores).max_logit) == 3.0


def test_log_partition_of_given_logits() -> None:
    for case in (case for case in GOLDEN if case["inputs"]["function"] == "z_loss"):
        logits = torch.tensor(case["inputs"]["logits"], dtype=torch.float64)
        total, count = log_partition(logits, 1)
        expected = case["expected"]["log_z"]
        assert float(total / count) == pytest.approx(sum(expected) / len(expected), rel=case["rtol"])


# ---------------------------------------------------------------------- models
class EagerAttention(nn.Module):
    """Attention as transformers write it without a fused kernel."""

    def __init__(self, style: str) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(8, 8) for _ in range(3))
        self.style = style

    def forward(self, states: Tensor) -> Tensor:
        query, key, value = (
            p(states).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        hidden = torch.ones(states.shape[1], states.shape[1]).triu(1).bool()
        if self.style == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", query, key) * 0.5
            weights = torch.softmax(scores.masked_fill(hidden, -1e9), dim=-1)
            return torch.einsum("bhij,bhjd->bhid", weights, value).transpose(1, 2).flatten(2)
        if self.style == "bmm":
            query, key, value = (x.flatten(0, 1) for x in (query, key, value))
            scores = torch.baddbmm(torch.zeros(5, 5).masked_fill(hidden, -100.0), query, key.transpose(1, 2), alpha=0.5)
            return torch.bmm(F.dropout(scores.softmax(-1), 0.0), value).transpose(0, 1).reshape(states.shape)
        scores = torch.matmul(query, key.transpose(2, 3)) / 2
        if self.style == "where":
            scores = torch.where(hidden, torch.finfo(scores.dtype).min, scores)
        elif self.style == "minus_100":
            scores = (scores.flatten(0, 1) + torch.zeros(5, 5).masked_fill(hidden, -100.0)).unflatten(0, (-1, 2))
        else:
            scores += torch.zeros(1, 1, 5, 5).masked_fill(hidden, -1e4)
        weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
        return torch.matmul(F.dropout(weights, 0.1, self.training), value).transpose(1, 2).flatten(2)

    def expected(self, states: Tensor) -> float:
        query, key = (p(states).unflatten(-1, (2, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj))
        return float((query @ key.transpose(-1, -2) / 2).tril().detach().abs().max())


@pytest.mark.parametrize("style", ["einsum", "bmm", "where", "minus_100", "added_in_place"])
def test_eager_attention_is_seen_through_its_masks(style: str) -> None:
    attention, states = EagerAttention(style), torch.randn(3, 5, 8) * 4
    probe, _ = watch(attention, lambda net: net(states))
    assert largest(probe) == {"net": pytest.approx(attention.expected(states), rel=1e-5)}


def test_softmaxes_that_are_no_attention_are_not_seen() -> None:
    class Router(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.randn(8, 4))
            self.experts = nn.Parameter(torch.randn(4, 8, 8))

        def forward(self, states: Tensor) -> Tensor:
            gates = torch.softmax(states @ self.gate, dim=-1)
            return torch.einsum("ble,bled->bld", gates, torch.einsum("bld,edf->blef", states, self.experts))

    probe, _ = watch(Router(), lambda net: net(torch.randn(2, 5, 8)))
    assert probe.attentions == {}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timm_attention_is_seen_and_outputs_keep_every_digit(name: str, fused: bool) -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model(name, img_size=32, depth=2) if "vit" in name else timm.create_model(name, img_size=64)
    for module in net.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = fused
    images = torch.randn(2, 3, 32, 32) if "vit" in name else torch.randn(1, 3, 64, 64)
    torch.manual_seed(1)
    expected = net(images)
    torch.manual_seed(1)
    probe, output = watch(net, lambda net: net(images))
    assert torch.equal(output, expected)
    attentions = {f"net.{name}" for name, module in net.named_modules() if name.endswith(".attn")}
    assert set(probe.attentions) == attentions
    assert max(largest(probe).values()) < 10  # the masks of shifted windows, -100, are none of the logits


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_multihead_attention_is_seen_on_every_path(training: bool, need_weights: bool, frozen: bool) -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).train(training).requires_grad_(not frozen)
    states = torch.randn(3, 5, 8) * 3
    padding = torch.tensor([[0, 0, 0, 1, 1]] * 3).bool()

    def call(net: nn.Module) -> Tensor:
        output: Tensor = net(states, states, states, key_padding_mask=padding, need_weights=need_weights)[0]
        return output

    expected = call(attention)
    probe, output = watch(attention, call)
    query, key = F.linear(states, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)[:2]
    query, key = (x.unflatten(-1, (2, 4)).transpose(1, 2) for x in (query, key))
    logits = (query @ key.transpose(-1, -2) / 2)[..., :3]
    assert torch.equal(output, expected)
    assert largest(probe) == {"net": pytest.approx(float(logits.detach().abs().max()), rel=1e-5)}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_torch_transformer_layers_are_seen_without_leaving_their_fused_path(
    training: bool, padded: bool, norm_first: bool
) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=not norm_first).train(training)
    states = torch.randn(2, 5, 8) * 3
    padding = torch.tensor([[0, 0, 0, 0, 1], [0, 0, 0, 1, 1]]).bool() if padded else None

    def call(net: nn.Module) -> Tensor:
        with torch.no_grad():
            output: Tensor = net(states, src_key_padding_mask=padding)
        return output

    expected = call(encoder)
    probe, output = watch(encoder, call)
    assert torch.equal(output, expected)
    encoder.train()  # the ordinary path
    nested = padded and not training and not norm_first
    parts = [(states[:1, :4], None), (states[1:, :3], None)] if nested else [(states, padding)]
    slow: dict[str, float] = {}
    for part, mask in parts:  # nested tensors have no padded queries
        for name, value in largest(
            watch(encoder, lambda net, p=part, m=mask: net(p, src_key_padding_mask=m))[0]
        ).items():
            slow[name] = max(value, slow.get(name, 0.0))
    assert largest(probe) == pytest.approx(slow, rel=1e-4)


def test_replaced_functions_are_put_back() -> None:
    before = (F.scaled_dot_product_attention, F.softmax, torch._native_multi_head_attention)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    watch(attention, lambda net: net(*(torch.randn(1, 3, 8),) * 3))
    assert (F.scaled_dot_product_attention, F.softmax, torch._native_multi_head_attention) == before
    assert "forward" not in attention.__dict__
    assert torch.overrides._get_current_function_mode_stack() == []
    with pytest.raises(RuntimeError, match="broken"):
        watch(attention, _raise)
    assert torch.overrides._get_current_function_mode_stack() == []
    assert not attention._forward_hooks
    assert not attention._forward_pre_hooks


def _raise(net: nn.Module) -> None:
    raise RuntimeError("broken")


def test_only_named_attention_is_kept() -> None:
    net = TinyDecoder(vocab_size=8, depth=2)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    probe, _ = watch(net, lambda net: net(tokens), attention=["*.0.attn"])
    assert list(probe.attentions) == ["net.blocks.0.attn"]


# ---------------------------------------------------------------------- compiled models
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("how", ["wrapped", "in_place", "inside"])
def test_compiled_networks_are_seen_without_touching_their_graph(how: str) -> None:
    torch.compiler.reset()
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(1)
        forward: Callable[..., Any] = graph.forward
        return forward

    net: Any = TinyDecoder(vocab_size=8, depth=2, dropout=0.1)
    plain_probe, _ = watch(net, lambda net: _seeded(net))
    if how == "wrapped":
        net = torch.compile(net, backend=backend)
    elif how == "in_place":
        net.compile(backend=backend)
    else:
        net.blocks[0] = torch.compile(net.blocks[0], backend=backend)
    expected = _seeded(net)
    compiled = len(graphs)
    probe, output = watch(net, lambda net: _seeded(net))
    assert torch.equal(output, expected)
    assert torch.equal(_seeded(net), expected)
    assert len(graphs) == compiled >= 1
    assert largest(probe) == pytest.approx(largest(plain_probe), rel=1e-6)


def _seeded(net: nn.Module) -> Tensor:
    torch.manual_seed(2)
    output: Tensor = net(torch.arange(6)[None] % 8)
    torch.rand(1)
    return output


def test_a_second_run_of_a_compiled_network_leaves_buffers_and_random_numbers_alone() -> None:
    torch.compiler.reset()

    class Stateful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            return self.drop(self.norm(inputs))

    net: Any = torch.compile(Stateful(), backend="eager")
    inputs = torch.randn(8, 4)
    torch.manual_seed(0)
    watch(net, lambda net: net(inputs))
    after = torch.rand(3)
    again: Any = torch.compile(Stateful(), backend="eager")
    torch.manual_seed(0)
    again(inputs)
    assert torch.equal(torch.rand(3), after)
    torch.testing.assert_close(
        dict(net._orig_mod.named_buffers()), dict(again._orig_mod.named_buffers()), rtol=0, atol=0
    )


# ---------------------------------------------------------------------- output logits
@pytest.mark.parametrize("how", ["cross_entropy", "module", "log_softmax"])
def test_log_z_of_what_enters_the_loss(how: str) -> None:
    net = nn.Linear(4, 5)
    target = torch.tensor([0, 2, -100, 1])

    def call(net: nn.Module) -> Tensor:
        logits = net(torch.arange(16.0).view(4, 4))
        if how == "log_softmax":
            return F.nll_loss(logits.log_softmax(-1), target)
        return nn.CrossEntropyLoss()(logits, target) if how == "module" else F.cross_entropy(logits, target)

    probe, _ = watch(net, call)
    ((total, count),) = probe.log_zs["output"]
    rows = torch.tensor([True, True, how == "log_softmax", True])
    expected = net(torch.arange(16.0).view(4, 4)).logsumexp(-1)[rows]
    assert float(total / count) == pytest.approx(float(expected.detach().mean()), rel=1e-5)


def test_named_logits_are_taken_at_the_module_output() -> None:
    net = TinyDecoder(vocab_size=8, depth=1)
    tokens = torch.zeros(1, 4, dtype=torch.long)
    probe, output = watch(net, lambda net: net(tokens), logits=["net.head"])
    ((total, count),) = probe.log_zs["net.head"]
    assert float(total / count) == pytest.approx(float(output.detach().logsumexp(-1).mean()), rel=1e-5)


def test_normalised_queries_and_keys_bound_the_logits_that_are_seen() -> None:
    layer = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2, enable_nested_tensor=False)
    nn.init.normal_(layer.layers[0].self_attn.in_proj_weight, std=50)
    states = torch.randn(2, 5, 8)
    free = largest(watch(layer, lambda net: net(states))[0])
    add_qk_norm(layer)
    bound = largest(watch(layer, lambda net: net(states))[0])
    assert max(free.values()) > 100
    assert max(bound.values()) <= math.sqrt(4) * (1 + 1e-6)
