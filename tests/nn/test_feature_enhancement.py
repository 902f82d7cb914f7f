"""Enhancement of dark images: the attention, the module and the encoder behind it."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import MGDA, Balancer, EqualWeighting
from lightning_mtl.nn import (
    ConvHead,
    FeatEnHancer,
    FeatureEnhancement,
    FeatureSpec,
    MLPEncoder,
    ScaleAwareAggregation,
    TimmEncoder,
    scale_aware_attention,
)
from lightning_mtl.tasks import Depth, SemanticSegmentation

GOLDEN: list[dict[str, Any]] = json.loads(
    (Path(__file__).parents[1] / "golden" / "01-scale-aware-attention.json").read_text()
)["cases"]


class Maps(nn.Module):
    """A small encoder without normalisation layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.feature_spec = FeatureSpec("maps", (4,), (2,))

    def forward(self, image: Tensor) -> list[Tensor]:
        return [self.layers(image).relu()]


def small(**options: Any) -> FeatureEnhancement:
    torch.manual_seed(0)
    return FeatureEnhancement(**{"hidden_channels": 4, "out_channels": 6, "heads": 2, "init_std": 0.2, **options})


def batch(tasks: tuple[str, ...] = ("kind", "depth"), size: int = 16) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    targets = {
        "kind": torch.randint(0, 3, (2, size, size), generator=generator),
        "depth": 1 + torch.rand(2, 1, size, size, generator=generator),
    }
    return torch.randn(2, 3, size, size, generator=generator), {task: targets[task] for task in tasks}


def make_module(balancer: Balancer | None = None, **options: Any) -> MultiTaskModule:
    torch.manual_seed(2)
    encoder = FeatEnHancer(Maps(), **{"hidden_channels": 8, "out_channels": 6, "heads": 2, "init_std": 0.2, **options})
    tasks = {"kind": SemanticSegmentation(num_classes=3, head=ConvHead), "depth": Depth(head=ConvHead)}
    return MultiTaskModule(encoder, tasks, balancer)


def gradients(module: MultiTaskModule, data: Any) -> dict[str, Tensor | None]:
    module.zero_grad()
    module.training_step(data).backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"heads-{case['args']['heads']}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_attention_gives_the_golden_values(case: dict[str, Any], dtype: torch.dtype) -> None:
    query, key = (torch.tensor(case["inputs"][name], dtype=dtype) for name in ("query", "key"))
    expected = torch.tensor(case["expected"]["aggregated"], dtype=dtype)
    actual = scale_aware_attention(query, key, **case["args"])
    torch.testing.assert_close(actual, expected, rtol=case["rtol"], atol=1e-6)


def test_attention_is_the_softmax_of_both_scores_pixel_by_pixel_and_differentiable() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 6, 2, 3, generator=generator, dtype=torch.float64)
    actual = scale_aware_attention(query, key, heads=3)
    for b, head, y, x in torch.cartesian_prod(*map(torch.arange, (2, 3, 2, 3))).tolist():
        q, k = (part[b, 2 * head : 2 * head + 2, y, x] for part in (query, key))
        weights = (torch.stack([q @ k, k @ k]) / math.sqrt(2)).softmax(0)
        torch.testing.assert_close(actual[b, 2 * head : 2 * head + 2, y, x], weights[0] * q + weights[1] * k)
    leaves = (query.requires_grad_(), key.requires_grad_())
    assert torch.autograd.gradcheck(lambda q, k: scale_aware_attention(q, k, 3), leaves)


def test_attention_scores_beyond_float16_stay_finite() -> None:
    key = torch.full((1, 3, 1, 1), 400.0, dtype=torch.float16)
    out = scale_aware_attention(torch.zeros_like(key), key, heads=1)
    assert out.dtype == torch.float32
    assert out.equal(key.float())  # softmax(0, 277128) looks at the key alone


