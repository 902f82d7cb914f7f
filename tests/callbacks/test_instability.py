"""InstabilityMonitor in Trainers."""

from __future__ import annotations

import copy
import csv
import json
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_mtl import NonFiniteLossError
from lightning_mtl.callbacks import GrokkingDetector, InstabilityError, InstabilityMonitor, InstabilityWarning
from lightning_mtl.callbacks.instability.alarms import LossSpikes, extrapolate_growth
from lightning_mtl.callbacks.instability.blocks import find_blocks, group_parameters
from lightning_mtl.callbacks.instability.statistics import ParameterStatistics, root_mean_square
from lightning_mtl.callbacks.instability.training_step import AroundTrainingStep
from lightning_mtl.scaling import AttentionLogitForecast
from tests.callbacks.language import Language, LanguageOfTheOtherPackage, ManualLanguage, tokens
from tests.toys import loader, make_module, make_trainer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "instability.json").read_text())["cases"]


def fit(module: Any, monitor: Callback | None, package: Any = pl, data: Any = None, **arguments: Any) -> Any:
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "max_epochs": 1,
        "callbacks": [] if monitor is None else [monitor],
    }
    trainer = package.Trainer(**(defaults | arguments))
    trainer.fit(module, tokens() if data is None else data)
    return trainer


# ---------------------------------------------------------------------- a watcher only watches
def manual() -> ManualLanguage:
    return ManualLanguage()


def compiled() -> Language:
    module = Language()
    module.net = torch.compile(module.net, backend="eager")
    return module


def sgd() -> Language:
    module = Language()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)  # type: ignore[method-assign]
    return module


RUNS: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "automatic": (Language, pl, {}),
    "pytorch_lightning": (LanguageOfTheOtherPackage, pytorch_lightning, {}),
    "manual": (manual, pl, {}),
    "accumulated_and_clipped": (Language, pl, {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}),
    "bf16": (Language, pl, {"precision": "bf16-mixed"}),
    "sgd": (sgd, pl, {}),
    "compiled": (compiled, pl, {}),
    "skip": (Language, pl, {}),
}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("name", RUNS)
def test_weights_and_random_numbers_are_those_of_a_run_without_it(name: str) -> None:
    make, package, arguments = RUNS[name]
    torch.compiler.reset()
    found = []
    for monitor in (None, InstabilityMonitor(every_n_steps=2, on_critical="skip" if name == "skip" else "warn")):
        torch.manual_seed(1)
        module = make()
        fit(module, monitor, package, tokens(shuffle=True), **arguments)
        found.append(({key: value.clone() for key, value in module.state_dict().items()}, torch.rand(4)))
        if monitor is not None:
            assert "max_attention_logit" in monitor.history.curves
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


