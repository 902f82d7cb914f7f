"""Memorization and generalization times, the tangent kernel, and what the detector does in a Trainer."""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import pytorch_lightning
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_mtl.callbacks import GrokkingDetector, detect_grokking
from lightning_mtl.callbacks.grokking.detection import change_point
from lightning_mtl.functional import empirical_ntk, kernel_alignment, kernel_distance, kernel_target_alignment
from tests.toys import Table, loader, make_module, make_trainer

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "grokking.json").read_text())["cases"]
PLAIN = {"train_metric": "train_loss", "val_metric": "val_loss"}


# ---------------------------------------------------------------------- detection
@pytest.mark.parametrize("case", [case for case in GOLDEN if case["inputs"]["function"] == "detect_grokking"])
def test_times_and_state_are_those_of_the_reference(case: dict[str, Any]) -> None:
    inputs, expected = dict(case["inputs"]), case["expected"]
    inputs.pop("function")
    found = detect_grokking(train=inputs.pop("train_rel"), val=inputs.pop("val_rel"), **inputs)
    assert (found.memorised_at, found.generalised_at) == (expected["t_train"], expected["t_val"])
    assert (found.lag, found.ratio, found.state) == (expected["delay"], expected["ratio"], expected["state"])


def curve(falls_at: int, length: int = 200, low: float = 0.02, noise: float = 0.0, seed: int = 0) -> list[float]:
    values = np.where(np.arange(length) < falls_at, 1.0, low)
    return (values + noise * np.random.default_rng(seed).normal(size=length)).tolist()


STEPS = list(range(10, 2010, 10))


def test_single_spikes_do_not_count_and_nan_breaks_the_row() -> None:
    val = curve(150)
    val[20] = 0.0
    val[150] = math.nan
    found = detect_grokking(STEPS, curve(10), val)
    assert (found.memorised_at, found.generalised_at, found.state) == (STEPS[10], STEPS[151], "grokked")


def test_accuracies_are_read_upwards() -> None:
    train, val = (1 - np.array(curve(at)) for at in (5, 100))
    found = detect_grokking(STEPS, train, val, train_threshold=0.9, val_threshold=0.8, mode="max")
    assert (found.memorised_at, found.generalised_at) == (STEPS[5], STEPS[100])


@pytest.mark.parametrize("threshold", ["change_point", "auto"])
def test_without_thresholds_times_are_found_above_a_floor_of_label_noise(threshold: Any) -> None:
    train, val = curve(10, low=0.3), curve(120, low=0.4)
    found = detect_grokking(STEPS, train, val, threshold, threshold)
    assert (found.memorised_at, found.generalised_at, found.state) == (STEPS[10], STEPS[120], "grokked")
    assert detect_grokking(STEPS, train, val).state == "fitting"  # a tenth of the first value is out of reach


@pytest.mark.parametrize("threshold", ["change_point", "auto", 0.1])
def test_a_validation_curve_that_never_halves_has_not_generalised(threshold: Any) -> None:
    val = np.linspace(1, 0.6, 200).tolist()
    assert detect_grokking(STEPS, curve(10), val, threshold, threshold).state == "memorised"


def test_smoothing_finds_the_time_that_regular_spikes_hide() -> None:
    val = curve(100)
    val[::3] = [0.5] * len(val[::3])
    assert detect_grokking(STEPS, curve(10), val, patience=3).generalised_at is None
    found = detect_grokking(STEPS, curve(10), val, patience=3, smoothing=3).generalised_at
    assert found is not None
    assert abs(found - STEPS[100]) <= 10 * 2


def test_change_points_are_found_within_a_check_or_two_and_not_in_noise() -> None:
    rng = np.random.default_rng(1)
    for trial in range(50):
        falls_at = int(rng.integers(20, 180))
        noisy = np.array(curve(falls_at, low=0.2, noise=0.2, seed=trial))
        found = change_point(noisy)
        assert found is not None
        assert abs(found - falls_at) <= 2
        assert change_point(1 + 0.2 * rng.normal(size=200)) is None


