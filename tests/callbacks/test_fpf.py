"""Replay, forgetting prioritized finetuning, and what they measure."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import torch.nn.functional as F
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import DWA
from lightning_mtl.callbacks import (
    ContinualMetrics,
    DarkExperienceReplay,
    ExperienceReplay,
    ForgettingPrioritizedFinetuning,
    ModuleChangeMonitor,
    default_groups,
    finetuning_steps,
    gradient_sensitivity,
    module_change,
    select_groups,
)
from lightning_mtl.callbacks.continual.sensitivity import match_groups
from lightning_mtl.data import ReservoirBuffer, RingBuffer
from lightning_mtl.data.continual.buffer import count_samples
from lightning_mtl.losses import DistillationKL
from lightning_mtl.nn import MLPEncoder
from lightning_mtl.tasks import MulticlassClassification
from tests.callbacks.streams import Manual, Plain, make_stream, plain_class
from tests.toys import make_trainer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "50-fpf.json").read_text())["cases"]
NORM_AND_HEAD = ["norm", "head"]
STEPS = 36  # of the stream: 3 tasks x 2 epochs x 6 batches


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the accuracy matrix is written where there is no logger, too


def FPF(size: int = 20, **options: Any) -> ForgettingPrioritizedFinetuning:  # noqa: N802
    return ForgettingPrioritizedFinetuning(**{"buffer": ReservoirBuffer(size), "steps": 4, **options})


def fit(module: Any, *callbacks: Any, data: Any = None, **options: Any) -> pl.Trainer:
    trainer = make_trainer(**{"max_epochs": 6, "limit_val_batches": 0, "callbacks": list(callbacks), **options})
    trainer.fit(module, make_stream() if data is None else data)
    return trainer


def make(cls: Any = Plain, **options: Any) -> Any:
    torch.manual_seed(0)
    return cls(**options)


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in (*module.named_parameters(), *module.named_buffers())}


def cases(function: str) -> Any:
    found = [case for case in GOLDEN if case["inputs"]["function"] == function]
    assert found
    return pytest.mark.parametrize("case", found, ids=[str(i) for i in range(len(found))])


# ---------------------------------------------------------------------- sensitivity
@cases("module_change")
def test_change_of_parameters_and_groups_is_that_of_the_golden_values(case: Any) -> None:
    before, after = (
        {name: torch.tensor(value, dtype=torch.float64) for name, value in case["inputs"][key].items()}
        for key in ("before", "after")
    )
    expected = case["expected"]
    assert module_change(before, after) == pytest.approx(expected["per_parameter"], rel=case["rtol"])
    groups = case["inputs"]["groups"]
    assert module_change(before, after, groups) == pytest.approx(expected["per_group"], rel=case["rtol"])


@cases("kfpf_trigger_steps")
def test_finetuning_steps_are_those_of_the_golden_values(case: Any) -> None:
    assert finetuning_steps(case["inputs"]["total_steps"], case["inputs"]["k"]) == case["expected"]


def test_every_trained_parameter_is_in_one_group() -> None:
    module = Plain()
    module.head.bias.requires_grad_(False)
    groups = default_groups(module)
    assert groups == {
        "body.1": ["body.1.weight", "body.1.bias"],
        "body.2": ["body.2.weight", "body.2.bias"],
        "head": ["head.weight"],
    }
    assert list(default_groups(module, merge_norm=True)) == ["body.1", "norm", "head"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["norm"], ["body.2"]),
        (["head", "norm"], ["body.2", "head"]),
        (["body"], ["body.1", "body.2"]),
        (["*.1"], ["body.1"]),
        (["*"], ["body.1", "body.2", "head"]),
    ],
)
def test_patterns_name_submodules(patterns: list[str], expected: list[str]) -> None:
    assert list(match_groups(Plain(), patterns, "X")) == expected


def test_relative_change_does_not_depend_on_the_scale() -> None:
    before, after = {"a": torch.randn(5)}, {"a": torch.randn(5)}
    scaled = {"a": 7 * before["a"]}, {"a": 7 * after["a"]}
    assert module_change(before, after, relative=True) == pytest.approx(module_change(*scaled, relative=True))
    assert module_change(*scaled)["a"] == pytest.approx(7 * module_change(before, after)["a"])


@pytest.mark.parametrize(
    ("rule", "options", "expected"),
    [
        ("above_mean", {}, ["b", "d"]),
        ("top_k", {"top_k": 1}, ["d"]),
        ("top_k", {"top_k": 3}, ["b", "c", "d"]),
        ("budget", {"max_param_fraction": 0.3, "numel": {"a": 50, "b": 40, "c": 8, "d": 2}}, ["c", "d"]),
        ("budget", {"max_param_fraction": 1.0, "numel": {"a": 1, "b": 1, "c": 1, "d": 1}}, ["a", "b", "c", "d"]),
    ],
)
def test_the_most_sensitive_groups_are_chosen(rule: Any, options: dict[str, Any], expected: list[str]) -> None:
    assert select_groups({"a": 0.1, "b": 0.8, "c": 0.2, "d": 0.9}, rule, **options) == expected


def test_groups_that_are_all_alike_are_all_chosen() -> None:
    assert select_groups({"a": 0.5, "b": 0.5}) == ["a", "b"]


def test_mean_gradient_is_over_the_parameters_that_have_one() -> None:
    gradients = {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([6.0]), "c": None}
    assert gradient_sensitivity(gradients, {"x": ["a", "b"], "y": ["c"], "z": ["a", "c"]}) == {"x": 3, "y": 0, "z": 1.5}


# ---------------------------------------------------------------------- finetuning
@pytest.mark.parametrize("package", [pl, pytorch_lightning], ids=["lightning.pytorch", "pytorch_lightning"])
@pytest.mark.parametrize("k", [0, 3])
def test_only_the_chosen_groups_are_finetuned_in_both_packages(package: Any, k: int) -> None:
    def run(*callbacks: Any) -> dict[str, Tensor]:
        module = make(plain_class(package.__name__))
        data = make_stream()
        data.setup("fit")
        trainer = package.Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=list(callbacks),
        )
        trainer.fit(module, data.train_dataloader())
        return weights(module)

    # the last finetuning of k-FPF is at the last step, so the other groups train as without it up to then
    before, after = run(), run(FPF(groups=["head"], k=1 if k else 0, update_running_stats=False))
    for name, value in before.items():
        assert after[name].equal(value) == (not name.startswith("head")), name
    assert not run(FPF(groups=["head"], k=k))["head.weight"].equal(before["head.weight"])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("kd_weight", [0.0, 0.7])
def test_finetuning_is_gradient_descent_on_the_memory(schedule: Any, kd_weight: float) -> None:
    """Oracle: a loop by hand, from the weights before, with the same draws."""
    callback = FPF(groups=NORM_AND_HEAD, steps=5, lr=0.2, schedule=schedule, kd_weight=kd_weight, batch_size=7)
    kept: dict[str, Any] = {}

    class Keep(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            kept["module"], kept["memory"] = copy.deepcopy(pl_module.state_dict()), copy.deepcopy(callback.memory)

    module = make()
    fit(module, Keep(), callback)
    twin = make()
    twin.load_state_dict(kept["module"])
    chosen = [p for name, p in twin.named_parameters() if name.startswith(("body.2", "head"))]
    for step in range(5):
        samples = kept["memory"].sample(7)
        x, y = samples["batch"]
        loss = F.cross_entropy(twin(x), y)
        if kd_weight:
            teacher, known = samples["logits"][""], samples["known"][""]
            loss = loss + kd_weight * ((twin(x) - teacher) ** 2 * known).sum(1).div(6).mean()
        lr = 0.1 * (1 + math.cos(math.pi * step / 5)) if schedule == "cosine" else 0.2
        for parameter, gradient in zip(chosen, torch.autograd.grad(loss, chosen), strict=True):
            parameter.data -= lr * gradient
    torch.testing.assert_close(module.state_dict(), twin.state_dict(), rtol=0, atol=1e-6)


def test_known_classes_are_those_that_had_come_up_when_a_sample_was_stored() -> None:
    callback = FPF(size=60, kd_weight=1.0)
    fit(make(), callback)
    stored = callback.memory.items()
    for task in range(3):
        own = stored["known"][""][stored["task"] == task]
        assert own.any(0).tolist()[: 2 * task + 2] == [True] * (2 * task + 2)
        assert not own[:, 2 * task + 2 :].any()
    assert stored["logits"][""].isfinite().all()


def test_logits_are_those_of_the_step_in_which_a_sample_was_seen() -> None:
    seen: list[Tensor] = []

    class Noting(Plain):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            logits = self(batch[0])
            seen.append(logits.detach())
            return F.cross_entropy(logits, batch[1])

    module, callback = make(Noting), FPF(size=12, kd_weight=1.0, groups=["head"])
    without = make(Noting)
    fit(module, callback, max_steps=2, max_epochs=1)
    stored = callback.memory.items()["logits"][""]
    torch.testing.assert_close(stored, torch.cat(seen[:2]), rtol=0, atol=0)
    fit(without, max_steps=2, max_epochs=1)
    torch.testing.assert_close(seen[-2:], seen[:2], rtol=0, atol=0)  # running statistics were left alone


@pytest.mark.parametrize("update", [True, False])
def test_running_statistics_are_updated_if_wanted(update: bool) -> None:
    plain, tuned = make(), make()
    fit(plain)
    fit(tuned, FPF(groups=NORM_AND_HEAD, update_running_stats=update))
    assert plain.body[2].running_mean.equal(tuned.body[2].running_mean) != update
    assert tuned.training == plain.training
    assert tuned.body[2].training == plain.body[2].training


@pytest.mark.parametrize("accumulate", [1, 4])
def test_k_fpf_finetunes_at_equally_spaced_steps(accumulate: int) -> None:
    found: list[int] = []

    class Noting(ForgettingPrioritizedFinetuning):
        def finetune(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            found.append(trainer.global_step)
            super().finetune(trainer, module)

    callback = Noting(ReservoirBuffer(20), ["head"], k=5, steps=2)
    trainer = fit(make(), callback, accumulate_grad_batches=accumulate)
    assert found == finetuning_steps(trainer.global_step, 5)
    assert trainer.global_step == (36 if accumulate == 1 else 12)
    assert callback.steps_done == 10
    assert trainer.callback_metrics["fpf/steps"] == 10


def test_the_trainers_optimizer_and_gradients_are_left_alone() -> None:
    states: list[Any] = []

    class Keep(pl.Callback):
        def __init__(self) -> None:
            self.found: list[Any] = []

        def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
            if trainer.global_step == 3:
                gradients = [None if p.grad is None else p.grad.clone() for p in pl_module.parameters()]
                self.found.append((copy.deepcopy(trainer.optimizers[0].state_dict()), gradients))

    for callbacks in ([], [FPF(groups=["head"], k=3, total_steps=9)]):
        keep = Keep()
        fit(make(momentum=0.9), *callbacks, keep, max_steps=3)
        states.append(keep.found)
    torch.testing.assert_close(states[1], states[0], rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_precision_is_that_of_the_trainer(precision: Any) -> None:
    dtypes: set[torch.dtype] = set()

    class Noting(Plain):  # type: ignore[misc, valid-type]
        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            dtypes.add(logits.dtype)
            return logits

    module, callback = make(Noting), FPF(groups=NORM_AND_HEAD, kd_weight=0.1)
    trainer = fit(module, callback, precision=precision)
    assert dtypes == {torch.bfloat16 if precision == "bf16-mixed" else torch.float64}
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    assert trainer.callback_metrics["fpf/buffer_loss_after"] < trainer.callback_metrics["fpf/buffer_loss_before"]


def test_groups_above_the_mean_change_at_the_first_switch_are_chosen() -> None:
    class Keep(pl.Callback):
        def __init__(self) -> None:
            self.ends: list[dict[str, Tensor]] = []

        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch % 2:
                self.ends.append(weights(pl_module))

    keep, callback, monitor = Keep(), FPF(), ModuleChangeMonitor()
    trainer = fit(make(), keep, callback, monitor)
    expected = {}
    for group in ("body.1", "body.2", "head"):
        names = [f"{group}.weight", f"{group}.bias"]
        change = torch.cat([(keep.ends[1][name] - keep.ends[0][name]).flatten() for name in names])
        expected[group] = float(change.abs().mean())
    assert callback.scores == pytest.approx(expected, rel=1e-5)
    assert monitor.task_changes[0] == pytest.approx(expected, rel=1e-5)
    mean = sum(expected.values()) / 3
    assert callback.selected == [group for group, score in expected.items() if score > mean]
    assert 0 < len(callback.selected) < 3
    for group, score in expected.items():
        assert trainer.callback_metrics[f"fpf/sensitivity/{group}"] == pytest.approx(score, rel=1e-5)
        assert trainer.callback_metrics[f"fpf/selected/{group}"] == (group in callback.selected)
    assert len(monitor.task_changes) == 2
    assert len(monitor.epoch_changes) == 3
    assert trainer.callback_metrics["fpf/epoch_change/head"] == pytest.approx(monitor.epoch_changes[-1]["head"])


def test_without_a_switch_the_gradients_on_the_memory_choose() -> None:
    module, callback = make(), FPF()
    kept: dict[str, Any] = {}

    class Keep(pl.Callback):
        def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            twin = copy.deepcopy(pl_module.state_dict())
            kept.update(weights=twin, items=callback.memory.items())

    fit(module, Keep(), callback, max_epochs=2)
    twin = make()
    twin.load_state_dict(kept["weights"])
    x, y = kept["items"]["batch"]
    loss = F.cross_entropy(twin(x), y)
    loss.backward()
    gradients = {
        group: torch.cat([p.grad.flatten() for p in twin.get_submodule(group).parameters()])
        for group in ("body.1", "body.2", "head")
    }
    assert callback.scores == pytest.approx({k: float(g.abs().mean()) for k, g in gradients.items()}, rel=1e-4)


def test_finetuning_lowers_the_loss_on_the_memory_and_says_what_it_cost() -> None:
    trainer = fit(make(), FPF(groups=["body.2", "head"], steps=30, kd_loss=DistillationKL(2.0), kd_weight=0.1))
    logged = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("fpf/")}
    assert logged["fpf/buffer_loss_after"] < logged["fpf/buffer_loss_before"]
    assert logged["fpf/steps"] == 30
    assert logged["fpf/samples_replayed"] == 30 * 20  # the memory is smaller than a batch
    assert logged["fpf/param_fraction"] == pytest.approx((24 + 78) / (24 + 78 + 204))


def test_finetuning_after_every_task() -> None:
    callback = FPF(groups=["head"], at_task_end=True, steps=3)
    fit(make(), callback)
    assert callback.steps_done == 9


def test_one_fit_for_every_task_needs_nothing_but_one_callback() -> None:
    module = make()
    callback, monitor = FPF(buffer=RingBuffer(12, num_groups=3), steps=3), ModuleChangeMonitor()
    data = make_stream()
    data.setup("fit")
    loaders = []
    for task in range(3):
        data.set_task(task)
        loaders.append(data.train_dataloader())
    metrics = ContinualMetrics(data.task_dataloaders("test"), figure=False)
    for loader in loaders:
        make_trainer(max_epochs=2, callbacks=[callback, monitor, metrics]).fit(module, loader)
    assert callback.memory.items()["task"].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert callback.steps_done == 9
    assert len(monitor.task_changes) == 2
    assert [len(row) for row in metrics.matrix] == [3, 3, 3]


def test_the_result_is_in_a_checkpoint_of_its_own(tmp_path: Path) -> None:
    module, callback = make(), FPF(groups=["head"])
    saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="epoch")
    with pytest.warns(UserWarning, match=r"checkpoints written before hold the weights from before.*fpf\.ckpt"):
        fit(module, callback, saver, enable_checkpointing=True)
    assert callback.fpf_ckpt_path == tmp_path / "fpf.ckpt"
    tuned = torch.load(callback.fpf_ckpt_path, weights_only=True)["state_dict"]
    torch.testing.assert_close(tuned, dict(module.state_dict()), rtol=0, atol=0)
    earlier = torch.load(tmp_path / "epoch.ckpt", weights_only=True)["state_dict"]
    assert not earlier["head.weight"].equal(tuned["head.weight"])


RESUMED: dict[str, Callable[[], list[Any]]] = {
    "er": lambda: [ExperienceReplay(4, ReservoirBuffer(20))],
    "der": lambda: [DarkExperienceReplay(buffer=RingBuffer(18, 3))],
    "k-fpf": lambda: [FPF(k=5)],
    "er + fpf": lambda: [
        ExperienceReplay(4, ReservoirBuffer(20)),
        FPF(buffer=None),
        ModuleChangeMonitor(),
        ContinualMetrics(figure=False),
    ],
    "fpf, distilled": lambda: [FPF(kd_weight=0.5), ContinualMetrics(figure=False)],
}


@pytest.mark.filterwarnings("ignore:ForgettingPrioritizedFinetuning. checkpoints written before")
@pytest.mark.parametrize("build", RESUMED.values(), ids=RESUMED.keys())
def test_killed_in_the_middle_of_a_task_and_resumed_it_ends_the_same(
    build: Callable[[], list[Any]], tmp_path: Path
) -> None:
    def run(ckpt_path: Path | None) -> tuple[dict[str, Tensor], list[Any]]:
        module, callbacks = make(), build()
        saver = pl.callbacks.ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=16, save_top_k=-1)
        trainer = make_trainer(
            max_epochs=6,
            limit_val_batches=0,
            callbacks=[*callbacks, saver],
            enable_checkpointing=True,
            default_root_dir=tmp_path,
        )
        trainer.fit(module, make_stream(), ckpt_path=ckpt_path)
        return weights(module), [callback.state_dict() for callback in callbacks]

    whole = run(None)
    resumed = run(tmp_path / "step=16.ckpt")
    torch.testing.assert_close(resumed[0], whole[0], rtol=0, atol=0)
    assert str(resumed[1]) == str(whole[1])


# ---------------------------------------------------------------------- the module's side
def test_balancer_takes_no_part_in_finetuning() -> None:
    calls: list[int] = []

    class Counting(DWA):
        def forward(self, *args: Any, **kwargs: Any) -> Tensor:
            calls.append(1)
            return super().forward(*args, **kwargs)

    torch.manual_seed(0)
    module = MultiTaskModule(MLPEncoder(16, [8]), {"class": MulticlassClassification(num_classes=6)}, Counting())
    before = weights(module)
    callback, metrics = FPF(groups=["tasks"]), ContinualMetrics(figure=False)
    fit(module, callback, metrics, data=make_stream(plain=False))
    assert len(calls) == STEPS
    assert callback.steps_done == 4
    after = weights(module)
    assert any(not value.equal(after[name]) for name, value in before.items() if name.startswith("tasks."))
    assert len(metrics.matrix) == 3


@pytest.mark.parametrize("replay", [ExperienceReplay, DarkExperienceReplay, FPF])
def test_every_task_of_a_task_incremental_stream_keeps_its_head(replay: Any) -> None:
    torch.manual_seed(0)
    tasks = {f"task{t}": MulticlassClassification(num_classes=2) for t in range(3)}
    module = MultiTaskModule(MLPEncoder(16, [8]), tasks)  # type: ignore[arg-type]
    metrics = ContinualMetrics(figure=False)
    data = make_stream(scheme="task", plain=False)
    fit(module, replay(buffer=ReservoirBuffer(20)), metrics, data=data)
    assert len(metrics.matrix) == 3
    assert all(0 <= value <= 1 for row in metrics.matrix for value in row)


def test_own_loss_is_used_where_there_is_one() -> None:
    used: list[str] = []

    class Own(Plain):  # type: ignore[misc, valid-type]
        def replay_loss(self, batch: Any) -> Tensor:
            used.append("module")
            return F.cross_entropy(self(batch[0]), batch[1])

    def loss_fn(module: Any, batch: Any) -> Tensor:
        used.append("argument")
        return F.cross_entropy(module(batch[0]), batch[1])

    fit(make(Own), FPF(groups=["head"]), max_epochs=1)
    assert set(used) == {"module"}
    used.clear()
    fit(make(Own), FPF(groups=["head"], loss_fn=loss_fn), max_epochs=1)
    assert set(used) == {"argument"}


def test_module_that_optimizes_by_hand_is_replayed_and_finetuned() -> None:
    module = make(Manual)
    callback = FPF(buffer=None, groups=["head"], k=4, loss_fn=Manual.loss)
    fit(module, ExperienceReplay(5, ReservoirBuffer(20)), callback)
    assert module.sizes == [6] + [11] * (STEPS - 1)
    assert callback.steps_done == 16


# ---------------------------------------------------------------------- replay
def test_step_sees_the_batch_with_samples_from_the_memory() -> None:
    module = make()
    fit(module, ExperienceReplay(buffer=ReservoirBuffer(20)))
    assert module.sizes == [6] + [12] * (STEPS - 1)
    assert "training_step" not in module.__dict__


@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_dark_experience_replay_adds_its_two_terms(alpha: float) -> None:
    found: list[tuple[float, float]] = []
    callback = DarkExperienceReplay(alpha, 0.7, 5, ReservoirBuffer(20))

    class Compare(pl.Callback):
        def on_before_backward(self, trainer: pl.Trainer, pl_module: Any, loss: Tensor) -> None:
            found.append((float(loss.detach()), self.expected(pl_module)))

        def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
            self.batch, self.memory = batch, copy.deepcopy(callback.memory)

        def expected(self, module: Any) -> float:
            total = F.cross_entropy(module(self.batch[0]), self.batch[1])
            if len(self.memory) and alpha:
                first = self.memory.sample(5)
                total = total + alpha * F.mse_loss(module(first["batch"][0]), first["logits"][""])
            if len(self.memory):
                x, y = self.memory.sample(5)["batch"]
                total = total + 0.7 * F.cross_entropy(module(x), y)
            return float(total.detach())

    fit(make(norm=False), callback, Compare())
    assert len(found) == STEPS
    for loss, expected in found:
        assert loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("every", "offered"), [(None, 108), (False, 108), (True, 216)])
def test_samples_are_offered_in_the_first_epoch_of_their_task(every: bool | None, offered: int) -> None:
    callback = ExperienceReplay(4, ReservoirBuffer(20), write_every_epoch=every)
    fit(make(), callback)
    assert callback.memory.seen == offered


def test_first_replay_callback_owns_the_memory_of_all() -> None:
    replay, fpf = ExperienceReplay(4, ReservoirBuffer(20)), FPF(buffer=None, kd_weight=0.1)
    fit(make(), replay, fpf)
    assert fpf.memory is replay.memory
    assert replay.memory.seen == 108
    assert count_samples(fpf.memory.items(), "") == 20
    assert fpf.state_dict()["buffer"] is None


def test_step_is_given_back_after_an_error() -> None:
    class Failing(Plain):  # type: ignore[misc, valid-type]
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise RuntimeError("no")

    module = make(Failing)
    with pytest.raises(RuntimeError, match="no"):
        fit(module, ExperienceReplay(4, ReservoirBuffer(20)))
    assert "training_step" not in module.__dict__


# ---------------------------------------------------------------------- metrics
def test_accuracy_matrix_is_that_of_the_networks_after_every_task(tmp_path: Path) -> None:
    data, module = make_stream(), make()
    kept: list[dict[str, Tensor]] = [weights(module)]

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch % 2:
                kept.append(weights(pl_module))

    metrics = ContinualMetrics(split="test")
    trainer = fit(module, Keep(), metrics, data=data, default_root_dir=tmp_path)
    twin = make().eval()
    rows = []
    for state in kept:
        twin.load_state_dict(state)
        rows.append(
            [
                torch.cat([twin(x).argmax(1) == y for x, y in loader]).float().mean().item()
                for loader in data.task_dataloaders("test")
            ]
        )
    torch.testing.assert_close([metrics.untrained, *metrics.matrix], rows)
    lines = (tmp_path / "accuracy_matrix.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["after", "untrained", "task0", "task1", "task2"]
    assert (tmp_path / "continual-accuracy_matrix.png").stat().st_size > 1000
    assert trainer.callback_metrics["continual/average_accuracy"] == pytest.approx(sum(rows[-1]) / 3)
    assert trainer.callback_metrics["continual/accuracy/2"] == pytest.approx(rows[-1][2])


def test_measuring_leaves_training_as_it_is() -> None:
    found = []
    for callbacks in ([], [ContinualMetrics(figure=False), ModuleChangeMonitor()]):
        pl.seed_everything(1, verbose=False)
        module = make(dropout=0.3)
        fit(module, *callbacks)
        found.append((weights(module), torch.rand(3), module.losses))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


# ---------------------------------------------------------------------- misuse
class Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        while True:
            yield torch.zeros(16), torch.tensor(1)


SMALL = TensorDataset(torch.randn(8, 16), torch.zeros(8, dtype=torch.int64))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FPF(steps=0), "steps must be at least 1, got 0"),
        (lambda: FPF(k=-1), "k must not be negative, got -1"),
        (lambda: FPF(lr=0.0), "lr must be positive, got 0.0"),
        (lambda: FPF(schedule="linear"), "schedule must be 'cosine' or 'constant', got 'linear'"),
        (lambda: FPF(k=2, at_task_end=True), "at_task_end must be False for k >= 1"),
        (lambda: FPF(selection="top_k"), "top_k must be given for selection='top_k', got None"),
        (lambda: FPF(selection="budget"), "max_param_fraction must be given for selection='budget'"),
        (lambda: ExperienceReplay(0), "replay_size must be at least 1, got 0"),
        (lambda: DarkExperienceReplay(alpha=-1.0), "alpha must not be negative, got -1.0"),
        (lambda: ContinualMetrics(split="train"), "split must be 'val' or 'test', got 'train'"),
        (lambda: finetuning_steps(3, 4), "k must be 1 to the number of training steps 3, got 4; lower k"),
        (lambda: select_groups({}), "scores must have at least one group"),
        (lambda: select_groups({"a": 1.0}, "best"), "rule must be 'above_mean', 'top_k' or 'budget', got 'best'"),
        (lambda: select_groups({"a": 1.0}, "top_k", top_k=2), "top_k must be 1 to 1 for rule 'top_k', got 2"),
        (
            lambda: select_groups({"a": 1.0, "b": 0.0}, "budget", max_param_fraction=0.1, numel={"a": 9, "b": 3}),
            "max_param_fraction must leave room for the smallest group, got 0.1; raise it to 0.25",
        ),
        (
            lambda: module_change({"a": torch.zeros(2)}, {"a": torch.zeros(3)}),
            "same shape before and after, got",
        ),
        (lambda: module_change({"a": torch.zeros(2)}, {}), "of which .'a'. are unknown"),
        (lambda: fit(make(), FPF(groups=["hed"])), "'hed' matches none; there are body.1, body.2, head, and 'norm'"),
        (lambda: fit(make(), FPF(groups=["head"], k=37)), "k must be 1 to the number of training steps 36, got 37"),
        (
            lambda: fit(
                make(), FPF(k=2), data=DataLoader(Endless(), batch_size=4), max_epochs=1, limit_train_batches=3
            ),
            None,
        ),
        (
            lambda: fit(make(), FPF(k=2), data=DataLoader(Endless(), batch_size=4), max_epochs=1),
            "total_steps must be given for k >= 1 where the Trainer does not know the number of training steps",
        ),
    ],
)
def test_wrong_values_are_refused(build: Callable[[], object], message: str | None) -> None:
    if message is None:  # max_steps is knowledge enough
        build()
        return
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: fit(make(), FPF(size=109)),
            r"the buffer's capacity must be at most the 108 training samples, got 109; pass buffer=ReservoirBuffer",
        ),
        (
            lambda: fit(make(), ExperienceReplay(), data=DataLoader(SMALL, batch_size=4)),
            "capacity must be at most the 8 training samples, got 200; .* or current_task=",
        ),
        (lambda: fit(make(Manual), FPF(groups=["head"])), "optimizes manually, .* pass loss_fn="),
        (lambda: fit(make(Manual), DarkExperienceReplay(buffer=ReservoirBuffer(9))), "optimizes manually"),
        (
            lambda: fit(make(), ExperienceReplay(buffer=ReservoirBuffer(9)), DarkExperienceReplay()),
            "a Trainer takes one of ExperienceReplay, DarkExperienceReplay",
        ),
        (lambda: fit(make(), ContinualMetrics(), FPF()), "must come after ForgettingPrioritizedFinetuning"),
        (lambda: fit(make(), ContinualMetrics(), data=DataLoader(SMALL)), "loaders must be given, one for every task"),
        (
            lambda: fit(make(), ContinualMetrics([[{"x": torch.zeros(1)}]]), data=DataLoader(SMALL)),
            r"batches must be \(inputs, labels\).*pass count_fn=",
        ),
        (
            lambda: fit(make(), FPF(groups=["head"], loss_fn=lambda m, b: m.body(b[0]).sum())),
            "the loss does not depend on the groups .'head'.; choose others",
        ),
        (
            lambda: fit(make(), FPF(groups=["head"], batch_size=1)),
            "batch_size and .* at least 2 .* got 1 and .*; raise",
        ),
        (lambda: fit(make(), FPF(size=1)), "the samples in the buffer must be at least 2 .* got 32 and 1; raise"),
    ],
)
def test_wrong_set_up_is_answered_with_the_remedy(build: Callable[[], object], message: str) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        build()


def test_a_memory_that_is_one_sample_larger_than_a_batch_is_no_problem_for_batch_norms() -> None:
    callback = FPF(size=9, batch_size=8, steps=1)
    fit(make(), callback)
    assert len(callback.memory) == 9
    assert callback.selected


def test_batches_of_one_are_fine_with_running_statistics() -> None:
    callback = FPF(groups=["head"], batch_size=1, steps=2, update_running_stats=False)
    fit(make(), callback)
    assert callback.samples_replayed == 2


def test_fit_that_is_one_task_of_several_may_be_smaller_than_the_memory() -> None:
    callback = ExperienceReplay(2, ReservoirBuffer(20), current_task=lambda trainer: 0)
    fit(make(), callback, data=DataLoader(SMALL, batch_size=4), max_epochs=1)
    assert len(callback.memory) == 8