# ---------------------------------------------------------------------- what is logged
@pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=["lightning", "pytorch_lightning"])
def test_everything_promised_is_logged(package: Any, tmp_path: Path) -> None:
    monitor = InstabilityMonitor(every_n_steps=4)
    module = Language() if package is pl else LanguageOfTheOtherPackage()
    kind = CSVLogger if package is pl else pytorch_lightning.loggers.CSVLogger
    trainer = fit(module, monitor, package, logger=kind(tmp_path), default_root_dir=tmp_path)
    with Path(trainer.log_dir, "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["instability/max_attention_logit"]]
    assert len(rows) == 3  # steps 0, 3 and 7
    blocks = ["net.embedding", "net.blocks.0", "net.blocks.1", "net.norm", "net.head"]
    expected = {f"instability/{size}_rms/{block}" for size in ("gradient", "parameter", "update") for block in blocks}
    expected |= {f"instability/activation_rms/{block}" for block in blocks}
    expected |= {f"instability/{size}_rms/all" for size in ("activation", "gradient", "parameter", "update")}
    expected |= {f"instability/attention_{what}/net.blocks.{i}.attn" for what in ("logit", "entropy") for i in (0, 1)}
    expected |= {"instability/log_z/output", "instability/log_z_drift/output", "instability/max_abs_log_z"}
    expected |= {"instability/max_attention_logit", "instability/min_attention_entropy"}
    expected |= {"instability/loss_spikes", "instability/nonfinite_steps"}
    logged = {key for key in rows[0] if key.startswith("instability/")}
    assert logged == expected
    assert expected <= set(trainer.callback_metrics)
    assert all(math.isfinite(float(row[key])) for row in rows for key in expected)
    assert Path(trainer.log_dir, "instability.png").stat().st_size > 1000
    tracked = monitor.summary()["tracked"]
    assert tracked["attention_logit"] == ["net.blocks.0.attn", "net.blocks.1.attn"]
    assert monitor.summary()["alarms"] == []


def test_values_over_all_modules_alone_can_be_logged() -> None:
    trainer = fit(Language(), InstabilityMonitor(log_modules=False))
    names = {key for key in trainer.callback_metrics if key.startswith("instability/")}
    assert "instability/max_attention_logit" in names
    assert not any("blocks" in name for name in names)


def test_only_tracked_quantities_are_measured() -> None:
    trainer = fit(Language(), InstabilityMonitor(track=["gradients"]))
    names = {key.split("/")[1] for key in trainer.callback_metrics if key.startswith("instability/")}
    assert names == {"gradient_rms", "loss_spikes", "nonfinite_steps"}


def test_sizes_are_those_computed_by_hand() -> None:
    torch.manual_seed(0)
    module, monitor = Language(dropout=0.0), InstabilityMonitor()
    reference = copy.deepcopy(module)
    fit(module, monitor, max_steps=1, data=tokens(4))
    batch = next(iter(tokens(4)))
    activations: list[Tensor] = []
    reference.net.blocks[0].register_forward_hook(lambda *given: activations.append(given[-1]))
    reference.loss(batch).backward()
    block = list(reference.net.blocks[0].parameters())
    last = monitor.history.last

    def rms(tensors: list[Tensor]) -> float:
        return float(torch.cat([t.detach().flatten() for t in tensors]).square().mean().sqrt())

    gradients = [p.grad for p in block if p.grad is not None]
    assert last["gradient_rms"]["net.blocks.0"] == pytest.approx(rms(gradients), rel=1e-5)
    assert last["activation_rms"]["net.blocks.0"] == pytest.approx(rms(activations), rel=1e-5)
    update = [g / (g.abs() + 1e-8) for g in gradients]  # Adam's first step
    assert last["update_rms"]["net.blocks.0"] == pytest.approx(rms(update), rel=1e-4)
    after = list(module.net.blocks[0].parameters())
    assert last["parameter_rms"]["net.blocks.0"] == pytest.approx(rms(after), rel=1e-5)


@pytest.mark.parametrize("index", range(3))
def test_sizes_of_gradient_and_update_of_an_adam_step_are_the_golden_ones(index: int) -> None:
    case = [case for case in GOLDEN if case["inputs"]["function"] == "adamw_first_step"][index]
    inputs, expected = case["inputs"], case["expected"]
    layer = nn.ParameterDict({"w": nn.Parameter(torch.tensor(inputs["param"], dtype=torch.float64))})
    layer["w"].grad = torch.tensor(inputs["grad"], dtype=torch.float64)
    rate = inputs["lr"] * inputs["schedule"]
    optimizer = torch.optim.AdamW(layer.parameters(), lr=rate, betas=tuple(case["args"]["betas"]), eps=1e-8)
    sizes = ParameterStatistics(group_parameters(layer, {}), ["gradients", "updates"])
    sizes.before_step(optimizer)
    optimizer.step()
    sizes.after_step()
    found = {name: root_mean_square(float(total), count) for name, ((total, count),) in _only(sizes.sums).items()}
    assert found["gradients"] == pytest.approx(expected["grad_rms"], rel=case["rtol"])
    assert found["updates"] == pytest.approx(expected["update_rms"], rel=case["rtol"])
    assert sizes.epsilons == {"w": 1e-8}


def _only(sums: dict[str, Any]) -> dict[str, Any]:
    return {quantity: tuple(values.values()) for quantity, values in sums.items()}


def test_updates_of_other_optimizers_are_differences_over_the_learning_rate() -> None:
    layer = nn.Linear(3, 2, bias=False)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.25)
    layer.weight.grad = torch.full((2, 3), 2.0)
    sizes = ParameterStatistics({"w": [layer.weight]}, ["updates"])
    sizes.before_step(optimizer)
    optimizer.step()
    sizes.after_step()
    assert root_mean_square(*map(float, sizes.sums["updates"]["w"])) == pytest.approx(2.0, rel=1e-5)
    assert sizes.epsilons == {}


