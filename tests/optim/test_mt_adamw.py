from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.data import (
    DynamicSampling,
    FixedRatios,
    TaskMixtureDataModule,
    TwoGlyphDataModule,
    UniformSampling,
)
from lightning_mtl.nn import MLPEncoder
from lightning_mtl.optim import MTAdamW
from lightning_mtl.tasks import MulticlassClassification
from tests.toys import make_trainer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden/mt-adamw.json").read_text())["cases"]
HALVES = {"a": 0.5, "b": 0.5}


def parameters(*values: Any) -> list[nn.Parameter]:
    return [nn.Parameter(torch.tensor(value, dtype=torch.float64)) for value in values]


def give(params: list[nn.Parameter], *gradients: Any) -> None:
    for parameter, gradient in zip(params, gradients, strict=True):
        parameter.grad = None if gradient is None else torch.as_tensor(gradient, dtype=torch.float64)


@pytest.mark.parametrize("case", GOLDEN, ids=range(len(GOLDEN)))
def test_golden_trajectories(case: dict[str, Any]) -> None:
    args = dict(case["args"])
    for ours, theirs in (("task_ratios", "task_sampling_ratios"), ("task_weights", "task_weights")):
        args[ours] = {str(task): value for task, value in enumerate(args.pop(theirs))}
    params = parameters(*case["inputs"]["params"])
    optimizer = MTAdamW(params, **{**args, "betas": tuple(args["betas"])})
    for step, expected in zip(case["inputs"]["steps"], case["expected"]["params_after_each_step"], strict=True):
        give(params, *step["grads"])
        optimizer.step(task=str(step["task"]))
        for parameter, value in zip(params, expected, strict=True):
            torch.testing.assert_close(parameter.data, torch.tensor(value, dtype=torch.float64), rtol=1e-6, atol=0)


def test_without_its_additions_it_is_adamw() -> None:
    ours, theirs = parameters([1.0, -2.0], [[3.0]]), parameters([1.0, -2.0], [[3.0]])
    optimizer = MTAdamW(ours, lr=0.01, weight_decay=0.1, normalize="none", compensate=False)
    oracle = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    stream = torch.Generator().manual_seed(0)
    for step in range(20):
        gradients = [torch.randn(p.shape, generator=stream, dtype=torch.float64) for p in ours]
        give(ours, *gradients)
        give(theirs, *gradients)
        optimizer.step(task="ab"[step % 2])
        oracle.step()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.data, b.data, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [1e-10, 1e-3, 1e10])
