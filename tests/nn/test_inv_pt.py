"""InvPT: against the authors' decoder, and what its stages do to the tokens of the tasks."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl.nn import FeatureSpec, InvPT, MLPEncoder, TimmEncoder
from lightning_mtl.nn.architectures.inv_pt import CrossTaskAttention, UpTransformerStage, nearest_map, upsampled_scores
from tests.nn.cases import SameSize, ThreeStages

GOLDEN = Path(__file__).parents[1] / "golden" / "inv_pt.json"
OUTPUTS = {"segmentation": 3, "depth": 1}


class Maps(nn.Module):
    """An encoder that is given its maps."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.feature_spec = FeatureSpec("maps", channels, strides)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return maps


def wave(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in (-1, 1) that follow from a name."""
    count = torch.Size(shape).numel()
    return torch.sin(1.3 * torch.arange(count, dtype=torch.float64) + zlib.crc32(name.encode()) % 1000).view(shape)


def fill(module: nn.Module) -> None:
    """Give every parameter and buffer numbers that follow from its name."""
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            around_one = name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight"))
            value.copy_(0.4 * wave(name, tuple(value.shape)) + (1 if around_one else 0))


def test_the_features_are_those_of_the_authors_decoder_with_the_same_weights() -> None:
    golden = json.loads(GOLDEN.read_text())
    encoder = InvPT(Maps((4,) * 4, (16,) * 4), golden["outputs"], channels=8, preliminary_channels=5)
    fill(encoder)
    with torch.no_grad():
        found = encoder.double().eval()([wave(f"map {i}", (1, 4, 4, 8)) for i in range(4)])
    for task, expected in golden["features"].items():
        thinned = found[task].maps[0][..., ::5, ::7]
        # the reference computed in float32
        torch.testing.assert_close(thinned, torch.tensor(expected).to(thinned), rtol=0, atol=2e-4)
        assert float(thinned.std()) > 0.1


# ------------------------------------------------------------------ attention
def test_attention_is_the_weighted_mean_over_the_pooled_positions_of_all_tasks() -> None:
    torch.manual_seed(0)
    attention = CrossTaskAttention(num_tasks=2, channels=4, num_heads=2, pool=2, receives=False).eval()
    attention.query[0].weight.data.zero_()
    attention.query[0].weight.data[:, :, 1, 1] = 1.0  # every other position asks
    maps = torch.randn(1, 2, 4, 4, 4)
    found, scores = attention(maps, None)
    assert scores.shape == (1, 2, 2, 2, 2, 8)

    read = [maps[0, k, :, i : i + 2, j : j + 2].mean(dim=(1, 2)) for k in (0, 1) for i in (0, 2) for j in (0, 2)]
    asked = maps[0, 1, :, 2, 0] / (1 + attention.query[1].eps) ** 0.5  # of task 1, at the position (1, 0) of the grid
    parts = []
    for head in (slice(0, 2), slice(2, 4)):
        logits = torch.stack([attention.queries(asked)[head] @ attention.keys(r)[head] for r in read]) / 2
        torch.testing.assert_close(scores[0, head.start // 2, 1, 1, 0], logits)
        weights = logits.exp() / logits.exp().sum()
        parts.append(sum(w * attention.values(r)[head] for w, r in zip(weights, read, strict=True)))
    expected = attention.output(torch.cat(parts))
    corner = found[0, 1, :, 3, 0]  # the lower left pixel of the upsampled map repeats the grid's
    torch.testing.assert_close(corner, expected)


def test_scores_of_the_stage_before_can_decide_alone() -> None:
    torch.manual_seed(0)
    attention = CrossTaskAttention(num_tasks=2, channels=4, num_heads=1, pool=4, receives=True).eval()
    assert attention.fuse is not None
    attention.fuse.weight.data = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)  # only the message counts
    maps = torch.randn(1, 2, 4, 8, 8)
    message = torch.zeros(1, 1, 2, 2, 2, 8)
    message[..., 5] = 1000.0  # position (0, 1) of task 1
    found, scores = attention(maps, message)
    assert scores.shape == (1, 1, 2, 4, 4, 8)
    expected = attention.output(attention.values(maps[0, 1, :, :4, 4:].mean(dim=(1, 2))))
    torch.testing.assert_close(found, expected.view(1, 1, 4, 1, 1).expand_as(found))


def test_scores_are_upsampled_over_the_positions_that_ask_and_no_others() -> None:
    scores = torch.randn(2, 3, 2, 2, 3, 5)
    larger = upsampled_scores(scores, (4, 6))
    assert larger.shape == (2, 3, 2, 4, 6, 5)
    expected = nn.functional.interpolate(scores[1, 2, 0, :, :, 4][None, None], size=(4, 6), mode="bilinear")
    torch.testing.assert_close(larger[1, 2, 0, :, :, 4], expected[0, 0])


@pytest.mark.parametrize("silent", [False, True], ids=["attention", "attention-silent"])
def test_a_stage_carries_what_one_task_has_to_another_by_its_attention_alone(silent: bool) -> None:
    torch.manual_seed(0)
    stage = UpTransformerStage(2, in_channels=8, channels=4, num_heads=2, mlp_ratio=2.0, number=1).eval()
    if silent:
        for parameter in stage.attention.output.parameters():
            nn.init.zeros_(parameter)
    maps, message = torch.randn(1, 2, 8, 4, 4), torch.randn(1, 2, 2, 2, 2, 8)
    other = maps.clone()
    other[:, 0] += 1.0
    before, after = (stage(m, torch.randn(1, 4, 8, 8).zero_(), message)[0] for m in (maps, other))
    assert before.shape == (1, 2, 4, 8, 8)
    assert not torch.equal(before[:, 0], after[:, 0])
    assert torch.equal(before[:, 1], after[:, 1]) is silent


# ------------------------------------------------------------------ the whole
@pytest.mark.parametrize("size", [(12, 8), (10, 14), (6, 6)], ids=str)
def test_every_stage_attends_to_equally_many_positions_at_any_size(size: tuple[int, int]) -> None:
    encoder = InvPT(SameSize(), OUTPUTS, channels=8).eval()
    seen: list[torch.Size] = []
    for stage in encoder.stages:
        stage.register_forward_hook(lambda module, inputs, output: seen.append(output[1].shape))
    height, width = size
    features = encoder(torch.randn(1, 3, 4 * height, 4 * width))["depth"]
    start = (height // 2, width // 2)
    pooled = 2 * -(-start[0] // 2) * -(-start[1] // 2)
    assert [tuple(shape[3:]) for shape in seen] == [
        (-(-start[0] * 2**s // 2), -(-start[1] * 2**s // 2), pooled) for s in range(3)
    ]
    assert features.maps[0].shape[-2:] == (8 * start[0], 8 * start[1])


@pytest.mark.parametrize(
    ("strides", "start", "expected"),
    [
        ((16, 16, 16, 16), 32, [1, 0]),  # the authors' vision transformer
        ((4, 8, 16, 32), 32, [2, 1]),
        ((4, 8, 16, 32), 64, [2, 2]),
        ((2, 4, 4), 8, [1, 0]),
        ((16,), 32, [0, 0]),
    ],
    ids=str,
)
def test_a_stage_adds_the_map_of_the_nearest_stride(strides: tuple[int, ...], start: int, expected: list[int]) -> None:
    assert [nearest_map(strides, start, number, 3) for number in (1, 2)] == expected


@pytest.mark.parametrize(
    ("model", "arguments", "stride"),
    [
        ("test_vit", {"downsample": 1}, 2),
        ("swin_tiny_patch4_window7_224", {"downsample": 1}, 4),
        ("resnet10t", {}, 8),
    ],
)
def test_it_is_built_around_models_of_timm(model: str, arguments: dict[str, int], stride: int) -> None:
    image = 160 if model == "test_vit" else 64
    size = None if model == "resnet10t" else image
    base = TimmEncoder(model, "maps", img_size=size)
    encoder = InvPT(base, OUTPUTS, channels=8, **arguments).eval()
    with torch.no_grad():
        features = encoder(torch.randn(1, 3, image, image))
    assert encoder.feature_spec["depth"] == FeatureSpec("maps", (8,), (stride,))
    assert features["depth"].maps[0].shape == (1, 8, image // stride, image // stride)
    assert features["segmentation"].initial[0].shape[1] == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: InvPT(MLPEncoder(4, [4]), OUTPUTS), "InvPT: the encoder must give feature maps, got 'vector'"),
        (lambda: InvPT(ThreeStages(), OUTPUTS, channels=12), r"channels must be a multiple of .* = 8, got 12"),
        (lambda: InvPT(ThreeStages(), OUTPUTS, channels=64, num_stages=4), r"multiple of 2\*\*num_stages = 16, got 8"),
        (lambda: InvPT(ThreeStages(), OUTPUTS, num_stages=0), "num_stages must be at least 1, got 0"),
        (lambda: InvPT(ThreeStages(), OUTPUTS, preliminary_channels=0), "preliminary_channels must be at least 1"),
        (lambda: InvPT(ThreeStages(), OUTPUTS, mlp_ratio=0.0), "mlp_ratio must be positive, got 0.0"),
    ],
)
def test_arguments_that_do_not_fit_raise(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