def test_enhancement_is_what_the_equations_say() -> None:
    module = small().double()
    image = torch.randn(2, 3, 23, 31, dtype=torch.float64)
    conv = dict(module.named_modules())

    def enhance(x: Tensor) -> Tensor:
        c = [conv[f"enhance.layers.{i}"] for i in range(7)]
        x1 = c[0](x).relu()
        x2 = c[1](x1).relu()
        x3 = c[2](x2).relu()
        x4 = c[3](x3).relu()
        x5 = c[4](torch.cat([x3, x4], 1)).relu()
        x6 = c[5](torch.cat([x2, x5], 1)).relu()
        return c[6](torch.cat([x1, x6], 1))

    up = nn.UpsamplingBilinear2d(size=(23, 31))
    quarter = F.conv2d(image, conv["to_quarter"].weight, conv["to_quarter"].bias, stride=4)
    eighth = F.conv2d(quarter, conv["to_eighth"].weight, conv["to_eighth"].bias, stride=2)
    full, q, o = enhance(image), enhance(quarter), enhance(eighth)
    query = conv["aggregate.query.1"](conv["aggregate.query.0"](full))
    assert query.shape == (*eighth.shape[:1], 6, *eighth.shape[2:])
    full = full + up(scale_aware_attention(query, conv["aggregate.key"](q), 2))
    r = torch.tanh(conv["join.1"](conv["join.0"](torch.cat([full, up(o)], 1))))
    torch.testing.assert_close(module(image), image + r[:, :3] + r[:, 3:])


def test_the_defaults_have_the_parameters_and_the_initialisation_of_the_paper() -> None:
    torch.manual_seed(0)
    module = FeatureEnhancement()
    assert module.aggregate is not None
    assert sum(p.numel() for p in module.parameters()) == 139_400
    assert sum(p.numel() for p in module.aggregate.parameters()) == 38_664
    weights = torch.cat([m.weight.detach().flatten() for m in module.modules() if isinstance(m, nn.Conv2d)])
    assert abs(float(weights.std()) - 0.02) < 2e-4
    assert abs(float(weights.mean())) < 2e-4
    biases = [m.bias for m in module.modules() if isinstance(m, nn.Conv2d)]
    assert all(bias is not None and bool(bias.any()) for bias in biases)  # torch's own, not zeros


@pytest.mark.parametrize(("fusion", "parameters"), [("mean", 100_736), ("skip", 107_648)])
def test_an_ablation_has_no_attention(fusion: Any, parameters: int) -> None:
    module = FeatureEnhancement(fusion=fusion)
    assert module.aggregate is None
    assert sum(p.numel() for p in module.parameters()) == parameters


@pytest.mark.parametrize("fusion", ["safa", "mean", "skip"])
@pytest.mark.parametrize("size", [(15, 15), (15, 40), (37, 18)], ids=str)
def test_any_size_from_15_on_is_enhanced_by_a_bounded_residual_that_trains_everything(
    fusion: Any, size: tuple[int, int]
) -> None:
    module = small(fusion=fusion)
    image = torch.randn(2, 3, *size)
    out = module(image)
    assert out.shape == image.shape
    assert (out - image).abs().max() <= 2  # two groups
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in module.parameters())


def test_every_group_of_channels_is_added_to_the_image() -> None:
    module = small(in_channels=2, out_channels=4)
    nn.init.zeros_(module.join[1].weight)
    nn.init.constant_(module.join[1].bias, 1.0)
    image = torch.randn(1, 2, 16, 16)
    torch.testing.assert_close(module(image), image + 2 * math.tanh(1.0))


def test_checkpointing_changes_no_number() -> None:
    image = torch.randn(2, 3, 16, 16)
    results = []
    for checkpointing in (False, True):
        module = small(checkpointing=checkpointing)
        out = module(image)
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad for p in module.parameters())])
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)