def test_accumulated_batches_count_as_one_step_with_the_largest_logit_of_all() -> None:
    torch.manual_seed(0)
    module = Language(dropout=0.0)
    several, joined = InstabilityMonitor(), InstabilityMonitor()
    fit(copy.deepcopy(module), several, max_steps=1, accumulate_grad_batches=4, data=tokens(16, 4))
    fit(copy.deepcopy(module), joined, max_steps=1, data=tokens(16, 16))
    assert several.step == joined.step == 1
    for quantity, values in joined.history.last.items():
        assert several.history.last[quantity] == pytest.approx(values, rel=2e-4), quantity


def test_in_manual_optimization_every_optimizer_and_loss_is_seen() -> None:
    monitor = InstabilityMonitor(every_n_steps=1)
    fit(ManualLanguage(), monitor, max_epochs=1)
    sizes = monitor.history.last["update_rms"]
    assert {"critic.0", "critic.2", "net.blocks.0"} <= set(sizes)
    assert monitor.step == 8
    assert len(monitor.spikes.losses) == 8


class Passerby(Callback):
    """Runs the module beside the training steps, in every way that callbacks do."""

    def run(self, module: Any) -> None:
        batch = 7 - next(iter(tokens(8, 8)))
        module.loss(batch)  # a look-ahead or a replay
        with torch.no_grad():
            module.loss(batch)
        module.eval()
        module.loss(batch)  # a kernel
        module.train()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.run(pl_module)

    on_before_optimizer_step = on_train_batch_end = on_train_batch_start

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Tensor) -> None:
        self.run(pl_module)

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.run(pl_module)


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_forward_passes_of_validation_and_of_other_callbacks_are_not_seen(first: bool) -> None:
    class Validated(Language):
        def validation_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.loss(7 - batch)

    found = []
    for watched in (False, True):
        torch.manual_seed(0)
        module, monitor = Validated(dropout=0.0), InstabilityMonitor(every_n_steps=1)
        others = [Passerby()] if watched else []
        validated = {"limit_val_batches": 2 if watched else 0, "val_check_interval": 1}
        fit(module, None, callbacks=[*others, monitor] if first else [monitor, *others], max_steps=4, **validated)
        found.append(monitor.state_dict())
    assert found[1] == found[0]
    assert found[0]["history"]["last"]["attention_logit"]


def test_the_kernel_of_the_grokking_detector_is_not_seen() -> None:
    class Labelled(Language):
        def forward(self, batch: Tensor) -> Tensor:
            return self.net(batch)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self(batch[0]).transpose(1, 2), batch[1])
            self.log("train", loss)
            return loss

        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val", self.training_step(batch, batch_idx))

    words = next(iter(tokens(16, 16)))
    rows = DataLoader(TensorDataset(words[:, :-1], words[:, 1:]), batch_size=8)
    found = []
    for kernel in (False, True):
        torch.manual_seed(0)
        module, monitor = Labelled(dropout=0.0), InstabilityMonitor(every_n_steps=1)
        detector = GrokkingDetector("train", "val", kernel=kernel, kernel_every_n_checks=1)
        make_trainer(callbacks=[monitor, detector], log_every_n_steps=1, max_epochs=2).fit(module, rows, rows)
        assert bool(detector.report()["all"].kernel) == kernel
        found.append(monitor.state_dict())
    assert found[1] == found[0]


def test_the_strategy_gets_its_training_step_back_in_any_order() -> None:
    class Strategy:
        def training_step(self, batch: int) -> int:
            return batch + 1

    for order in ((0, 1), (1, 0)):
        strategy: Any = Strategy()
        seen: list[str] = []
        watches = [
            AroundTrainingStep(strategy, partial(seen.append, f"{name} starts"), partial(seen.append, f"{name} ends"))
            for name in ("inner", "outer")
        ]
        assert strategy.training_step(3) == 4
        assert seen == ["outer starts", "inner starts", "inner ends", "outer ends"]
        for index in order:
            watches[index].remove()
        assert strategy.training_step(3) == 4
        assert len(seen) == 4
    trainer = fit(Language(), InstabilityMonitor())
    assert "training_step" not in vars(trainer.strategy)