def test_a_curve_grown_check_by_check_keeps_its_first_crossing() -> None:
    train, val = curve(10, noise=0.01), curve(100, noise=0.01)
    seen = [detect_grokking(STEPS[:n], train[:n], val[:n]).generalised_at for n in range(1, 200)]
    assert seen[:100] == [None] * 100
    assert set(seen[101:]) == {STEPS[100]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 2], [1.0], [1.0, 2.0]), "must have one length, got 2, 1, 2"),
        (([1, 1], [1.0, 1.0], [1.0, 1.0]), "steps must increase, got 1 after 1"),
    ],
    ids=["lengths", "steps"],
)
def test_curves_that_do_not_fit_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        detect_grokking(*arguments)


# ---------------------------------------------------------------------- in a Trainer
class Scripted(pl.LightningModule):
    """Logs curves that were written beforehand, one value a step and task."""

    def __init__(self, train: dict[str, list[float]], val: dict[str, list[float]], per_epoch: bool = False) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.scripts = {"train": train, "val": val}
        self.per_epoch = per_epoch

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs)

    def write(self, stage: str, position: int, **options: Any) -> None:
        for name, script in self.scripts[stage].items():
            self.log(name, torch.tensor(script[min(position, len(script) - 1)]), **options)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.write("train", self.global_step, on_step=not self.per_epoch, on_epoch=self.per_epoch)
        return self(batch[0]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.write("val", self.global_step - (not self.trainer.sanity_checking))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def pairs(rows: int = 8) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(rows, 2, generator=generator)
    return DataLoader(TensorDataset(inputs, inputs[:, :1] * inputs[:, 1:]), batch_size=rows)


def run_script(
    detector: GrokkingDetector, train: list[float], val: list[float], kind: Any = pl, **options: Any
) -> tuple[GrokkingDetector, Any]:
    module = Scripted({"train_loss": train}, {"val_loss": val}, per_epoch=options.pop("per_epoch", False))
    callbacks = [detector, *options.pop("callbacks", [])]
    trainer = make_trainer(max_epochs=len(train), log_every_n_steps=1, callbacks=callbacks, **options)
    trainer.fit(module, pairs(), pairs())
    return detector, trainer


def test_a_plain_module_is_watched_and_its_numbers_are_logged(tmp_path: Path) -> None:
    train, val = [1.0, 0.5, 0.05] + [0.01] * 9, [1.0] * 9 + [0.05, 0.02, 0.01]
    logger = CSVLogger(tmp_path, name=None, version="")
    detector, trainer = run_script(
        GrokkingDetector(**PLAIN, kernel_every_n_checks=1, figure=False), train, val, logger=logger
    )
    report = detector.report()["all"]
    assert (report.state, report.memorised_at, report.generalised_at, report.lag) == ("grokked", 3, 10, 7)
    assert report.still_lazy is False
    names = ["state", "gap", "memorised_at", "generalised_at", "lag", "kernel_distance", "alignment"]
    names += ["centred_alignment", "difficulty", "lazy", "weight_norm", "parameter_distance"]
    assert {f"grokking/{name}" for name in names} <= set(trainer.callback_metrics)
    assert trainer.callback_metrics["grokking/state"] == 3
    assert trainer.callback_metrics["grokking/lag"] == 7
    table = (tmp_path / "metrics.csv").read_text().splitlines()
    column, steps = (table[0].split(",").index(name) for name in ("grokking/state", "step"))
    states = {int(row.split(",")[steps]): float(row.split(",")[column]) for row in table[1:] if row.split(",")[column]}
    assert states == dict(enumerate([0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 3, 3], start=0))


def test_tasks_are_judged_one_by_one() -> None:
    train = {"train/a/loss": [1.0] + [0.01] * 9, "train/b/loss": [1.0] * 10}
    val = {"val/a/loss": [1.0] * 7 + [0.01] * 3, "val/b/loss": [2.0] * 10}
    detector = GrokkingDetector(tasks=["a", "b"], kernel=False, figure=False)
    trainer = make_trainer(max_epochs=10, log_every_n_steps=1, callbacks=[detector])
    trainer.fit(Scripted(train, val), pairs(), pairs())
    found = detector.report()
    assert (found["a"].state, found["b"].state) == ("grokked", "fitting")
    assert trainer.callback_metrics["grokking/b/gap"] == 2
    assert "grokking/b/lag" not in trainer.callback_metrics


def test_still_lazy_is_flagged_with_its_evidence(caplog: pytest.LogCaptureFixture) -> None:
    detector = GrokkingDetector(**PLAIN, kernel_every_n_checks=1, figure=False)
    with caplog.at_level(logging.INFO):
        run_script(detector, [1.0] + [0.01] * 5, [1.0] * 6)
    report = detector.report()["all"]
    assert report.state == "memorised"
    assert report.still_lazy is True  # the kernel of a linear layer never moves
    assert "validation metric 1 -> 1" in report.evidence
    assert "from initialization" in report.evidence
    assert "still lazy: expect delayed generalization" in caplog.text


def test_first_values_are_taken_before_training_where_they_can_be_seen() -> None:
    detector = GrokkingDetector(**PLAIN, kernel=False, figure=False)
    run_script(detector, [4.0, 0.3, 0.3, 0.3], [5.0, 0.4, 0.4, 0.4], check_val_every_n_epoch=2)
    curves = detector.curves["all"]
    assert (curves.train_reference, curves.val_reference) == (4, 5)
    assert curves.steps == [2, 4]
    assert detector.report()["all"].state == "generalised"


def test_training_metrics_of_an_epoch_are_read_at_its_end() -> None:
    train, val = [1.0, 0.5, 0.25, 0.05, 0.02], [1.0] * 5
    detector = GrokkingDetector(**PLAIN, kernel=False, figure=False)
    _, trainer = run_script(detector, train, val, per_epoch=True)
    curves = detector.curves["all"]
    assert curves.steps == [1, 2, 3, 4, 5]
    assert curves.train == pytest.approx(train)
    assert trainer.callback_metrics["grokking/gap"].item() == pytest.approx(1 / 0.02)


def test_infinite_values_are_counted_and_do_not_hide_the_times() -> None:
    detector = GrokkingDetector(**PLAIN, kernel=False, figure=False)
    run_script(detector, [1.0, math.nan, 0.05, 0.01, 0.01], [1.0, 1.0, 0.05, math.inf, 0.01])
    report = detector.report()["all"]
    assert report.non_finite == 2
    assert report.memorised_at == 3
    assert report.generalised_at is None


def test_it_stops_when_everything_has_generalised() -> None:
    detector = GrokkingDetector(**PLAIN, kernel=False, figure=False, stop_when_generalised=True)
    _, trainer = run_script(detector, [1.0] + [0.01] * 9, [1.0] * 3 + [0.01] * 7)
    assert trainer.global_step == 5


def test_early_stopping_that_could_come_too_early_is_reported() -> None:
    stopper = EarlyStopping("val_loss", patience=50)
    with pytest.warns(UserWarning, match=r"\['all'\] are memorised but have not generalised, and EarlyStopping"):
        run_script(
            GrokkingDetector(**PLAIN, kernel=False, figure=False), [1.0] + [0.01] * 5, [1.0] * 6, callbacks=[stopper]
        )


def test_figure_goes_to_tensorboard_and_to_the_folder_of_the_run(tmp_path: Path) -> None:
    logger = TensorBoardLogger(tmp_path, name="", version="run")
    run_script(GrokkingDetector(**PLAIN), [1.0] + [0.01] * 5, [1.0] * 4 + [0.01] * 2, logger=logger)
    assert (tmp_path / "run" / "grokking.png").stat().st_size > 10_000
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    assert events.Tags()["images"] == ["grokking"]
    assert [event.value for event in events.Scalars("grokking/state")] == [0, 0, 1, 1, 1, 3]


# ---------------------------------------------------------------------- real networks
class Net(nn.Module):
    """Everything that a watcher could disturb: running statistics, dropout, a buffer that counts in eval mode too."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return self.layers(inputs) + 0.01 * torch.rand(3)


class Plain(pl.LightningModule):
    """Knows nothing of this package; counts and scales the gradients of a parameter."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.net = Net()
        self.automatic_optimization = not manual
        self.hooked = 0

    def configure_model(self) -> None:
        next(self.parameters()).register_hook(self.half)

    def half(self, gradient: Tensor) -> Tensor:
        self.hooked += 1
        return gradient / 2

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)

    def loss(self, batch: Any) -> Tensor:
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        if self.automatic_optimization:
            return loss
        optimizer = self.optimizers(use_pl_optimizer=False)  # such steps are not counted by the Trainer
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        return None

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