def test_the_scale_of_a_tasks_loss_does_not_matter(scale: float) -> None:
    def run(factor: float) -> Tensor:
        params = parameters([1.0, -2.0, 0.5])
        optimizer = MTAdamW(params, lr=0.01, task_ratios={"a": 0.8, "b": 0.2})
        stream = torch.Generator().manual_seed(0)
        for step in range(30):
            task = "ab"[step % 3 == 0]
            give(params, torch.randn(3, generator=stream) * (factor if task == "b" else 1.0))
            optimizer.step(task=task)
        return params[0].data

    # gradients are drawn in single precision, so that their scaled norms agree to that
    torch.testing.assert_close(run(scale), run(1.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("ratio", [0.5, 0.9, 0.05])
def test_the_expected_first_moment_does_not_depend_on_the_ratios(ratio: float) -> None:
    gradients = {"a": [3.0, 4.0], "b": [0.0, -1e-3]}
    mean = torch.zeros(2, dtype=torch.float64)
    for task, probability in (("a", ratio), ("b", 1 - ratio)):
        params = parameters([0.0, 0.0])
        optimizer = MTAdamW(params, task_ratios={"a": ratio, "b": 1 - ratio}, task_weights={"b": 2.0})
        give(params, gradients[task])
        optimizer.step(task=task)
        mean += probability * optimizer.state[params[0]]["exp_avg"]
    expected = torch.tensor([0.6, 0.8 - 2.0], dtype=torch.float64) * 0.1
    torch.testing.assert_close(mean, expected, rtol=1e-6, atol=0)


def test_a_parameter_without_gradient_counts_as_zero() -> None:
    absent, zero = parameters([1.0], [2.0]), parameters([1.0], [2.0])
    for params, nothing in ((absent, None), (zero, [0.0])):
        optimizer = MTAdamW(params, lr=0.1, task_ratios=HALVES)
        for first, second in (([1.0], [2.0]), ([1.0], nothing), (nothing, [1.0])):
            give(params, first, second)
            optimizer.step(task="a")
    assert [p.item() for p in absent] == [p.item() for p in zero]


def test_task_specific_groups_take_plain_adamw_steps_of_their_own() -> None:
    shared, head, other = parameters([1.0], [2.0], [3.0])
    groups = [{"params": [shared]}, {"params": [head, other], "name": "heads"}]
    optimizer = MTAdamW(groups, lr=0.1, task_ratios={"a": 0.1, "b": 0.9}, task_specific_groups=["heads"])
    twin = parameters([2.0])
    oracle = torch.optim.AdamW(twin, lr=0.1)
    for step in range(6):
        give([shared, head, other], [3.0], [4.0 + step], None if step % 2 else [0.0])
        optimizer.step(task="a")
        give(twin, [(4.0 + step) / math.hypot(3.0, 4.0 + step)])
        oracle.step()
    torch.testing.assert_close(head.data, twin[0].data, rtol=1e-6, atol=0)
    assert other.item() == 3.0  # neither step nor decay without a gradient
    assert other not in optimizer.state
    flagged = MTAdamW([{"params": [head], "task_specific": True}], task_ratios=HALVES)
    assert flagged.param_groups[0]["task_specific"]


def test_a_zero_gradient_leaves_the_step_out_and_warns() -> None:
    params = parameters([1.0])
    optimizer = MTAdamW(params, task_ratios=HALVES)
    for gradient in ([0.0], None):
        give(params, gradient)
        with pytest.warns(UserWarning, match="the gradient of task 'a' is zero"):
            optimizer.step(task="a")
    assert params[0].item() == 1.0
    assert not optimizer.state
    assert optimizer.values_to_log()["train/skipped_steps/zero"] == 2


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_step_out(bad: float) -> None:
    params = parameters([1.0], [1.0])
    optimizer = MTAdamW(params, task_ratios=HALVES)
    give(params, [1.0], [bad])
    optimizer.step(task="b")
    assert [p.item() for p in params] == [1.0, 1.0]
    assert optimizer.skipped == {"zero": 0, "nonfinite": 1}
    give(params, [1.0], [1.0])
    optimizer.step(task="b")
    assert optimizer.state[params[0]]["step"] == 1
    assert optimizer.values_to_log()["train/task_drawn/b"] == 2


def test_rare_tasks_are_warned_of_once() -> None:
    params = parameters([1.0])
    optimizer = MTAdamW(params, task_ratios={"a": 0.99, "b": 0.01})
    give(params, [1.0])
    with pytest.warns(UserWarning, match="task 'b' is drawn with a probability of 0.01"):
        optimizer.step(task="b")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(task="b")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must not be negative, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ({"eps": -1.0}, "eps must not be negative"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative"),
        ({"normalize": "layer"}, "normalize must be 'global' or 'none', got 'layer'"),
        ({"task_weights": {"a": 0.0}}, "task_weights must be positive and finite, got 0.0 for task 'a'"),
        ({"task_ratios": {"a": 1.0, "b": 0.0}}, "task_ratios must be positive and finite, got 0.0 for task 'b'"),
        ({"task_specific_groups": ["heads"]}, r"must name parameter groups of \[None\], got \['heads'\]"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"MTAdamW: .*{message}"):
        MTAdamW(parameters([1.0]), **options)


def test_the_task_of_a_step_must_be_known() -> None:
    params = parameters([1.0])
    give(params, [1.0])
    with pytest.raises(ValueError, match="task of the step is not known"):
        MTAdamW(params, task_ratios=HALVES).step()
    with pytest.raises(ValueError, match=r"task_ratios must name the task 'c', got \['a', 'b'\]"):
        MTAdamW(params, task_ratios=HALVES).step(task="c")
    with pytest.raises(ValueError, match="task_ratios must give the probability of task 'a', got none"):
        MTAdamW(params).step(task="a")
    embedding = nn.Embedding(3, 2, sparse=True)
    optimizer = MTAdamW(embedding.parameters(), task_ratios=HALVES)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="gradients must be dense, got a sparse one"):
        optimizer.step(task="a")


def test_observed_tasks_last_for_one_step() -> None:
    params = parameters([1.0])
    optimizer = MTAdamW(params, task_ratios=HALVES)
    give(params, [1.0])
    optimizer.observe_tasks(["a"], begins=True)
    optimizer.observe_tasks(["a"], begins=False)
    with pytest.raises(ValueError, match="all batches of one step must be of one task, got 'b' after 'a'"):
        optimizer.observe_tasks(["b"], begins=False)
    optimizer.step()
    with pytest.raises(ValueError, match="task of the step is not known"):
        optimizer.step()
    optimizer.observe_tasks(["b"], begins=True)
    optimizer.observe_tasks(["a"], begins=True)  # the step with b was left out, as a gradient scaler does
    optimizer.step()
    with pytest.raises(ValueError, match=r"a batch must carry labels of one task, got \['a', 'b'\]"):
        optimizer.observe_tasks(["a", "b"], begins=True)


# ---------------------------------------------------------------------- in a Trainer
def make_data(**options: Any) -> TaskMixtureDataModule:
    sources = {
        task: TwoGlyphDataModule(num_train=length, num_val=20, label_noise=0.0)
        for task, length in (("left", 90), ("right", 30))
    }
    return TaskMixtureDataModule(sources, **{"batch_size": 10, "num_workers": 0, **options})


def make_module(**options: Any) -> MultiTaskModule:
    torch.manual_seed(0)
    tasks = {task: MulticlassClassification(num_classes=10) for task in ("left", "right")}
    encoder = nn.Sequential(nn.Flatten(), MLPEncoder(256, [16]))
    encoder.feature_spec = encoder[1].feature_spec  # type: ignore[assignment]
    return MultiTaskModule(encoder, tasks, optimizer=lambda groups: MTAdamW(groups, lr=1e-2, **options))


def weights(module: pl.LightningModule) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def optimizer_of(trainer: pl.Trainer) -> MTAdamW:
    (optimizer,) = trainer.optimizers
    assert isinstance(optimizer, MTAdamW)
    return optimizer


def test_a_trainer_tells_task_and_ratios_and_logs_them(tmp_path: Path) -> None:
    data = make_data(sampling=FixedRatios({"left": 0.8, "right": 0.2}), steps_per_epoch=20)
    module = make_module(task_specific_groups=["heads"])
    trainer = make_trainer(max_epochs=2, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    trainer.fit(module, data)
    optimizer = optimizer_of(trainer)
    assert sum(optimizer.drawn.values()) == 40
    assert optimizer._ratio("right") == pytest.approx(0.2)
    assert trainer.logged_metrics["train/task_drawn/left"] == optimizer.drawn["left"] - 1 or optimizer.drawn["left"]
    assert trainer.logged_metrics["grad_norm/right"] > 0
    steps = {id(p): optimizer.state[p]["step"] for p in module.parameters() if p in optimizer.state}
    assert {steps[id(p)] for p in module.encoder.parameters()} == {40}
    for task in ("left", "right"):
        assert {steps[id(p)] for p in module.tasks[task].parameters()} == {optimizer.drawn[task]}


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_fit_that_was_killed_in_mid_epoch_continues_bit_by_bit(tmp_path: Path) -> None:
    def fit(folder: Path, ckpt: Path | None = None) -> MultiTaskModule:
        policy = DynamicSampling({"left": 0.9, "right": 0.9}, "accuracy", initial=UniformSampling())
        module, data = make_module(), make_data(sampling=policy, steps_per_epoch=8)
        steps = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=5, save_top_k=-1)
        ends = ModelCheckpoint(folder, filename="{epoch}", save_on_train_epoch_end=True, save_top_k=-1)
        callbacks = [steps, ends]
        trainer = make_trainer(max_epochs=3, num_sanity_val_steps=0, callbacks=callbacks, enable_checkpointing=True)
        trainer.fit(module, data, ckpt_path=ckpt)
        gaps.append(policy.state_dict()["gaps"])
        return module

    gaps: list[dict[str, float]] = []
    whole = fit(tmp_path / "whole")
    for place in ("step=5", "step=15", "epoch=1"):
        resumed = fit(tmp_path / place, tmp_path / f"whole/{place}.ckpt")
        assert all(a.equal(b) for a, b in zip(weights(whole), weights(resumed), strict=True)), place
    assert set(gaps[0]) == {"left", "right"}  # validations were heard
    assert all(found == gaps[0] for found in gaps)


def test_accumulated_batches_must_be_of_one_task() -> None:
    data = make_data(sampling=UniformSampling(), steps_per_epoch=12)
    with pytest.raises(ValueError, match="set the sampler's batches_per_draw to accumulate_grad_batches"):
        make_trainer(max_epochs=1, accumulate_grad_batches=3).fit(make_module(), data)
    drawn = make_data(sampling=UniformSampling(), steps_per_epoch=10, batches_per_draw=3)
    trainer = make_trainer(max_epochs=2, accumulate_grad_batches=3)
    trainer.fit(make_module(), drawn)
    assert sum(optimizer_of(trainer).drawn.values()) == 8


def test_mixed_batches_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a batch must carry labels of one task, got \['left', 'right'\]"):
        make_trainer(max_epochs=1).fit(make_module(), make_data(mixed=True))


def test_bf16_and_clipping_work_and_clipping_warns() -> None:
    trainer = make_trainer(max_steps=3, precision="bf16-mixed", gradient_clip_val=0.1)
    module = make_module()
    before = weights(module)
    with pytest.warns(UserWarning, match=r"gradient_clip_val=0.1 has no effect"):
        trainer.fit(module, make_data())
    assert not any(a.equal(b) for a, b in zip(before, weights(module), strict=True))


def test_a_data_module_without_ratios_needs_them_given() -> None:
    data = TwoGlyphDataModule(num_train=40, num_val=10, batch_size=10)
    with pytest.raises(
        MisconfigurationException, match=r"task_ratios must be given.*module TwoGlyphDataModule, loader"
    ):
        make_trainer(max_steps=1).fit(make_module(), data)


def test_a_loader_without_a_data_module_gives_the_ratios_of_its_sampler() -> None:
    data = make_data(sampling=UniformSampling())
    data.setup("fit")
    trainer = make_trainer(max_steps=2)
    trainer.fit(make_module(), data.train_dataloader())
    assert optimizer_of(trainer)._ratio("left") == 0.5


def test_the_state_of_another_optimizer_is_refused() -> None:
    state = torch.optim.AdamW(parameters([1.0])).state_dict()
    with pytest.raises(ValueError, match="the state must be of an MTAdamW"):
        MTAdamW(parameters([1.0])).load_state_dict(state)


def test_sharded_strategies_are_refused() -> None:
    from lightning.pytorch.strategies import FSDPStrategy

    class Trainer:
        strategy = FSDPStrategy()
        gradient_clip_val = None
        datamodule = None

    with pytest.raises(MisconfigurationException, match="FSDPStrategy shards; train with strategy='ddp'"):
        MTAdamW(parameters([1.0])).attach(Trainer())