def test_logits_may_come_from_what_the_training_step_returns() -> None:
    class Returns(Language):
        def training_step(self, batch: Tensor, batch_idx: int) -> Any:
            logits = self.net(batch[:, :-1])
            loss = (logits.exp() - 1).square().mean()
            return {"loss": loss, "logits": logits.detach()}

    monitor = InstabilityMonitor(logits=lambda outputs: {"words": outputs["logits"]})
    fit(Returns(), monitor, max_steps=1)
    assert set(monitor.history.last["log_z"]) == {"words"}
    named = InstabilityMonitor(logits=["net.head"])
    fit(Returns(), named, max_steps=1)
    assert set(named.history.last["log_z"]) == {"net.head"}


def test_a_model_without_attention_or_softmax_is_watched_for_the_rest() -> None:
    monitor = InstabilityMonitor()
    module = make_module()
    fit(module, monitor, data=loader())
    tracked = monitor.summary()["tracked"]
    assert set(tracked) == {"log_z", "log_z_drift", "activation_rms", "gradient_rms", "parameter_rms", "update_rms"}
    assert [name for name in tracked["gradient_rms"] if name.startswith("encoder")] == ["encoder"]


# ---------------------------------------------------------------------- blocks
def test_blocks_are_members_of_lists_of_composed_layers_and_what_lies_beside_them() -> None:
    timm = pytest.importorskip("timm")
    vit = find_blocks(timm.create_model("vit_tiny_patch16_224", depth=2))
    assert list(vit) == ["patch_embed", "blocks.0", "blocks.1", "norm", "head"]
    resnet = find_blocks(timm.create_model("resnet18"))
    stages = [f"layer{stage}.{i}" for stage in (1, 2, 3, 4) for i in (0, 1)]
    assert list(resnet) == ["conv1", "bn1", *stages, "fc"]
    assert list(find_blocks(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)))) == ["0", "2"]


def test_every_trained_parameter_belongs_to_one_group() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("vit_tiny_patch16_224", depth=2)
    net.head.requires_grad_(False)
    groups = group_parameters(net, find_blocks(net))
    assert set(groups) == {"patch_embed", "blocks.0", "blocks.1", "norm", "cls_token", "pos_embed"}
    assert sum(len(group) for group in groups.values()) == sum(p.requires_grad for p in net.parameters())


# ---------------------------------------------------------------------- numbers that are not finite
class Breaks(Language):
    """Goes wrong at a step, in one of several ways."""

    def __init__(self, how: str, at: int = 3) -> None:
        super().__init__(dropout=0.0)
        self.how, self.at = how, at

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        broken = batch_idx == self.at
        if broken and self.how == "parameter":
            with torch.no_grad():
                self.net.blocks[1].fc1.weight[0, 0] = torch.nan
        if broken and self.how == "layer":
            handle = self.net.blocks[1].fc1.register_forward_hook(lambda *given: given[-1] * torch.inf)
            loss = self.loss(batch)
            self.net.blocks[1].fc1.register_forward_hook(lambda *given: given[-1] * torch.inf)
            handle.remove()
            return loss
        if broken and self.how == "input":
            states = self.net.embedding(batch[:, :-1]) * torch.nan
            return self.net.head(self.net.blocks[0](states)).mean()  # type: ignore[no-any-return]
        loss = self.loss(batch)
        return loss * torch.inf if broken and self.how == "loss" else loss


@pytest.mark.parametrize(
    ("how", "where", "why"),
    [
        ("layer", "net.blocks.1.fc1", "the first output that is not finite is that of net.blocks.1.fc1"),
        ("parameter", "net.blocks.1.fc1", "the parameter net.blocks.1.fc1.weight is not finite"),
        ("input", "net.blocks.0", "was given inputs that are not finite"),
        ("loss", "loss", "all blocks gave finite outputs"),
    ],
)
def test_a_loss_that_is_not_finite_is_traced_to_its_origin(how: str, where: str, why: str) -> None:
    monitor = InstabilityMonitor(on_critical="stop")
    with pytest.warns(InstabilityWarning, match=why):
        fit(Breaks(how), monitor)
    (alarm,) = monitor.summary()["alarms"]
    assert (alarm["kind"], alarm["step"], alarm["where"], alarm["critical"]) == ("nonfinite", 3, where, True)
    assert monitor.step == 4


def test_looked_for_late_the_step_and_the_block_are_still_found() -> None:
    monitor = InstabilityMonitor(every_n_steps=100, check_every_n_steps=4, on_critical="stop")
    with pytest.warns(InstabilityWarning, match=r"at step 1: the first output .* is that of net.blocks.1"):
        fit(Breaks("layer", at=1), monitor)
    assert monitor.step == 4
    assert monitor.summary()["first_alarm"]["nonfinite"] == 1
    assert monitor.summary()["nonfinite_steps"] == 3