def test_mixed_precision_stays_near_float32_and_keeps_the_type_of_the_image() -> None:
    module, image = small(), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = module(image)
    assert mixed.dtype == torch.float32
    assert (mixed - module(image)).abs().mean() < 0.02  # nine layers with eight bits of mantissa
    low = module.bfloat16()(image.bfloat16())
    assert low.dtype == torch.bfloat16
    assert low.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: small(out_channels=8), r"out_channels must be a multiple of in_channels.*got out_channels=8"),
        (lambda: small(heads=4), r"FeatureEnhancement: heads must divide out_channels, got heads=4, out_channels=6"),
        (lambda: small(heads=0), r"FeatureEnhancement: heads must be positive, got 0"),
        (lambda: small(fusion="sum"), r"FeatureEnhancement: fusion must be 'safa', 'mean' or 'skip', got 'sum'"),
        (lambda: small(init_std=0.0), r"FeatureEnhancement: init_std must be positive, got 0.0"),
        (lambda: ScaleAwareAggregation(24, 7), r"ScaleAwareAggregation: heads must be .* got heads=7, channels=24"),
        (lambda: scale_aware_attention(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 3), 2), r"must have one shape"),
        (lambda: scale_aware_attention(*torch.zeros(2, 1, 4, 2, 2), 3), r"heads must divide the 4 channels.*got 3"),
        (lambda: small()(torch.zeros(1, 3, 14, 30)), r"H and W at least 15, got \(1, 3, 14, 30\)"),
        (lambda: small()(torch.zeros(1, 1, 16, 16)), r"\(B, 3, H, W\).*got \(1, 1, 16, 16\)"),
        (lambda: small()(torch.zeros(3, 16, 16)), r"\(B, 3, H, W\).*got \(3, 16, 16\)"),
        (lambda: FeatEnHancer(Maps(), {"a": False}), r"FeatEnHancer: enhanced must be true for one task at least"),
    ],
    ids=["groups", "heads", "no-heads", "fusion", "std", "safa-heads", "maps", "split", "small", "grey", "3d", "none"],
)
def test_what_cannot_work_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# ---------------------------------------------------------------------- in front of an encoder
def test_what_the_encoder_declares_holds_on() -> None:
    inner = TimmEncoder("resnet18", "maps")
    encoder = FeatEnHancer(inner)
    assert encoder.feature_spec == inner.feature_spec
    assert {id(p) for p in encoder.shared_parameters()} == {id(p) for p in encoder.parameters()}
    assert FeatEnHancer(nn.Identity()).feature_spec is None
    assert FeatEnHancer(MLPEncoder(3 * 16 * 16, [4]))(torch.zeros(1, 3, 16, 16)).shape == (1, 4)


def test_only_the_tasks_that_say_so_read_the_enhanced_image() -> None:
    module = make_module(enhanced={"kind": True, "depth": False}).eval()
    inputs, _ = batch()
    encoder = module.encoder
    features = encoder(inputs)
    torch.testing.assert_close(features["depth"], encoder.encoder(inputs))
    torch.testing.assert_close(features["kind"], encoder.encoder(encoder.enhancement(inputs)))
    assert not torch.allclose(features["kind"][0], features["depth"][0])
    predictions = module(inputs)
    assert predictions["kind"].shape == (2, 3, 16, 16)
    assert predictions["depth"].shape == (2, 1, 16, 16)


def test_all_tasks_enhanced_by_name_is_the_same_as_no_names() -> None:
    inputs, _ = batch()
    named, plain = make_module(enhanced={"kind": True, "depth": True}), make_module()
    torch.testing.assert_close(named(inputs), plain(inputs))
    assert len(named.shared_parameters()) == len(plain.shared_parameters())


