"""Dynamic pruning: masks, layers, conversion, costs, and training of the predictors."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import PCGrad
from lightning_mtl.nn import (
    DynamicConv,
    DynamicEncoder,
    FeatureSpec,
    MaskPredictor,
    TimmEncoder,
    convert_to_dynamic,
    count_macs,
    dynamic_layers,
    estimate_macs,
    mask_cross_entropy,
    mask_loss,
    topk_mass_mask,
    uniform_mask,
)
from lightning_mtl.tasks import MulticlassClassification, Regression

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "ftwt.json").read_text())["cases"]


def block(before: int, after: int) -> list[nn.Module]:
    return [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()]


class Chain(nn.Sequential):
    """Two convolutions with pooling between."""

    feature_spec = FeatureSpec("vector", (6,))

    def __init__(self) -> None:
        super().__init__(*block(3, 4), nn.MaxPool2d(2), *block(4, 6), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def make_module(mode: str = "decoupled", **arguments: Any) -> MultiTaskModule:
    torch.manual_seed(0)
    tasks = {"kind": MulticlassClassification(num_classes=3), "size": Regression()}
    return MultiTaskModule(DynamicEncoder(Chain(), 0.7, mode=mode), tasks, **arguments)


def make_batch(rows: int = 6) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(rows, 3, 8, 8, generator=generator)
    return images, {"kind": torch.arange(rows) % 3, "size": images.mean((1, 2, 3))[:, None]}


# ---------------------------------------------------------------------- masks
@pytest.mark.parametrize("case", GOLDEN, ids=lambda c: "-".join(str(value) for value in c["args"].values()))
def test_masks_and_loss_are_those_of_the_authors(case: dict[str, Any]) -> None:
    inputs, args = case["inputs"], dict(case["args"])
    name = args.pop("fn")
    if name == "mask_loss":
        logits = [torch.tensor(values, dtype=torch.float64) for values in inputs["logits"]]
        targets = [torch.tensor(values, dtype=torch.float64) for values in inputs["gt_masks"]]
        expected = case["expected"]["loss"]
        assert float(mask_cross_entropy(logits, targets)) == pytest.approx(expected, rel=case["rtol"])
        return
    function = {"topk_mass_mask": topk_mass_mask, "uniform_mask": uniform_mask}[name]
    found = function(torch.tensor(inputs["activations"], dtype=torch.float64), **args)
    assert found.tolist() == case["expected"]["mask"]


def test_a_channel_that_alone_exceeds_the_mass_is_kept() -> None:
    peaks = torch.tensor([[0.1, 5.0, 0.1], [0.0, 0.0, 0.0]])[:, :, None, None]
    for mask in (topk_mass_mask(peaks, 0.5), topk_mass_mask(peaks, 0.01)):
        assert mask.tolist() == [[0, 1, 0], [1, 0, 0]]
    assert uniform_mask(peaks, 0.9)[1].sum() == 1
    assert topk_mass_mask(peaks, 1.0).tolist() == [[1, 1, 1], [1, 0, 0]]


def test_the_mass_counts_absolute_values_in_single_precision() -> None:
    activations = torch.full((1, 64, 1, 1), -1.0).to(torch.bfloat16)
    assert topk_mass_mask(activations, 0.5).sum() == 32  # the sum of 32 shares of 1/64 does not exceed the mass


@pytest.mark.parametrize("mass", [0.0, 1.5, float("nan")])
def test_a_mass_out_of_range_raises(mass: float) -> None:
    with pytest.raises(ValueError, match=r"mass must be in \(0, 1\], or negative"):
        topk_mass_mask(torch.ones(1, 2, 1, 1), mass)


# ---------------------------------------------------------------------- layers
@pytest.mark.parametrize("normalize", ["softmax", "scaled_softmax", "none"])
def test_a_predictor_reads_the_pooled_and_normalized_input(normalize: Any) -> None:
    predictor = MaskPredictor(3, 5, embedding=12, normalize=normalize)
    inputs = torch.randn(2, 3, 4, 4)
    pooled = inputs.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)).flatten(1)
    if normalize != "none":
        pooled = pooled.softmax(1) * (12 if normalize == "scaled_softmax" else 1)
    torch.testing.assert_close(predictor(inputs), pooled @ predictor.linear.weight.T + predictor.linear.bias)


def test_dropped_channels_are_zero_and_the_others_as_they_were() -> None:
    torch.manual_seed(0)
    layer = DynamicConv(*block(3, 8), mass=0.6).eval()
    inputs = torch.randn(4, 3, 6, 6)
    masked = layer(inputs)
    assert layer.last is not None
    assert layer.last.logits is not None
    torch.testing.assert_close(layer.last.mask, (layer.last.logits > 0).float())
    layer.masking = False
    dense = layer(inputs)
    torch.testing.assert_close(masked, dense * (layer.last.logits > 0)[:, :, None, None])
    torch.testing.assert_close(dense, layer.act(layer.norm(layer.conv(inputs))))
    torch.testing.assert_close(layer.last.mask, torch.ones(4, 8))


def test_a_predictor_that_would_drop_all_keeps_its_best_channel() -> None:
    layer = DynamicConv(*block(3, 4)).eval()
    assert layer.predictor is not None
    with torch.no_grad():
        layer.predictor.linear.weight.zero_()
        layer.predictor.linear.bias.copy_(torch.tensor([-3.0, -1.0, -2.0, -4.0]))
    layer(torch.randn(2, 3, 5, 5))
    assert layer.last is not None
    assert layer.last.mask.tolist() == [[0, 1, 0, 0]] * 2


@pytest.mark.parametrize("mode", ["decoupled", "joint"])
def test_the_mask_loss_reaches_the_layers_below_only_in_joint_mode(mode: Any) -> None:
    torch.manual_seed(0)
    model = Chain()
    layers = convert_to_dynamic(model, 0.7, mode=mode)
    model(torch.randn(4, 3, 8, 8))
    mask_loss(model).backward()
    first, second = layers.values()
    assert first.predictor is not None
    assert second.predictor is not None
    assert second.predictor.linear.weight.grad is not None
    assert (first.conv.weight.grad is not None) == (mode == "joint")
    assert second.conv.weight.grad is None


def test_predictors_that_stopped_get_zero_gradients() -> None:
    model = Chain()
    for layer in convert_to_dynamic(model, 0.7, mode="joint").values():
        layer.learning = False
    model(torch.randn(4, 3, 8, 8))
    mask_loss(model).backward()
    gradients = [p.grad for layer in dynamic_layers(model).values() for p in layer.predictor.parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in gradients)
    assert model[0].conv.weight.grad is None


def test_predictors_learn_the_masks() -> None:
    torch.manual_seed(0)
    model = Chain()
    layers = convert_to_dynamic(model, 0.7)
    for layer in layers.values():
        layer.masking = False
    images = torch.randn(32, 3, 8, 8) * torch.rand(32, 3, 1, 1) * 3
    optimizer = torch.optim.SGD([p for layer in layers.values() for p in layer.predictor.parameters()], 0.1)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        model(images)
        losses.append(mask_loss(model))
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.95 * losses[0]


# ---------------------------------------------------------------------- conversion
def test_a_converted_network_without_masks_computes_what_it_did() -> None:
    mobile = partial(TimmEncoder, "mobilenetv2_035")
    for build in (Chain, partial(TimmEncoder, "resnet18"), partial(TimmEncoder, "resnet18", "maps"), mobile):
        torch.manual_seed(0)
        model = build().eval()
        inputs = torch.randn(2, 3, 32, 32)
        with torch.no_grad():
            expected = model(inputs)
            for layer in convert_to_dynamic(model).values():
                layer.masking = False
            torch.testing.assert_close(model(inputs), expected)


@pytest.mark.parametrize(
    ("name", "count"), [("resnet18", 17), ("resnet26", 25), ("vgg11_bn", 8)], ids=["basic", "bottleneck", "vgg"]
)
def test_the_convolutions_of_timm_models_are_found(name: str, count: int) -> None:
    model = TimmEncoder(name, "maps")
    assert len(convert_to_dynamic(model)) == count
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, 32, 32))
    assert all(layer.last is not None for layer in dynamic_layers(model).values())


def test_the_last_convolution_of_a_block_is_judged_before_the_shortcut() -> None:
    layers = convert_to_dynamic(TimmEncoder("resnet18"))
    second = layers["model.layer1.0.conv2"]
    assert isinstance(second.act, nn.Identity)
    assert second.source is layers["model.layer1.0.conv1"]
    assert layers["model.layer1.0.conv1"].source is None


@pytest.mark.parametrize(
    ("name", "features", "count", "tied"),
    [
        ("mobilenetv1_100", "pooled", 27, 13),
        ("mobilenetv2_035", "maps", 51, 17),
        ("mobilenetv3_small_050", "maps", 34, 11),
    ],
)
def test_depthwise_convolutions_of_mobilenets_follow_the_layer_that_they_read(
    name: str, features: Any, count: int, tied: int
) -> None:
    model = TimmEncoder(name, features)
    layers = convert_to_dynamic(model, 0.8)
    assert len(layers) == count
    depthwise = [layer for layer in layers.values() if layer.depthwise]
    assert sum(layer.predictor is None for layer in layers.values()) == len(depthwise) == tied
    with torch.no_grad():
        model.eval()(torch.randn(2, 3, 32, 32))
    for layer in depthwise:
        assert layer.last is not None
        assert layer.source is not None
        assert layer.source.last is not None
        assert layer.last.mask.equal(layer.source.last.mask)


def test_a_mobilenet_of_torchvision_is_converted_but_for_its_linear_layers() -> None:
    from torchvision.models import mobilenet_v2

    layers = convert_to_dynamic(mobilenet_v2(weights=None, width_mult=0.25))
    assert len(layers) == 35
    assert all(isinstance(layer.act, nn.ReLU6) for layer in layers.values())


def test_named_layers_alone_are_converted() -> None:
    assert list(convert_to_dynamic(Chain(), layers=["4"])) == ["4"]
    with pytest.raises(ValueError, match=r"unknown names \['7'\]; known are \['0', '4'\]"):
        convert_to_dynamic(Chain(), layers=["7"])


def test_networks_that_cannot_be_converted_raise() -> None:
    with pytest.raises(ValueError, match="must have Conv2d, BatchNorm2d and an activation in a row"):
        convert_to_dynamic(TimmEncoder("convnext_atto"))
    model = Chain()
    convert_to_dynamic(model)
    with pytest.raises(ValueError, match="must not have been converted already"):
        convert_to_dynamic(model)


# ---------------------------------------------------------------------- costs
def test_macs_are_counted_with_the_kept_channels_of_both_sides() -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    first, second = convert_to_dynamic(model, 0.7).values()
    model(torch.randn(5, 3, 8, 8))
    assert first.last is not None
    assert second.last is not None
    kept, after = first.last.mask.sum(1), second.last.mask.sum(1)
    torch.testing.assert_close(first.last.macs, kept * 64 * 3 * 9)
    torch.testing.assert_close(second.last.macs, after * 16 * kept * 9)
    count = count_macs(model)
    assert count.dense == 4 * 64 * 3 * 9 + 6 * 16 * 4 * 9
    assert count.kept == pytest.approx(float((first.last.macs + second.last.macs).mean()), rel=1e-5)
    assert count.predictors == 3 * 4 + 4 * 6


def test_a_depthwise_convolution_follows_the_mask_before_it() -> None:
    torch.manual_seed(0)
    depthwise = [nn.Conv2d(4, 4, 3, padding=1, groups=4), nn.BatchNorm2d(4), nn.ReLU()]
    model = nn.Sequential(*block(3, 4), *depthwise).eval()
    first, second = convert_to_dynamic(model, 0.6).values()
    model(torch.randn(5, 3, 8, 8))
    assert second.predictor is None
    assert first.last is not None
    assert second.last is not None
    torch.testing.assert_close(second.last.mask, first.last.mask)
    torch.testing.assert_close(second.last.macs, first.last.mask.sum(1) * 64 * 9)


def test_the_estimate_needs_no_predictor_and_falls_with_the_mass() -> None:
    torch.manual_seed(0)
    model = Chain()
    before = copy.deepcopy(model.state_dict())
    batches = [torch.randn(6, 3, 8, 8), (torch.randn(3, 3, 8, 8), None)]
    shares = [estimate_macs(model, batches, mass).target_share for mass in (0.95, 0.8, 0.5)]
    assert 1 > shares[0] > shares[1] > shares[2] > 0
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(ValueError, match="at least one batch"):
        estimate_macs(model, [], 0.9)


# ---------------------------------------------------------------------- encoder
def test_a_state_says_whether_masks_are_on() -> None:
    encoder, other = DynamicEncoder(Chain(), 0.7), DynamicEncoder(Chain(), 0.7)
    for layer in dynamic_layers(encoder).values():
        layer.masking = False
    other.load_state_dict(encoder.state_dict())
    assert not any(layer.masking for layer in dynamic_layers(other).values())
    other.eval()(torch.randn(2, 3, 8, 8))
    twin = copy.deepcopy(other)
    first, second = dynamic_layers(twin).values()
    assert second.source is first


def test_predictors_have_a_group_of_their_own() -> None:
    module = make_module(optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4))
    optimizer: Any = module.configure_optimizers()
    groups = {group["name"]: group for group in optimizer.param_groups}
    assert list(groups) == ["encoder", "heads", "mask_predictors"]
    assert (groups["mask_predictors"]["lr"], groups["mask_predictors"]["weight_decay"]) == (0.1, 0.0)
    assert (groups["encoder"]["lr"], groups["encoder"]["weight_decay"]) == (0.01, 5e-4)
    everything = [id(parameter) for group in groups.values() for parameter in group["params"]]
    assert sorted(everything) == sorted(map(id, module.parameters()))


@pytest.mark.parametrize("mode", ["decoupled", "joint"])
@pytest.mark.parametrize("balancer", [None, PCGrad], ids=["equal", "pcgrad"])
def test_every_parameter_takes_part_in_a_multi_task_step(mode: str, balancer: Any) -> None:
    module = make_module(mode, balancer=balancer() if balancer else None)
    module.training_step(make_batch()).backward()
    assert [name for name, parameter in module.named_parameters() if parameter.grad is None] == []
    shared = {id(parameter) for parameter in module.shared_parameters()}
    encoder: Any = module.encoder
    assert not shared & {id(parameter) for parameter in encoder.predictor_parameters()}


def test_a_step_in_bfloat16_is_finite() -> None:
    module = make_module()
    with torch.autocast("cpu", torch.bfloat16):
        loss = module.training_step(make_batch())
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())