def test_a_gradient_that_is_not_finite_names_its_block() -> None:
    class Broken(Language):
        def on_after_backward(self) -> None:
            self.net.blocks[0].fc1.weight.grad.fill_(torch.inf)

    monitor = InstabilityMonitor(every_n_steps=1, on_critical="raise")
    with (
        pytest.warns(InstabilityWarning),
        pytest.raises(InstabilityError, match=r"the gradient of net.blocks.0 is not finite at step 0"),
    ):
        fit(Broken(), monitor)


def test_a_module_that_raises_by_itself_is_told_where_it_began() -> None:
    module = make_module()
    module.encoder.layers[0].register_forward_hook(lambda *given: given[-1] * torch.nan)
    monitor = InstabilityMonitor()
    with (
        pytest.warns(InstabilityWarning, match=r"the first output that is not finite is that of encoder.layers.0"),
        pytest.raises(NonFiniteLossError),
    ):
        fit(module, monitor, data=loader())
    assert not module.encoder.layers[0]._forward_pre_hooks


# ---------------------------------------------------------------------- alarms
def test_a_spike_stands_out_of_the_losses_before_it() -> None:
    spikes, generator = LossSpikes(threshold=6.0, window=50), torch.Generator().manual_seed(0)
    noise = (0.05 * torch.randn(400, generator=generator)).tolist()
    falling = [3 * 0.99**i + noise[i] for i in range(400)]
    assert not any(spikes.update(loss) for loss in falling)
    assert spikes.update(2.0)
    assert not spikes.update(falling[-1])
    assert [spikes.update(loss) for loss in (2.0, 2.0, 2.1)] == [True, False, False]  # a new level
    assert not spikes.update(math.nan)


def test_loss_spikes_are_counted_and_named() -> None:
    class Spiky(Language):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.loss(batch) * (100 if batch_idx == 30 else 1)

    monitor = InstabilityMonitor(spike_window=20)
    with pytest.warns(InstabilityWarning, match="the loss rose to .* at step 30"):
        trainer = fit(Spiky(), monitor, data=tokens(160, 4))
    assert monitor.summary()["loss_spikes"] == 1
    assert trainer.global_step == 40


def test_attention_logits_raise_two_degrees_of_alarm() -> None:
    def grown(scale: float) -> Language:
        torch.manual_seed(0)
        module = Language(dropout=0.0)
        with torch.no_grad():
            module.net.blocks[1].attn.qkv.weight.mul_(scale)
        return module

    for scale, critical in ((30.0, False), (200.0, True)):
        monitor = InstabilityMonitor()
        with pytest.warns(InstabilityWarning, match=r"attention logits of net.blocks.1.attn reached .*add_qk_norm"):
            fit(grown(scale), monitor, max_steps=1)
        (alarm,) = monitor.summary()["alarms"]
        assert (alarm["where"], alarm["critical"]) == ("net.blocks.1.attn", critical)


def test_small_gradients_and_large_log_z_raise_an_alarm() -> None:
    class Small(Language):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.loss(batch) * 1e-8

    with pytest.warns(InstabilityWarning, match=r"gradient RMS of net.* is .* close to Adam's eps of 1e-08"):
        fit(Small(), InstabilityMonitor(), max_steps=1)
    with pytest.warns(InstabilityWarning, match=r"the mean log Z of output is .*; add a log-partition penalty"):
        fit(Language(), InstabilityMonitor(log_z_warn=1.0), max_steps=1)


@pytest.mark.parametrize(("slope", "verdict"), [(0.5, "stable"), (3.0, "unstable")])
def test_a_forecast_from_smaller_runs_warns_before_the_first_step(slope: float, verdict: str) -> None:
    rows = [
        {"num_params": size, "learning_rate": rate, "max_attention_logit": 0.01 * (size / 100) ** slope}
        for size in (100, 300, 900)
        for rate in (1e-3, 1e-1)
    ]
    monitor = InstabilityMonitor(forecast=AttentionLogitForecast(rows), num_params=1e4, critical=["forecast"])
    if verdict == "stable":
        fit(Language(), monitor, max_steps=1)
        assert monitor.summary()["alarms"] == []
        return
    monitor.on_critical = "raise"
    with (
        pytest.warns(InstabilityWarning, match="from smaller runs"),
        pytest.raises(InstabilityError, match="are expected to reach 1e"),
    ):
        fit(Language(), monitor, max_steps=1)
    assert monitor.step == 0


