"""Architectures between one network and one network per task, against their closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lightning_mtl.nn import (
    MTAN,
    NDDRCNN,
    CrossStitch,
    FeatureSpec,
    LearningToBranch,
    MLPEncoder,
    TaskTree,
    TimmEncoder,
)
from tests.nn.cases import NAMES, ThreeStages

IMAGES = (4, 3, 24, 16)


@pytest.mark.parametrize("name", ["resnet10t", "regnetx_002", "convnext_atto"])
def test_stages_of_a_timm_encoder_lead_from_map_to_map(name: str) -> None:
    encoder = TimmEncoder(name, "maps").eval()
    inputs = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = encoder(inputs)
        current, found = inputs, []
        for stage in encoder.stages():
            current = stage(current)
            found.append(current)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "swin_tiny_patch4_window7_224"])
def test_models_that_are_no_sequence_of_stages_say_so(name: str) -> None:
    with pytest.raises(ValueError, match="cannot be taken apart into stages"):
        TimmEncoder(name, "maps", img_size=64 if "swin" in name else None).stages()


def test_cross_stitch_with_full_self_weight_is_one_network_per_task() -> None:
    torch.manual_seed(0)
    network = ThreeStages().eval()
    inputs = torch.randn(IMAGES)
    expected = network(inputs)
    output = CrossStitch(network, NAMES, self_weight=1.0).eval()(inputs)
    for task in NAMES:
        torch.testing.assert_close(output[task], expected)


def test_cross_stitch_mixes_channel_by_channel() -> None:
    encoder = CrossStitch(ThreeStages(), ["a", "b"], self_weight=0.75)
    unit = encoder.units[0]
    assert unit.weights.shape == (2, 2, 4)
    torch.testing.assert_close(unit.weights.sum(dim=1), torch.ones(2, 4))
    unit.weights.data.copy_(torch.rand(2, 2, 4))
    maps = torch.randn(2, 3, 4, 5, 5)
    mixed = unit(maps)
    for i in range(2):
        for c in range(4):
            expected = sum(unit.weights[i, j, c] * maps[j, :, c] for j in range(2))
            torch.testing.assert_close(mixed[i, :, c], expected)


def test_nddr_starts_from_the_tasks_own_channels() -> None:
    encoder = NDDRCNN(ThreeStages(), NAMES, self_weight=0.8)
    weight = encoder.fusions[0][1].layers[0].weight[:, :, 0, 0]
    expected = torch.cat([0.1 * torch.eye(4), 0.8 * torch.eye(4), 0.1 * torch.eye(4)], dim=1)
    torch.testing.assert_close(weight, expected)


def test_mtan_masks_the_shared_maps_as_the_equation_says() -> None:
    torch.manual_seed(0)
    network = ThreeStages().eval()
    encoder = MTAN(network, ["a"], reduction=2).eval()
    inputs = torch.randn(IMAGES)
    with torch.no_grad():
        p1 = network.parts[0](inputs)
        first = encoder.masks[0]["a"](p1) * p1  # a stage that ends in one block: u is its output
        before = network.parts[1][1][0](p1)
        p2 = network.parts[1][1][1](before)
        carried = torch.nn.functional.max_pool2d(encoder.carry[0](first), 2)
        second = encoder.masks[1]["a"](torch.cat([before, carried], dim=1)) * p2
        output = encoder(inputs)["a"]
    torch.testing.assert_close(output[0], first)
    torch.testing.assert_close(output[1], second)


def test_mtan_masks_lie_between_zero_and_one() -> None:
    encoder = MTAN(ThreeStages(), NAMES)
    mask = encoder.masks[0]["a"](100 * torch.randn(4, 4, 5, 5))
    assert mask.min() >= 0
    assert mask.max() <= 1


def test_a_trunk_of_one_branch_is_hard_sharing() -> None:
    torch.manual_seed(0)
    network = ThreeStages().eval()
    inputs = torch.randn(IMAGES)
    expected = network(inputs)
    encoder = TaskTree(network, NAMES, [[0, 0, 0]] * 3).eval()
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in network.parameters())
    output = encoder(inputs)
    assert all(output[task][2] is output["a"][2] for task in NAMES)
    torch.testing.assert_close(output["a"], expected)


def test_learning_to_branch_in_eval_is_the_tree_that_it_reports() -> None:
    torch.manual_seed(0)
    search = LearningToBranch(ThreeStages(), NAMES, num_nodes=2)
    for nodes in search.nodes:
        for parameter in nodes.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    for logits in search.parent_logits:
        logits.data.copy_(torch.randn_like(logits))
    search.eval()
    fixed = TaskTree(ThreeStages(), NAMES, search.tree()).eval()
    for modules, nodes in zip(fixed.stages, search.nodes, strict=True):
        for number, module in modules.items():
            module.load_state_dict(nodes[int(number)].state_dict())
    inputs = torch.randn(IMAGES)
    torch.testing.assert_close(fixed(inputs), search(inputs))


def test_parents_are_drawn_by_their_likelihood_and_the_temperature_falls() -> None:
    torch.manual_seed(0)
    search = LearningToBranch(ThreeStages(), ["a", "b"], temperature=0.3, min_temperature=0.2, decay=0.5).train()
    for logits in search.parent_logits:
        logits.data.copy_(torch.tensor([[8.0, -8.0], [-8.0, 8.0]]))
    search.nodes[1][0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    seen: list[torch.Tensor] = []
    inputs = torch.randn(IMAGES)
    search(inputs)
    torch.testing.assert_close(seen[0], search.nodes[0][0](inputs), rtol=1e-3, atol=1e-3)
    assert search.temperature == 0.2
    assert search.tree() == [[0, 1], [0, 1], [0, 1]]


class NoStages(nn.Module):
    feature_spec = FeatureSpec("maps", (4,), (2,))


class TooFewStages(ThreeStages):
    def stages(self) -> list[nn.Module]:
        return list(self.parts)[:2]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MTAN(MLPEncoder(4, [4]), NAMES), "the encoder must give feature maps, got 'vector'"),
        (lambda: MTAN(NoStages(), NAMES), "NoStages cannot be taken apart"),
        (lambda: MTAN(TooFewStages(), NAMES), "one module for each of the 3 maps, got 2"),
        (lambda: MTAN(ThreeStages(), NAMES, reduction=0), "reduction must be at least 1, got 0"),
        (lambda: CrossStitch(ThreeStages(), NAMES, self_weight=0.0), r"self_weight must be in \(0, 1\], got 0.0"),
        (lambda: CrossStitch(ThreeStages(), NAMES, granularity="row"), "must be 'channel' or 'map'"),  # type: ignore[arg-type]
        (lambda: NDDRCNN(ThreeStages(), NAMES, self_weight=2.0), r"self_weight must be in \(0, 1\], got 2.0"),
        (lambda: TaskTree(ThreeStages(), NAMES, [[0, 0, 0]]), "tree must have 3 stages with one number for each"),
        (lambda: TaskTree(ThreeStages(), NAMES, [[0, 0, 1], [0, 0, 0], [0, 0, 0]]), "tasks that have parted.*'c'"),
        (lambda: LearningToBranch(ThreeStages(), NAMES, num_nodes=0), "num_nodes must be at least 1, got 0"),
        (lambda: LearningToBranch(ThreeStages(), NAMES, temperature=0.1), "min_temperature <= temperature"),
        (lambda: LearningToBranch(ThreeStages(), NAMES, decay=0.0), r"decay must be in \(0, 1\], got 0.0"),
    ],
)
def test_arguments_that_do_not_fit_raise(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