def test_an_encoder_with_features_by_task_keeps_them() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own, self.common = nn.Linear(1, 1), nn.Linear(1, 1)
            self.feature_spec = {"kind": FeatureSpec("vector", (3,)), "depth": FeatureSpec("vector", (3,))}

        def shared_parameters(self) -> list[nn.Parameter]:
            return list(self.common.parameters())

        def auxiliary_loss(self) -> Tensor:
            return self.own.weight.sum()

        def forward(self, image: Tensor) -> dict[str, Tensor]:
            return {"kind": image.mean((2, 3)), "depth": -image.mean((2, 3))}

    inner, image = Own(), torch.randn(2, 3, 16, 16)
    both = FeatEnHancer(inner)
    assert len(both.shared_parameters()) == len(list(both.enhancement.parameters())) + 2
    assert set(both(image)) == {"kind", "depth"}
    encoder = FeatEnHancer(inner, {"kind": True, "depth": False})
    assert encoder.feature_spec == inner.feature_spec
    features = encoder(image)
    torch.testing.assert_close(features["depth"], -image.mean((2, 3)))
    torch.testing.assert_close(features["kind"], encoder.enhancement(image).mean((2, 3)))
    assert [id(p) for p in encoder.shared_parameters()] == [id(p) for p in inner.common.parameters()]
    twin = copy.deepcopy(encoder)
    nn.init.constant_(inner.own.weight, 5.0)
    assert encoder.auxiliary_loss() == 5
    assert twin.auxiliary_loss() != 5  # its own
    assert not hasattr(FeatEnHancer(Maps()), "auxiliary_loss")


def test_a_task_without_the_enhancement_does_not_train_it() -> None:
    module = make_module(enhanced={"kind": True, "depth": False})
    found = gradients(module, batch(("depth",)))
    own = [gradient for name, gradient in found.items() if name.startswith("encoder.enhancement")]
    assert own  # zeros, not None: plain ddp waits for every parameter
    assert all(gradient is not None and not gradient.any() for gradient in own)
    found = gradients(module, batch(("kind",)))
    assert all(gradient is not None for gradient in found.values())
    assert all(gradient.any() for name, gradient in found.items() if name.startswith("encoder.enhancement"))


@pytest.mark.parametrize("at", ["parameters", "features"])
@pytest.mark.parametrize("enhanced", [None, {"kind": True, "depth": False}], ids=["all", "one"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_gradient_methods_train_it(at: Any, enhanced: dict[str, bool] | None, checkpointing: bool) -> None:
    module = make_module(MGDA(at=at), enhanced=enhanced, checkpointing=checkpointing)
    reference = make_module(MGDA(at=at, engine="sequential"), enhanced=enhanced)
    found, expected = gradients(module, batch()), gradients(reference, batch())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)
    assert all(gradient is not None and gradient.any() for gradient in found.values())


def test_it_exports_with_a_free_batch() -> None:
    encoder = make_module(enhanced={"kind": True, "depth": False}).encoder.eval()
    exported = torch.export.export(
        encoder, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim("batch")},), strict=False
    )
    images = torch.randn(5, 3, 16, 16)
    torch.testing.assert_close(exported.module()(images), encoder(images))


def test_a_compiled_training_step_gives_the_same_gradients() -> None:
    torch._dynamo.reset()
    module, other = make_module(EqualWeighting()), make_module(EqualWeighting())
    expected = gradients(module, batch())
    other.encoder.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(gradients(other, batch()), expected, rtol=1e-4, atol=1e-7)


def test_a_checkpoint_rebuilds_the_encoder_behind_it(tmp_path: Path) -> None:
    import lightning.pytorch as pl

    torch.manual_seed(0)
    encoder = FeatEnHancer(TimmEncoder("mobilenetv3_small_050", "maps"), {"kind": True, "depth": False}, fusion="mean")
    tasks = {"kind": SemanticSegmentation(num_classes=3, head=ConvHead), "depth": Depth(head=ConvHead)}
    module = MultiTaskModule(encoder, tasks)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, default_root_dir=tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "model.ckpt")
    again = MultiTaskModule.load_from_checkpoint(tmp_path / "model.ckpt").eval()
    image = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(again(image), module.eval()(image))