def test_growing_logits_are_extended_to_twice_the_steps() -> None:
    points = [(step, 3.0 * step**2) for step in range(0, 40, 5)]
    assert extrapolate_growth(points, 70) == pytest.approx(3.0 * 70**2, rel=1e-6)
    assert extrapolate_growth([*points, (40, 5.0)], 80) == pytest.approx(3.0 * 80**2, rel=1e-6)  # an outlier
    assert math.isnan(extrapolate_growth(points[:4], 70))
    assert extrapolate_growth([(i, 10.0 / i) for i in range(1, 9)], 16) == pytest.approx(1.25)


@pytest.mark.filterwarnings("ignore::lightning_mtl.callbacks.InstabilityWarning")
def test_growth_towards_the_critical_value_warns_before_it_is_reached() -> None:
    class Growing(Language):
        def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
            with torch.no_grad():
                self.net.blocks[0].attn.qkv.weight.mul_(1.35)

    monitor = InstabilityMonitor(every_n_steps=1, attention_warn=1e6, attention_critical=1e6)
    fit(Growing(rate=0.0), monitor, data=tokens(120, 4))
    first = monitor.summary()["first_alarm"]
    assert first["forecast"] < first["attention (critical)"]


# ---------------------------------------------------------------------- actions
def test_a_raised_alarm_comes_before_the_update() -> None:
    module = Breaks("loss")
    with pytest.warns(InstabilityWarning), pytest.raises(InstabilityError, match="the loss is inf at step 3"):
        fit(module, InstabilityMonitor(on_critical="raise"))
    assert all(bool(p.isfinite().all()) for p in module.parameters())


@pytest.mark.parametrize("action", ["stop", "lower_lr", "skip"])
def test_a_bad_update_is_dropped_under_every_action(action: Any) -> None:
    module = Breaks("loss")
    with pytest.warns(InstabilityWarning):
        trainer = fit(module, InstabilityMonitor(on_critical=action))
    assert all(bool(p.isfinite().all()) for p in module.parameters())
    assert trainer.global_step == (4 if action == "stop" else 8)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_skipping_a_batch_leaves_weights_and_optimizer_as_before_it() -> None:
    class Good(Language):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
            return None if batch_idx == 3 else self.loss(batch)

    states = []
    for module in (Good(dropout=0.0), Breaks("loss")):
        torch.manual_seed(0)
        module.net.reset_parameters()
        module.configure_optimizers = lambda module=module: torch.optim.AdamW(module.parameters())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InstabilityWarning)
            trainer = fit(module, InstabilityMonitor(on_critical="skip"))
        states.append((module.state_dict(), trainer.optimizers[0].state_dict()["state"]))
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


def test_gradients_that_are_not_finite_and_spikes_can_be_skipped() -> None:
    class Rough(Language):
        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return self.loss(batch) * (1e6 if batch_idx == 30 else 1)

        def on_after_backward(self) -> None:
            if self.global_step == 10:
                self.net.head.weight.grad[0] = torch.nan

    module, before = Rough(), []

    class Weights(Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            before.append(module.net.head.weight.detach().clone())

    monitor = InstabilityMonitor(on_critical="skip", critical=["nonfinite", "loss_spike"], spike_window=20)
    with pytest.warns(InstabilityWarning, match="the loss rose"):
        fit(module, None, data=tokens(160, 4), callbacks=[monitor, Weights()])
    unchanged = [i for i in range(1, 40) if torch.equal(before[i], before[i - 1])]
    assert unchanged == [10, 30]


def test_lowered_learning_rates_stay_lower_under_the_schedule() -> None:
    rates: dict[str, list[float]] = {}
    for how in ("loss", "never"):
        seen = rates.setdefault(how, [])

        class Rates(Callback):
            def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, seen: list[float] = seen) -> None:
                seen.append(trainer.optimizers[0].param_groups[0]["lr"])

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InstabilityWarning)
            monitor = InstabilityMonitor(on_critical="lower_lr", lr_factor=0.25)
            fit(Breaks(how), None, callbacks=[monitor, Rates()])
    ratio = [a / b for a, b in zip(rates["loss"], rates["never"], strict=True)]
    assert ratio == pytest.approx([1.0] * 4 + [0.25] * 4)