class OldPlain(pytorch_lightning.LightningModule):
    """The same, in the other of the two packages."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    forward, loss = Plain.forward, Plain.loss
    validation_step, configure_optimizers = Plain.validation_step, Plain.configure_optimizers

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss)
        return loss


def rows(shuffle: bool = False, batch_size: int = 16) -> DataLoader[Any]:
    table = Table(64)
    return DataLoader(TensorDataset(table.inputs, table.targets["kind"]), batch_size=batch_size, shuffle=shuffle)


def fit(detector: GrokkingDetector | None, seed: int = 5, **options: Any) -> tuple[Any, Any, list[Any]]:
    """Return the module, the Trainer and the random numbers that would come next."""
    pl.seed_everything(seed, verbose=False)
    module = options.pop("module", Plain)()
    trainer = make_trainer(
        **{
            "max_epochs": 3,
            "log_every_n_steps": 1,
            "callbacks": [] if detector is None else [detector],
            "val_check_interval": 2,
            **options,
        }
    )
    trainer.fit(module, rows(shuffle=True), rows())
    return module, trainer, [torch.rand(3).tolist(), float(np.random.rand())]  # noqa: NPY002


def eager(**options: Any) -> GrokkingDetector:
    return GrokkingDetector(**{**PLAIN, "kernel": True, "kernel_every_n_checks": 1, "figure": False, **options})


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # a compiled training_step
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"module": lambda: Plain(manual=True)},
        {"precision": "bf16-mixed", "accumulate_grad_batches": 2},
        {"precision": "64-true", "gradient_clip_val": 0.1},
        {"precision": "bf16-true"},
        {"module": lambda: torch.compile(Plain(), backend="eager")},
    ],
    ids=["plain", "manual", "bf16-accumulation", "float64-clipping", "bf16-true", "compiled"],
)
def test_training_is_the_same_bit_for_bit_with_and_without_it(options: dict[str, Any]) -> None:
    module, _, numbers = fit(None, **options)
    detector = eager()
    watched, trainer, watched_numbers = fit(detector, **options)
    expected, found = (dict(m.named_parameters()) | dict(m.named_buffers()) for m in (module, watched))
    for name, value in expected.items():
        assert found[name].equal(value), name
    assert watched_numbers == numbers
    assert watched.hooked == module.hooked > 0
    curves = detector.curves["all"]
    assert len(curves.steps) == 6
    assert curves.steps == sorted(set(curves.steps))
    assert curves.measured_at == [0, *curves.steps]
    assert 0 < curves.measures["kernel_distance"][-1] < 1
    assert all(math.isfinite(value) for values in curves.measures.values() for value in values)
    assert trainer.callback_metrics["grokking/parameter_distance"] > 0


def test_it_watches_in_a_trainer_of_the_other_package_too() -> None:
    detector = eager()
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_epochs=2,
        log_every_n_steps=1,
        callbacks=[detector],
    )
    trainer.fit(OldPlain(), rows(), rows())
    assert detector.curves["all"].steps == [4, 8]
    assert trainer.callback_metrics["grokking/kernel_distance"] > 0


class Snapshots(pl.Callback):
    """Keeps the weights at every validation, and before the first step."""

    def __init__(self) -> None:
        self.kept: list[dict[str, Tensor]] = []

    def keep(self, module: pl.LightningModule) -> None:
        self.kept.append(copy.deepcopy(module.state_dict()))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.keep(pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.keep(pl_module)


class Quiet(Plain):
    """Without the noise in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))  # type: ignore[assignment]


