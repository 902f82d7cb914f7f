"""What is special to the layers and networks that can be narrowed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_mtl.nn import (
    FeatureSpec,
    SlimmableBatchNorm2d,
    SlimmableConv2d,
    SlimmableConvHead,
    SlimmableEncoder,
    SlimmableHead,
    SlimmableLayer,
    SlimmableLinear,
    SlimmableMLP,
    SlimmableMLPHead,
    SlimmableResNet,
    make_divisible,
)
from lightning_mtl.nn.slimmable import active_channels

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "slimmable.json").read_text())["cases"]


def golden(function: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], Any]:
    case = next(case for case in GOLDEN if case["args"]["fn"] == function)
    inputs = {name: torch.tensor(value, dtype=torch.float64) for name, value in case["inputs"].items()}
    return inputs, case["args"], case["expected"]


def test_make_divisible_gives_the_golden_values() -> None:
    inputs, arguments, expected = golden("make_divisible")
    assert [make_divisible(value, arguments["divisor"]) for value in inputs["values"].tolist()] == expected


@pytest.mark.parametrize("function", ["slimmable_conv2d", "slimmable_linear"])
def test_a_sliced_layer_gives_the_golden_values(function: str) -> None:
    inputs, arguments, expected = golden(function)
    out, into = inputs["weight"].shape[:2]
    layer = SlimmableConv2d(into, out, 3, padding=1) if "conv" in function else SlimmableLinear(into, out)
    layer.double().load_state_dict({"weight": inputs["weight"], "bias": inputs["bias"]})
    layer.slim(arguments["active_in"], arguments["active_out"])
    for module in (layer, layer.export()):
        found = module(inputs["x"])
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=1e-9)


def test_active_channels_never_exceed_the_channels() -> None:
    for channels in range(1, 80):
        counts = [active_channels(channels, width) for width in (0.25, 0.5, 0.75, 1.0)]
        assert counts == sorted(counts)
        assert counts[0] >= 1
        assert counts[-1] == channels


def test_a_depthwise_convolution_stays_depthwise() -> None:
    layer = SlimmableConv2d(8, 8, 3, padding=1, groups=8)
    layer.slim(4, 4)
    plain = layer.export()
    inputs = torch.randn(2, 4, 5, 5)
    assert plain.groups == 4
    torch.testing.assert_close(plain(inputs), layer(inputs))
    with pytest.raises(ValueError, match="4 -> 8 active channels must be whole groups of the 8 groups"):
        layer.slim(4, 8)


def test_batch_norm_keeps_statistics_for_every_width_and_shares_the_scale() -> None:
    norm = SlimmableBatchNorm2d(8, [4])
    nn.init.uniform_(norm.weight)
    inputs = 3 + 2 * torch.randn(64, 4, 3, 3)
    norm.slim(4, 4)
    for _ in range(100):
        norm(inputs)
    norm.eval()
    expected = nn.functional.batch_norm(inputs, None, None, norm.weight[:4], norm.bias[:4], training=True)
    torch.testing.assert_close(norm(inputs), expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(norm.export()(inputs), norm(inputs), rtol=0, atol=1e-6)
    norm.slim(8, 8)
    assert float(norm.active_statistics().running_mean.abs().max()) == 0


@pytest.mark.parametrize(
    ("layer", "active", "message"),
    [
        (SlimmableLinear(8, 6), (9, 6), "SlimmableLinear: active_in must be from 1 to 8, got 9"),
        (SlimmableConv2d(8, 6, 3), (8, 0), "SlimmableConv2d: active_out must be from 1 to 6, got 0"),
        (SlimmableBatchNorm2d(8, [4]), (6, 6), r"one of \['4', '8'\], before and after, got 6 -> 6"),
    ],
    ids=["linear", "conv", "norm"],
)
def test_wrong_numbers_of_active_channels_raise(layer: SlimmableLayer, active: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        layer.slim(*active)


ENCODERS: dict[str, tuple[type[SlimmableEncoder], dict[str, Any], tuple[int, ...]]] = {
    "mlp": (SlimmableMLP, {"in_features": 12, "hidden": [32, 48]}, (12,)),
    "resnet": (SlimmableResNet, {"in_chans": 3, "channels": [8, 16, 16], "blocks": 2, "divisor": 4}, (3, 16, 16)),
}


def as_list(features: Any) -> list[torch.Tensor]:
    return [features] if isinstance(features, torch.Tensor) else list(features)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("width", [0.25, 0.75, 1.0, "mixed"])
def test_an_exported_encoder_is_plain_and_gives_the_same(name: str, width: float | str) -> None:
    torch.manual_seed(0)
    cls, arguments, shape = ENCODERS[name]
    encoder = cls(**arguments)
    stages = [(0.5, 1.0, 0.25)[i] for i in range(len(encoder.channels))]
    encoder.set_widths(stages if width == "mixed" else float(width))
    for _ in range(3):
        encoder(2 * torch.randn(8, *shape) + 1)
    encoder.eval()
    plain, inputs = encoder.export(), torch.randn(4, *shape)
    assert not [module for module in plain.modules() if isinstance(module, SlimmableLayer)]
    assert tuple(f.shape[1] for f in as_list(encoder(inputs))) == encoder.active_features()
    with torch.no_grad():
        torch.testing.assert_close(as_list(plain(inputs)), as_list(encoder(inputs)), rtol=0, atol=1e-6)
    size = sum(parameter.numel() for parameter in plain.parameters())
    full = sum(parameter.numel() for parameter in encoder.parameters())
    assert size == full if width == 1 else size < full


def test_the_narrow_mlp_is_the_leading_block_of_the_wide_one() -> None:
    encoder = SlimmableMLP(6, [16, 16])
    first, second = (layer for layer in encoder.body if isinstance(layer, SlimmableLinear))
    encoder.set_widths([0.5, 0.5])
    inputs = torch.randn(3, 6)
    hidden = (inputs @ first.weight[:8].T + first.bias[:8]).relu()
    torch.testing.assert_close(encoder(inputs), (hidden @ second.weight[:8, :8].T + second.bias[:8]).relu())


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (lambda: SlimmableMLPHead(FeatureSpec("vector", (16,)), 3, [24, 8]), (2, 8)),
        (lambda: SlimmableMLPHead(FeatureSpec("tokens", (16,)), 3, []), (2, 5, 8)),
        (lambda: SlimmableMLPHead(FeatureSpec("maps", (4, 16), (2, 4)), 3), (2, 8, 4, 4)),
        (lambda: SlimmableConvHead(FeatureSpec("maps", (4, 16), (2, 4)), 3, 16), (2, 8, 4, 4)),
    ],
    ids=["vector", "tokens", "maps", "conv"],
)
def test_an_exported_head_gives_the_same_and_all_outputs(build: Any, shape: tuple[int, ...]) -> None:
    head: SlimmableHead = build()
    head.set_width(0.5, [4, 8] if len(shape) == 4 else [8])
    values = torch.randn(shape)
    features: Any = [torch.randn(2, 4, 8, 8), values] if len(shape) == 4 else values
    found = head(features)
    assert found.shape[1] == 3
    torch.testing.assert_close(head.export()(features), found, rtol=0, atol=1e-6)


@pytest.mark.parametrize("widths", [[], [0.5], [0.0, 1.0], [1.0, 1.0], [0.5, 2.0]])
def test_widths_without_one_or_out_of_range_raise(widths: list[float]) -> None:
    with pytest.raises(ValueError, match="SlimmableMLP: widths must be different numbers"):
        SlimmableMLP(4, [8], widths)


def test_unknown_widths_and_wrong_numbers_of_them_raise() -> None:
    encoder = SlimmableMLP(4, [8, 8], [0.5, 1.0])
    with pytest.raises(ValueError, match=r"SlimmableMLP: width must be one of \[0.5, 1.0\], got 0.3"):
        encoder.set_widths(0.3)
    with pytest.raises(ValueError, match=r"widths must be one number or 2, one a stage, got \[1.0\]"):
        encoder.set_widths([1.0])
    head = SlimmableMLPHead(FeatureSpec("vector", (8,)), 2)
    with pytest.raises(ValueError, match=r"SlimmableMLPHead: width must be one of .*, got 0.1"):
        head.set_width(0.1, [8])