# ---------------------------------------------------------------------- resuming
def test_a_resumed_run_continues_every_statistic(tmp_path: Path) -> None:
    def run(steps: int, folder: Path, checkpoint: str | None = None) -> InstabilityMonitor:
        torch.manual_seed(0)
        monitor = InstabilityMonitor(every_n_steps=3, spike_window=10, attention_warn=0.1, attention_critical=1e3)
        saving = ModelCheckpoint(dirpath=folder, save_last=True, every_n_train_steps=5)
        trainer = make_trainer(max_steps=steps, max_epochs=-1, enable_checkpointing=True, callbacks=[monitor, saving])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", InstabilityWarning)
            warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
            trainer.fit(Language(dropout=0.0), tokens(), ckpt_path=checkpoint)
        return monitor

    whole = run(15, tmp_path / "whole")
    run(5, tmp_path / "cut")
    resumed = run(15, tmp_path / "cut", str(tmp_path / "cut" / "last.ckpt"))
    expected, found = whole.state_dict(), resumed.state_dict()
    assert found["step"] == 15
    assert [point[0] for point in found["history"]["curves"]["max_attention_logit"]] == [0, 2, 5, 8, 11, 14]
    assert json.dumps(found["history"]["alarms"]) == json.dumps(expected["history"]["alarms"])
    assert len(found["losses"]) == len(expected["losses"]) == 10
    assert found["history"]["first_log_z"] == expected["history"]["first_log_z"]


# ---------------------------------------------------------------------- wrong set-ups
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be positive, got 0"),
        ({"track": ["momentum"]}, "track must be among .*, got 'momentum'"),
        ({"track": "attention"}, r"track must be a list, got 'attention'; write \['attention'\]"),
        ({"critical": ["everything"]}, "critical must be among"),
        ({"on_critical": "panic"}, "on_critical must be among"),
        (
            {"attention_warn": 10.0, "attention_critical": 1.0},
            "attention_critical must be at least attention_warn=10.0",
        ),
        ({"spike_window": 3}, "spike_window must be at least 10, got 3"),
        ({"lr_factor": 2.0}, r"lr_factor must be in \(0, 1\), got 2.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"InstabilityMonitor: {message}"):
        InstabilityMonitor(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocks": ["net.layers.*"]}, "blocks holds 'net.layers.*', which matches none of the names.*'net.blocks.0'"),
        ({"logits": ["net.classifier"]}, "logits holds 'net.classifier', which matches none"),
        ({"attention": ["*.cross_attn"]}, r"no attention was seen in the first step in modules named .*leave track"),
    ],
    ids=["blocks", "logits", "attention"],
)
def test_names_that_match_nothing_are_refused_with_what_there_is(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit(Language(), InstabilityMonitor(**arguments))


def test_a_quantity_that_was_asked_for_and_not_found_is_an_error() -> None:
    class Regression(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 1)

        def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
            return F.mse_loss(self.layer(batch.float()), torch.zeros(len(batch), 1))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.01)

    for quantity, message in (("attention", "no attention was seen"), ("log_z", "no output logits were seen")):
        with pytest.raises(MisconfigurationException, match=message):
            fit(Regression(), InstabilityMonitor(track=[quantity]))
    fit(Regression(), InstabilityMonitor())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_a_module_compiled_as_a_whole_is_watched_from_outside() -> None:
    torch.compiler.reset()
    monitor = InstabilityMonitor()
    module: Any = torch.compile(Language(dropout=0.0), backend="eager")
    with pytest.warns(InstabilityWarning, match="is compiled as a whole"):
        fit(module, monitor, max_steps=2)
    assert {"gradient_rms", "update_rms"} <= set(monitor.history.last)
    assert "attention_logit" not in monitor.history.last


def test_the_history_is_thinned_and_drawn() -> None:
    monitor = InstabilityMonitor(every_n_steps=1)
    fit(Language(), monitor)
    state = monitor.state_dict()
    curve = state["history"]["curves"]["max_attention_logit"]
    state["history"]["curves"]["max_attention_logit"] = [[i, 1.0] for i in range(2000)]
    monitor.load_state_dict(state)
    monitor.step = 2000
    fit(Language(), monitor, max_steps=1)
    assert len(monitor.history.curves["max_attention_logit"]) == 1001
    assert len(curve) == 8
    assert len(monitor.plot().axes) >= 6