def test_measures_are_those_of_the_explicit_kernel() -> None:
    detector, snapshots = eager(kernel_samples=10), Snapshots()
    pl.seed_everything(1, verbose=False)
    trainer = make_trainer(max_epochs=2, log_every_n_steps=1, callbacks=[detector, snapshots])
    trainer.fit(Quiet(), rows(), rows())
    inputs, classes = (column[:10] for column in next(iter(rows())))
    kernels = []
    for weights in snapshots.kept:
        module = Quiet()
        module.load_state_dict(weights)
        kernels.append(empirical_ntk(module, inputs, list(module.parameters())))
    measures = detector.curves["all"].measures
    expected = {
        "kernel_distance": [kernel_distance(kernel, kernels[0]).item() for kernel in kernels],
        "alignment": [kernel_target_alignment(kernel, classes).item() for kernel in kernels],
        "centred_alignment": [kernel_target_alignment(kernel, classes, centered=True).item() for kernel in kernels],
    }
    for name, values in expected.items():
        assert measures[name] == pytest.approx(values, rel=1e-5, abs=1e-9), name
    first, last = snapshots.kept[0], snapshots.kept[-1]
    moved = torch.cat([(last[name] - first[name]).flatten() for name in first]).norm()
    norm, start = (torch.cat([value.flatten() for value in kept.values()]).norm() for kept in (last, first))
    metrics = trainer.callback_metrics
    assert metrics["grokking/parameter_distance"].item() == pytest.approx((moved / start).item(), rel=1e-5)
    assert metrics["grokking/weight_norm"].item() == pytest.approx(norm.item(), rel=1e-6)


