"""PAD-Net and MTI-Net: the distillation against its closed form; losses on initial predictions, InvPT's too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import FAMO, MGDA
from lightning_mtl.module import _Plain
from lightning_mtl.nn import ConvHead, FeatEnHancer, InvPT, MLPEncoder, MTINet, PADNet, SupervisedFeatures
from lightning_mtl.nn.architectures.mti_net import FeaturePropagation
from lightning_mtl.nn.architectures.pad_net import JoinedMaps, SpatialDistillation
from lightning_mtl.tasks import FCOS, Depth, Regression, SemanticSegmentation, Task
from tests.nn.cases import ThreeStages

OUTPUTS = {"segmentation": 3, "depth": 1}
IMAGES = (4, 3, 24, 16)

SIZES: dict[Any, dict[str, int]] = {
    PADNet: {"channels": 5},
    MTINet: {"channels": 5},
    InvPT: {"channels": 8, "num_stages": 2},
}

architectures = pytest.mark.parametrize("cls", list(SIZES))
distilling = pytest.mark.parametrize(
    "cls", [PADNet, MTINet]
)  # InvPT feeds the predictions on, so that all tasks train them


def make_module(cls: Any, balancer: Any = None, **arguments: Any) -> MultiTaskModule:
    torch.manual_seed(0)
    tasks: dict[str, Task] = {
        "segmentation": SemanticSegmentation(3, head=ConvHead, loss_weight=2.0),
        "depth": Depth(head=ConvHead),
    }
    return MultiTaskModule(cls(ThreeStages(), OUTPUTS, **SIZES[cls], **arguments), tasks, balancer).train()


def make_batch() -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(IMAGES, generator=generator), {
        "segmentation": torch.randint(0, 3, (4, 24, 16), generator=generator),
        "depth": 1 + torch.rand(4, 1, 24, 16, generator=generator),
    }


def initial_heads(module: MultiTaskModule) -> dict[str, list[nn.Conv2d]]:
    """The layers of the initial predictions, by task."""
    found: Any = module.encoder.initial
    scales = [found] if isinstance(found, nn.ModuleDict) else list(found)
    return {task: [scale[task] for scale in scales] for task in OUTPUTS}


def gradient_of(heads: list[nn.Conv2d]) -> float:
    return sum(float(head.weight.grad.abs().sum()) for head in heads if head.weight.grad is not None)


# ------------------------------------------------------------------ layers
def test_a_message_passes_the_gate_of_the_task_that_reads_it() -> None:
    distillation = SpatialDistillation(["a", "b", "c"], channels=1)
    for parameter in distillation.parameters():
        nn.init.zeros_(parameter)

    def center(layer: Any, weight: float, bias: float = 0.0) -> None:
        layer.weight.data[0, 0, 1, 1] = weight
        layer.bias.data.fill_(bias)

    center(distillation.gates["a"], 2.0, -1.0)
    center(distillation.messages["a"]["b"], 3.0)
    center(distillation.messages["a"]["c"], -1.0, 0.5)
    features = {task: torch.randn(2, 1, 3, 4) for task in "abc"}
    found = distillation(features)
    a, b, c = features.values()
    torch.testing.assert_close(found["a"], a + (2 * a - 1).sigmoid() * (3 * b - c + 0.5))
    torch.testing.assert_close(found["b"], b)  # nobody writes to it


def test_a_closed_gate_lets_nothing_through_and_an_open_one_everything() -> None:
    distillation = SpatialDistillation(["a", "b"], channels=2)
    features = {task: torch.randn(2, 2, 3, 4) for task in "ab"}
    gate: Any = distillation.gates["a"]
    for bias, share in ((-200.0, 0.0), (200.0, 1.0)):
        gate.bias.data.fill_(bias)
        message = distillation.messages["a"]["b"](features["b"])
        torch.testing.assert_close(distillation(features)["a"], features["a"] + share * message)


def test_a_single_task_hears_nobody_and_has_no_idle_parameters() -> None:
    distillation = SpatialDistillation(["a"], channels=2)
    feature = torch.randn(1, 2, 3, 3)
    assert distillation({"a": feature})["a"] is feature
    assert list(distillation.parameters()) == []


def test_joining_maps_is_the_convolution_of_the_resized_maps() -> None:
    join = JoinedMaps([2, 3], channels=4).eval()
    maps = [torch.randn(1, 2, 4, 6), torch.randn(1, 3, 2, 3)]
    upsampled = nn.functional.interpolate(maps[1], size=(4, 6), mode="bilinear", align_corners=False)
    weight = torch.cat([layer.weight for layer in join.reductions], dim=1)
    expected = nn.functional.conv2d(torch.cat([maps[0], upsampled], dim=1), weight)
    torch.testing.assert_close(join(maps), join.output(expected))


def test_propagation_weighs_the_tasks_by_a_softmax_and_excites_what_they_share() -> None:
    propagation = FeaturePropagation(["a", "b"], channels=2, reduction=1).eval()
    last: Any = propagation.attention[1]
    nn.init.zeros_(last.weight)
    last.bias.data.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))  # the first channel prefers task a
    features = {task: torch.randn(2, 2, 3, 4) for task in "ab"}
    preferred = torch.tensor([1.0, 0.0]).sigmoid().view(1, 2, 1, 1)
    weighed = torch.cat([preferred * features["a"], (1 - preferred) * features["b"]], dim=1)
    shared = propagation.harmonize(weighed)
    pooled = shared.mean(dim=(2, 3), keepdim=True)
    found = propagation(features)
    for task in "ab":
        factor = propagation.excitations[task](pooled)
        torch.testing.assert_close(found[task], features[task] + factor * shared)


def test_mti_net_reads_what_the_coarser_scale_hands_down() -> None:
    torch.manual_seed(0)
    encoder = MTINet(ThreeStages(), OUTPUTS, channels=5).eval()
    inputs = torch.randn(IMAGES)
    before = encoder(inputs)["depth"].initial
    for name, parameter in encoder.branches[2].named_parameters():
        if name.startswith("segmentation"):
            parameter.data.add_(1.0)
    after = encoder(inputs)["depth"].initial
    assert [torch.equal(old, new) for old, new in zip(before, after, strict=True)] == [False, False, True]


# ------------------------------------------------------------------ losses on initial predictions
@architectures
def test_initial_predictions_have_the_channels_and_scales_that_they_should(cls: Any) -> None:
    encoder = cls(ThreeStages(), OUTPUTS, **SIZES[cls], deep_supervision=0.5)
    scales = {PADNet: [(12, 8)], MTINet: [(12, 8), (6, 4), (6, 4)], InvPT: [(3, 2)]}[cls]
    for task, features in encoder(torch.randn(IMAGES)).items():
        assert [tuple(made.shape) for made in features.initial] == [(4, OUTPUTS[task], *size) for size in scales]
        assert features.weight == 0.5


@architectures
def test_the_loss_of_a_task_is_that_of_its_head_and_its_weighed_initial_predictions(cls: Any) -> None:
    module = make_module(cls, deep_supervision=0.5)
    inputs, targets = make_batch()
    features = module.encoder(inputs)
    found = module._losses((inputs, targets))
    for name, task in module.tasks.items():
        final = task.loss(task(features[name].maps, (24, 16)), targets[name])
        initial = sum(
            task.loss(nn.functional.interpolate(made, size=(24, 16), mode="bilinear"), targets[name])
            for made in features[name].initial
        )
        factor = task.loss_weight
        torch.testing.assert_close(found.losses[name], factor * (final + 0.5 * initial))
        torch.testing.assert_close(found.parts[f"{name}/initial"], factor * 0.5 * initial)


@distilling
def test_initial_heads_learn_only_where_their_task_has_labels(cls: Any) -> None:
    module = make_module(cls)
    inputs, targets = make_batch()
    heads = initial_heads(module)
    module.training_step((inputs, {"depth": targets["depth"]})).backward()
    assert gradient_of(heads["depth"]) > 0
    assert gradient_of(heads["segmentation"]) == 0
    module.zero_grad()
    module.training_step((inputs, targets | {"depth": torch.zeros(4, 1, 24, 16)})).backward()  # no valid pixel
    assert gradient_of(heads["depth"]) == 0
    assert gradient_of(heads["segmentation"]) > 0


def test_tokens_of_inv_pt_carry_the_initial_predictions_to_other_tasks() -> None:
    module = make_module(InvPT, deep_supervision=0.0)
    inputs, targets = make_batch()
    module.training_step((inputs, {"depth": targets["depth"]})).backward()
    assert gradient_of(initial_heads(module)["segmentation"]) > 0


@distilling
def test_without_deep_supervision_initial_heads_stay(cls: Any) -> None:
    module = make_module(cls, deep_supervision=0.0)
    module.training_step(make_batch()).backward()
    assert all(gradient_of(heads) == 0 for heads in initial_heads(module).values())


@architectures
def test_validation_scores_the_final_predictions_alone(cls: Any) -> None:
    module = make_module(cls).eval()
    inputs, targets = make_batch()
    module.validation_step((inputs, targets))
    for name, prediction in module(inputs).items():
        task: Any = module.tasks[name]
        expected = task.loss_weight * task.loss(prediction, targets[name])
        torch.testing.assert_close(module._eval_losses[name].compute(), expected)


@architectures
@pytest.mark.parametrize("at", ["parameters", "features"])
def test_gradient_balancers_reach_the_initial_heads(cls: Any, at: Any) -> None:
    module = make_module(cls, MGDA(at=at))
    module.training_step(make_batch()).backward()
    assert all(gradient_of(heads) > 0 for heads in initial_heads(module).values())


@architectures
def test_a_second_pass_gives_the_same_losses(cls: Any) -> None:
    module = make_module(cls, FAMO())
    batch = make_batch()
    module.training_step(batch)
    assert module._recompute is not None
    first = {name: loss.detach() for name, loss in module.task_losses(batch).items()}
    torch.testing.assert_close({name: loss.detach() for name, loss in module._recompute().items()}, first)


@architectures
def test_what_is_exported_gives_the_final_predictions(cls: Any) -> None:
    module = make_module(cls).eval()
    inputs, _ = make_batch()
    with torch.no_grad():
        torch.testing.assert_close(_Plain(module).eval()(inputs), module(inputs))


def test_predictions_per_sample_are_the_mean_of_the_initial_maps() -> None:
    raw = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(Regression(num_outputs=3).from_map(raw), raw.flatten(2).mean(2))


def test_enhanced_images_keep_the_initial_predictions_of_each_task() -> None:
    torch.manual_seed(0)
    encoder = PADNet(ThreeStages(), OUTPUTS, channels=5)
    images = torch.randn(2, 3, 24, 16)
    both = FeatEnHancer(encoder, enhanced={"segmentation": True, "depth": False}).eval()
    features = both(images)
    assert isinstance(features["depth"], SupervisedFeatures)
    torch.testing.assert_close(features["depth"], encoder(images)["depth"])
    assert features["segmentation"].initial[0].shape == (2, 3, 12, 8)


# ------------------------------------------------------------------ errors
def test_tasks_whose_predictions_are_no_maps_say_so() -> None:
    module = MultiTaskModule(
        PADNet(ThreeStages(), {"boxes": 3}, channels=5), {"boxes": FCOS(num_classes=2, head=nn.Identity())}
    )
    features = module.encoder(torch.randn(IMAGES))
    with pytest.raises(TypeError, match="task 'boxes': FCOS: cannot be trained on the initial predictions"):
        module._initial_predictions(features, "boxes", (24, 16))


def test_outputs_of_the_wrong_width_name_the_task() -> None:
    module = make_module(PADNet)
    module.encoder = PADNet(ThreeStages(), {"segmentation": 4, "depth": 1}, channels=5)
    with pytest.raises(ValueError, match="task 'segmentation': "):
        module.training_step(make_batch())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PADNet(MLPEncoder(4, [4]), OUTPUTS), "PADNet: the encoder must give feature maps, got 'vector'"),
        (lambda: PADNet(ThreeStages(), {}), "tasks must be one or more different names"),
        (lambda: PADNet(ThreeStages(), {"a": 0}), "outputs must be the tasks' numbers of channels, got {'a': 0}"),
        (lambda: PADNet(ThreeStages(), OUTPUTS, channels=0), "channels must be at least 1, got 0"),
        (lambda: MTINet(ThreeStages(), OUTPUTS, reduction=0), "MTINet: reduction must be at least 1, got 0"),
        (
            lambda: MTINet(ThreeStages(), OUTPUTS, deep_supervision=-1.0),
            "deep_supervision must not be negative, got -1",
        ),
    ],
)
def test_arguments_that_do_not_fit_raise(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
