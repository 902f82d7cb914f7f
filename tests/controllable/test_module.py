"""Training at many widths, export, and what comes of it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import FAMO, PCGrad
from lightning_mtl.controllable import ControllableModule, WidthConfig
from lightning_mtl.data import TwoGlyphDataModule
from lightning_mtl.nn import FeatureSpec, MLPEncoder, SlimmableConvHead, SlimmableMLP, SlimmableMLPHead, SlimmableResNet
from lightning_mtl.tasks import Depth, MulticlassClassification, Regression

Mode = Literal["slice", "gram", "logits"]
NARROW = WidthConfig(0.25, {"kind": 0.5, "size": 0.25})


def build(**arguments: Any) -> ControllableModule:
    torch.manual_seed(0)
    head = functools.partial(SlimmableMLPHead, hidden=[16])
    tasks = {"kind": MulticlassClassification(num_classes=3, head=head), "size": Regression(head=head)}
    return ControllableModule(SlimmableMLP(6, [32, 32]), tasks, **arguments)


def batch() -> tuple[Tensor, dict[str, Tensor]]:
    inputs = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    return inputs, {"kind": inputs[:, :3].argmax(1), "size": inputs[:, 3:4].clone()}


def gradients(module: torch.nn.Module) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in module.parameters()]


def test_the_gradient_of_a_step_is_the_sum_over_its_configurations() -> None:
    module = build(random_configs=2)
    configs = module.draw_configs(0)
    assert len(configs) == 4
    for config in configs:
        with module.at(config):
            sum(module.task_losses(batch()).values()).backward()
    expected = gradients(module)
    module.zero_grad()
    module.training_step(batch()).backward()
    torch.testing.assert_close(gradients(module), expected)


@pytest.mark.parametrize("balancer", [PCGrad, FAMO])
def test_balancers_train_the_sum_of_the_passes(balancer: Any) -> None:
    module = build(balancer=balancer())
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    smallest = []
    for _ in range(40):
        with module.at(module.smallest):
            smallest.append(sum(loss.item() for loss in module.task_losses(batch()).values()))
        optimizer.zero_grad()
        module.training_step(batch()).backward()
        optimizer.step()
    assert smallest[-1] < 0.7 * smallest[0]


@pytest.mark.parametrize("mode", ["slice", "gram", "logits"])
def test_distillation_grows_from_nothing_and_reaches_the_narrow_networks(mode: Mode) -> None:
    plain, module = build(), build(distillation=mode, distillation_weight=1.0, distillation_ramp=1)
    values, found = [], []
    for network, into in ((plain, values), (module, found)):
        for _ in range(2):
            network.zero_grad()
            total = network.training_step(batch())
            total.backward()
            into.append((total.item(), torch.cat([g.flatten() for g in gradients(network)])))
    assert found[0][0] == pytest.approx(values[0][0])
    torch.testing.assert_close(found[0][1], values[0][1])
    assert found[1][0] > values[1][0]
    assert not torch.allclose(found[1][1], values[1][1])


def test_random_configurations_follow_the_seed_and_the_step_only() -> None:
    module, other = build(random_configs=3), build(random_configs=3)
    torch.rand(5)
    drawn = [module.draw_configs(step) for step in range(20)]
    assert drawn == [other.draw_configs(step) for step in range(20)]
    assert len({str(config) for configs in drawn for config in configs[2:]}) > 20
    assert build(random_configs=3, seed=1).draw_configs(0) != drawn[0]


def test_at_restores_the_widths_and_is_what_evaluation_uses() -> None:
    module = build().eval()
    full = module(batch()[0])
    with module.at(NARROW):
        assert module.config == WidthConfig((0.25, 0.25), NARROW.decoders)
        narrow = module(batch()[0])
    assert module.config == WidthConfig((1.0, 1.0), {"kind": 1.0, "size": 1.0})
    torch.testing.assert_close(module(batch()[0]), full)
    assert not torch.allclose(narrow["kind"], full["kind"])


def dense() -> ControllableModule:
    torch.manual_seed(0)
    head = functools.partial(SlimmableConvHead, hidden=16)
    tasks = {"depth": Depth(head=head), "kind": MulticlassClassification(num_classes=3, head=SlimmableMLPHead)}
    return ControllableModule(SlimmableResNet(3, [8, 16], divisor=4), tasks)


def images() -> tuple[Tensor, dict[str, Tensor]]:
    inputs = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return inputs, {"depth": inputs[:, :1].abs() + 0.1, "kind": torch.arange(8) % 3}


def test_an_exported_network_gives_the_same_with_batch_norm_and_stays_as_it_was() -> None:
    module = dense()
    for _ in range(3):
        module.training_step(images()).backward()
    config = WidthConfig((0.5, 0.25), {"depth": 0.5, "kind": 0.25})
    module.recalibrate(config, [images()[0], images()[0] * 2])
    module.eval()
    plain = module.export(config)
    inputs = images()[0]
    with torch.no_grad(), module.at(config):
        expected = module(inputs)
        torch.testing.assert_close(plain(inputs), expected, rtol=0, atol=1e-6)
    for parameter in module.parameters():
        parameter.data.zero_()
    torch.testing.assert_close(plain(inputs)["kind"].detach(), expected["kind"], rtol=0, atol=1e-6)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (plain, module)]
    assert sizes[0] < 0.5 * sizes[1]


def test_recalibration_makes_evaluation_equal_training_on_one_batch() -> None:
    module, inputs = dense(), images()[0]
    config = WidthConfig((0.25, 0.5), {})
    with module.at(config), torch.no_grad():
        expected = module.train()(inputs)
        before = module.eval()(inputs)["kind"]
    module.train()
    module.recalibrate(config, [inputs])
    assert module.training
    with module.at(config), torch.no_grad():
        found = module.eval()(inputs)
    torch.testing.assert_close(found["kind"], expected["kind"], rtol=1e-2, atol=1e-2)
    assert (found["kind"] - expected["kind"]).norm() < 0.2 * (before - expected["kind"]).norm()


def test_flops_are_those_of_the_closed_form() -> None:
    module = build()
    assert module.flops(module.full, (6,)) == {
        "encoder": 2 * (6 * 32 + 32 * 32),
        "kind": 2 * (32 * 16 + 16 * 3),
        "size": 2 * (32 * 16 + 16),
    }
    assert module.flops(NARROW, (6,)) == {
        "encoder": 2 * (6 * 8 + 8 * 8),
        "kind": 2 * (8 * 8 + 8 * 3),
        "size": 2 * (8 * 8 + 8),
    }


def test_evaluate_leaves_metrics_and_widths_alone() -> None:
    module = build()
    module.tasks["kind"].update_metrics(torch.eye(3), torch.arange(3))
    inputs, targets = batch()
    found = module.evaluate(NARROW, [(inputs, targets)])
    with module.at(NARROW), torch.no_grad():
        predictions = module.eval()(inputs)
    assert found["kind"]["accuracy"] == pytest.approx(
        (predictions["kind"].argmax(1) == targets["kind"]).float().mean().item()
    )
    assert float(module.tasks["kind"].metrics.compute()["accuracy"]) == 1


def test_a_checkpoint_rebuilds_the_module_and_goes_on_drawing(tmp_path: Path) -> None:
    data = TwoGlyphDataModule(num_train=200, num_val=50, num_test=50)
    tasks = {name: MulticlassClassification(num_classes=10, head=SlimmableMLPHead) for name in data.tasks}
    module = ControllableModule(SlimmableMLP(256, [16, 16]), tasks, distillation="slice", random_configs=2)
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(module, data)
    assert float(trainer.callback_metrics["train/distillation"]) > 0
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    loaded = ControllableModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert (loaded.random_configs, loaded.distillation, loaded._steps) == (2, "slice", module._steps) != (2, "slice", 0)
    inputs = torch.randn(3, 1, 16, 16)
    with loaded.at(loaded.smallest), module.at(module.smallest), torch.no_grad():
        torch.testing.assert_close(loaded.eval()(inputs), module.eval()(inputs), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"distillation": "kl"}, "distillation must be 'slice', 'gram', 'logits' or None, got 'kl'"),
        ({"random_configs": -1}, "must not be negative, got -1, 0.2 and 1000"),
        ({"balancer": PCGrad(at="features")}, "PCGrad: at must be 'parameters'"),
    ],
    ids=["distillation", "negative", "features"],
)
def test_arguments_out_of_range_raise(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**arguments)


def test_parts_that_cannot_be_narrowed_raise() -> None:
    tasks = {"size": Regression(head=SlimmableMLPHead)}
    with pytest.raises(TypeError, match="encoder must be slimmable, got MLPEncoder"):
        ControllableModule(MLPEncoder(4, [8]), tasks)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the head of 'size' must be slimmable, got LinearHead"):
        ControllableModule(SlimmableMLP(4, [8]), {"size": Regression()})


def test_unknown_tasks_and_widths_raise() -> None:
    module = build()
    with pytest.raises(ValueError, match=r"unknown tasks \['shape'\]"):
        module.configure(WidthConfig(1.0, {"shape": 1.0}))
    with pytest.raises(ValueError, match=r"width must be one of \[0.25, 0.5, 0.75, 1.0\], got 0.3"):
        module.configure(WidthConfig(1.0, {"kind": 0.3}))


def test_an_exported_network_trains_on() -> None:
    plain = build().export(NARROW)
    assert type(plain) is MultiTaskModule
    plain.training_step(batch()).backward()
    assert all(parameter.grad is not None for parameter in plain.parameters())


def test_evaluate_leaves_frozen_parts_asleep() -> None:
    module = dense().train()
    frozen = [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]
    assert frozen
    for part in frozen:
        part.eval()
    module.evaluate(WidthConfig(0.25, {}), [images()])
    assert module.training
    assert not any(part.training for part in frozen)


class Factory:
    """Builds heads, and cannot be copied, as those of the command line that hold a running Trainer."""

    def __init__(self) -> None:
        self.running = (number for number in range(3))

    def __call__(self, spec: FeatureSpec, out_channels: int) -> SlimmableMLPHead:
        return SlimmableMLPHead(spec, out_channels)


def test_export_does_not_copy_what_builds_the_heads() -> None:
    module = ControllableModule(SlimmableMLP(6, [32]), {"size": Regression(head=Factory())})
    plain = module.export(module.full)
    inputs = torch.randn(2, 6)
    torch.testing.assert_close(plain(inputs), module(inputs))
    assert plain.tasks["size"].head is not module.tasks["size"].head