def test_in_a_multi_task_module_every_task_has_its_own_kernel() -> None:
    detector = GrokkingDetector(kernel=True, kernel_every_n_checks=1, figure=False)
    module, snapshots = make_module(), Snapshots()
    trainer = make_trainer(max_epochs=2, log_every_n_steps=1, callbacks=[detector, snapshots])
    trainer.fit(module, loader(), loader())
    report = detector.report()
    assert list(report) == ["size", "kind", "age"]
    inputs, targets = Table().batch(slice(8))
    for name in report:
        kernels = []
        for weights in snapshots.kept:
            module.load_state_dict(weights)
            kernels.append(empirical_ntk(lambda x, n=name: module(x)[n], inputs, list(module.parameters())))
        assert report[name].kernel["kernel_distance"] == pytest.approx(
            kernel_distance(kernels[-1], kernels[0]).item(), rel=1e-4
        )
        assert report[name].kernel["alignment"] == pytest.approx(
            kernel_target_alignment(kernels[-1], targets[name]).item(), rel=1e-4
        )


def test_the_kernel_of_some_parameters_is_theirs() -> None:
    detector, snapshots = eager(kernel_parameters=["net.2"], kernel_samples=8), Snapshots()
    trainer = make_trainer(max_epochs=1, log_every_n_steps=1, callbacks=[detector, snapshots])
    trainer.fit(Quiet(), rows(), rows())
    kernels = []
    for weights in snapshots.kept:
        module = Quiet()
        module.load_state_dict(weights)
        inputs = next(iter(rows()))[0][:8]
        kernels.append(empirical_ntk(module, inputs, list(module.net[2].parameters())))
    expected = 1 - kernel_alignment(kernels[1], kernels[0]).item()
    assert detector.curves["all"].measures["kernel_distance"][-1] == pytest.approx(expected, rel=1e-5)


def test_other_batches_are_read_with_a_function() -> None:
    class Dictionaries(Quiet):
        def loss(self, batch: Any) -> Tensor:
            return nn.functional.cross_entropy(self.net(batch["x"]), batch["y"])

    table = Table(16)
    batches = [{"x": table.inputs, "y": table.targets["kind"]}]

    def trained(detector: GrokkingDetector) -> GrokkingDetector:
        trainer = make_trainer(callbacks=[detector], log_every_n_steps=1)
        trainer.fit(Dictionaries(), DataLoader(batches, batch_size=None), DataLoader(batches, batch_size=None))
        return detector

    with pytest.warns(UserWarning, match=r"cannot be measured: a batch should be \(inputs, targets\), it is a dict"):
        detector = trained(GrokkingDetector(**PLAIN, figure=False))
    assert detector.report()["all"].still_lazy is None
    with pytest.raises(MisconfigurationException, match=r"cannot be measured.*kernel_forward=.*kernel=False"):
        trained(eager())
    detector = trained(eager(kernel_forward=lambda module, batch: (module.net(batch["x"]), batch["y"])))
    assert set(detector.report()["all"].kernel) == {"kernel_distance", "alignment", "centred_alignment", "difficulty"}


def test_batches_of_several_data_sets_are_split_each() -> None:
    detector = GrokkingDetector(kernel=True, kernel_every_n_checks=1, kernel_samples=4, figure=False)
    table = Table(16)
    sources = {
        name: DataLoader(TensorDataset(table.inputs, table.targets[name]), batch_size=size)
        for name, size in (("size", 8), ("kind", 4))
    }
    module = make_module(tasks={name: make_module().tasks[name] for name in sources})
    trainer = make_trainer(log_every_n_steps=1, callbacks=[detector])
    trainer.fit(module, *(CombinedLoader(sources, mode) for mode in ("min_size", "max_size")))
    for report in detector.report().values():
        assert report.kernel["kernel_distance"] > 0
        assert report.kernel["alignment"] > 0


def test_by_default_measuring_takes_a_small_share_of_the_time() -> None:
    detector = GrokkingDetector(**PLAIN, figure=False)
    detector._tracker._spent, detector._tracker._elapsed = 1.0, 40.0
    assert not detector._tracker.due(1)
    detector._tracker._elapsed = 60.0
    assert detector._tracker.due(1)


# ---------------------------------------------------------------------- checkpoints and processes
def test_a_resumed_run_knows_what_the_whole_run_knows(tmp_path: Path) -> None:
    options = {"kernel_every_n_checks": 2, "train_threshold": "change_point", "val_threshold": "change_point"}
    train, val = [1.0, 0.5] + [0.01] * 10, [1.0, 1.1, 1.2, 1.1, 1.0, 0.9, 0.1] + [0.02] * 5
    whole, _ = run_script(GrokkingDetector(**PLAIN, **options, figure=False), train, val)

    checkpoints = ModelCheckpoint(tmp_path, every_n_epochs=1, save_top_k=-1, filename="{epoch}")
    first = GrokkingDetector(**PLAIN, **options, figure=False)
    run_script(first, train[:5], val[:5], callbacks=[checkpoints], enable_checkpointing=True)
    resumed = GrokkingDetector(**PLAIN, **options, figure=False)
    trainer = make_trainer(
        max_epochs=12, log_every_n_steps=1, callbacks=[resumed, checkpoints], enable_checkpointing=True
    )
    trainer.fit(
        Scripted({"train_loss": train}, {"val_loss": val}), pairs(), pairs(), ckpt_path=str(tmp_path / "epoch=4.ckpt")
    )
    assert resumed.report() == whole.report()
    assert resumed.curves["all"] == whole.curves["all"]
    state = torch.load(tmp_path / "epoch=4.ckpt", weights_only=True)["callbacks"]
    assert any(key.startswith("GrokkingDetector{") for key in state)


def test_killed_in_the_middle_and_resumed_the_kernel_is_compared_with_the_first_one(tmp_path: Path) -> None:
    def trained(detector: GrokkingDetector, epochs: int, path: Path | None = None, **options: Any) -> Any:
        pl.seed_everything(2, verbose=False)
        trainer = make_trainer(max_epochs=epochs, log_every_n_steps=1, callbacks=[detector], **options)
        trainer.fit(Quiet(), rows(), rows(), ckpt_path=path)
        return trainer

    whole, half, rest = eager(), eager(), eager()
    trained(whole, 4)
    trained(half, 2).save_checkpoint(tmp_path / "half.ckpt")
    trained(rest, 4, tmp_path / "half.ckpt")
    assert rest.curves["all"] == whole.curves["all"]
    other = eager(kernel_outputs=2)
    with pytest.raises(MisconfigurationException, match=r"kernel_outputs and seed must be those of the checkpoint"):
        trained(other, 4, tmp_path / "half.ckpt")


def test_a_new_fit_starts_anew_and_the_same_trainer_goes_on() -> None:
    detector = GrokkingDetector(**PLAIN, kernel=False, figure=False)
    run_script(detector, [1.0, 0.5], [1.0, 0.9])
    _, trainer = run_script(detector, [8.0, 4.0, 2.0], [7.0, 6.0, 5.0])
    curves = detector.curves["all"]
    assert curves.train == [8, 4, 2]
    assert (curves.train_reference, curves.val_reference) == (8, 7)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(trainer.lightning_module, pairs(), pairs())
    assert detector.curves["all"].steps == [1, 2, 3, 4]


def test_two_processes_agree_and_measure_what_one_measures(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = []
    for rank in range(2):
        environment = os.environ | {
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "NODE_RANK": "0",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "TORCHELASTIC_RUN_ID": "test",
            "TORCHELASTIC_USE_AGENT_STORE": "False",
        }
        command = [sys.executable, "-W", "ignore", "-m", "tests.callbacks.grokking_worker", str(tmp_path / "out")]
        runs.append(subprocess.Popen(command, env=environment))
    for run in runs:
        assert run.wait(timeout=120) == 0
    first, second = (json.loads((tmp_path / f"out.{rank}").read_text()) for rank in range(2))
    assert first == second
    assert first["steps"] == [4, 8]
    assert first["train"] == pytest.approx([(4 + 400) / 2, (8 + 800) / 2])  # the mean of what the two logged
    assert len(first["measures"]["kernel_distance"]) == 3
    assert first["measures"]["kernel_distance"][-1] > 0


# ---------------------------------------------------------------------- set-ups that cannot work
def test_a_module_without_tasks_is_told_to_name_its_metrics() -> None:
    with pytest.raises(MisconfigurationException, match=r"Plain has no tasks; give.*train_metric='train_loss'"):
        fit(GrokkingDetector())


@pytest.mark.parametrize(
    ("metrics", "missing"),
    [(("train_loss", "val_los"), "val_metric 'val_los'"), (("train_los", "val_loss"), "train_metric 'train_los'")],
    ids=["val", "train"],
)
def test_a_metric_that_is_never_logged_is_named_beside_those_that_are(metrics: tuple[str, str], missing: str) -> None:
    with pytest.raises(
        MisconfigurationException, match=rf"{missing} was never logged; logged are \['train_loss', 'val_"
    ):
        fit(GrokkingDetector(*metrics, kernel=False, figure=False))


def test_a_training_metric_that_had_no_chance_yet_is_reported_at_the_end() -> None:
    detector = GrokkingDetector("other", "val_loss", kernel=False, figure=False)
    with pytest.warns(UserWarning, match="train_metric 'other' was never logged; log it at least once"):
        fit(detector, log_every_n_steps=50)
    assert detector.report()["all"].state == "fitting"


def test_a_run_without_validation_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match=r"there is no validation.*limit_val_batches above 0"):
        fit(GrokkingDetector(**PLAIN), limit_val_batches=0)


def test_a_run_that_ends_before_its_first_validation_is_reported() -> None:
    with pytest.warns(UserWarning, match="ended after 3 steps without a validation; lower val_check_interval"):
        fit(GrokkingDetector(**PLAIN, kernel=False), max_steps=3, val_check_interval=4)


def test_parameters_that_match_nothing_are_named() -> None:
    with pytest.raises(MisconfigurationException, match=r"'encoder' matches none; there are \['net.layers.0'"):
        fit(eager(kernel_parameters=["encoder"]))


def test_relative_thresholds_of_negative_metrics_are_refused() -> None:
    detector = GrokkingDetector(**PLAIN, kernel=False, figure=False)
    with pytest.raises(MisconfigurationException, match=r"'train_loss' is -1.0; set relative=False"):
        run_script(detector, [-1.0] * 3, [1.0] * 3)


@pytest.mark.parametrize(
    ("batch_size", "normalization", "message"),
    [
        (2, nn.Identity(), "at least 4 samples, it holds 2"),
        (8, nn.BatchNorm1d(16, track_running_stats=False), "normalises with the batch's own statistics"),
    ],
    ids=["small-batch", "batch-statistics"],
)
def test_a_kernel_that_cannot_be_measured_says_why(batch_size: int, normalization: nn.Module, message: str) -> None:
    class Other(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(8, 16), normalization, nn.Linear(16, 3))  # type: ignore[assignment]

    def trained(detector: GrokkingDetector) -> GrokkingDetector:
        trainer = make_trainer(max_steps=2, callbacks=[detector], log_every_n_steps=1, val_check_interval=1)
        trainer.fit(Other(), rows(batch_size=batch_size), rows())
        return detector

    with pytest.raises(MisconfigurationException, match=message):
        trained(eager())
    with pytest.warns(UserWarning, match=message):
        detector = trained(GrokkingDetector(**PLAIN, figure=False))
    assert detector.report()["all"].kernel == {}
    assert detector.curves["all"].steps == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_metric": "train_loss"}, "both metrics or none must hold '{task}'"),
        ({**PLAIN, "tasks": ["a"]}, "tasks must be None unless the metrics hold"),
        ({"mode": "up"}, "mode must be 'min' or 'max', got 'up'"),
        ({"mode": "max", "relative": True}, "relative must be False for mode='max'"),
        ({"val_threshold": "best"}, "val_threshold must be a number, 'auto' or 'change_point', got 'best'"),
        ({"patience": 0}, "patience must be at least 1, got 0"),
        ({"kernel_every_n_checks": 0}, "kernel_every_n_checks must be at least 1, got 0"),
        ({"kernel_samples": 500}, "kernel_samples must be 4 to 256, got 500"),
        ({"min_ratio": 0.5}, "min_ratio must be at least 1, got 0.5"),
        ({"lazy_distance": 1.0}, "lazy_distance must be between 0 and 1, got 1.0"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GrokkingDetector(**arguments)
