"""What every encoder with features for each task does."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl import MultiTaskModule
from lightning_mtl.balancers import MGDA
from lightning_mtl.nn import CGC, FeatureSpec, MLPEncoder, PooledHead, SupervisedFeatures, TaskAwareEncoder
from lightning_mtl.tasks import Regression
from tests.nn.cases import NAMES, TASK_AWARE, TaskAwareCase

task_aware = pytest.mark.parametrize("case", TASK_AWARE, ids=lambda c: c.id)

ROWS_BY_TASK = ("units.2.weights", "parent_logits.1")  # one tensor, each row of which belongs to one task


def build(case: TaskAwareCase) -> TaskAwareEncoder:
    torch.manual_seed(0)
    return case.build()


def as_list(features: Any) -> list[Tensor]:
    """All that the losses of a task reach: its features, and the initial predictions where there are some."""
    if isinstance(features, SupervisedFeatures):
        return [*features.maps, *features.initial]
    return [features] if isinstance(features, Tensor) else list(features)


@task_aware
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_every_task_gets_what_its_feature_spec_says(case: TaskAwareCase, batch: int, training: bool) -> None:
    encoder = build(case).train(training)
    output = encoder(torch.randn(batch, *case.shape))
    assert tuple(output) == tuple(encoder.feature_spec) == NAMES
    for task, spec in encoder.feature_spec.items():
        if spec.kind == "vector":
            assert output[task].shape == (batch, spec.channels[0])
        else:
            height, width = case.shape[1:]
            expected = [(batch, c, height // s, width // s) for c, s in zip(spec.channels, spec.strides, strict=True)]
            own = output[task]
            maps = own.maps if isinstance(own, SupervisedFeatures) else own
            assert [tuple(m.shape) for m in maps] == expected


def reached_by(encoder: TaskAwareEncoder, inputs: Tensor) -> dict[str, set[str]]:
    """Which tasks send a gradient to each parameter."""
    output = encoder(inputs)
    reached: dict[str, set[str]] = {name: set() for name, _ in encoder.named_parameters()}
    for task, features in output.items():
        encoder.zero_grad()
        sum((f * torch.randn_like(f)).sum() for f in as_list(features)).backward(retain_graph=True)
        for name, parameter in encoder.named_parameters():
            if parameter.grad is not None and bool(parameter.grad.abs().sum() > 0):
                reached[name].add(task)
    return reached


@task_aware
def test_shared_parameters_are_those_that_more_than_one_task_trains(case: TaskAwareCase) -> None:
    encoder = build(case).train()
    shared = {id(parameter) for parameter in encoder.shared_parameters()}
    reached = reached_by(encoder, torch.randn(16, *case.shape))
    for name, parameter in encoder.named_parameters():
        if name in ROWS_BY_TASK:
            assert id(parameter) not in shared
        elif reached[name]:
            assert (len(reached[name]) > 1) == (id(parameter) in shared), (name, reached[name])


@task_aware
def test_every_parameter_gets_a_gradient(case: TaskAwareCase) -> None:
    encoder = build(case).train()
    output = encoder(torch.randn(4, *case.shape))
    sum((f * torch.randn_like(f)).sum() for features in output.values() for f in as_list(features)).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


@task_aware
def test_eval_is_deterministic_and_survives_state_dict_and_deepcopy(case: TaskAwareCase) -> None:
    encoder = build(case).eval()
    other = case.build().eval()
    other.load_state_dict(encoder.state_dict())
    inputs = torch.randn(2, *case.shape)
    with torch.no_grad():
        expected = encoder(inputs)
        for module in (encoder, other, copy.deepcopy(encoder)):
            torch.testing.assert_close(module(inputs), expected, rtol=0, atol=0)


@task_aware
def test_half_precision_stays_in_it(case: TaskAwareCase) -> None:
    encoder = build(case).train()
    with torch.autocast("cpu", torch.bfloat16):
        output = encoder(torch.randn(4, *case.shape))
    values = [f for features in output.values() for f in as_list(features)]
    assert all(f.isfinite().all() for f in values)
    sum(f.float().sum() for f in values).backward()


@task_aware
def test_one_task_is_enough_and_the_module_trains_with_a_gradient_balancer(case: TaskAwareCase) -> None:
    def module_of(encoder: TaskAwareEncoder) -> MultiTaskModule:
        return MultiTaskModule(encoder, {t: Regression(head=PooledHead) for t in NAMES}, MGDA(at="parameters"))

    module = module_of(build(case)).train()
    inputs = torch.randn(8, *case.shape)
    targets = {task: inputs.flatten(1)[:, k : k + 1].clone() for k, task in enumerate(NAMES)}
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        torch.manual_seed(1)
        total = module.training_step((inputs, targets))
        total.backward()
        optimizer.step()
        losses.append(sum(loss.item() for loss in module.task_losses((inputs, targets)).values()))
    assert losses[-1] < 0.7 * losses[0]


@task_aware
def test_every_parameter_takes_part_in_a_step_with_labels_of_one_task(case: TaskAwareCase) -> None:
    module = MultiTaskModule(build(case), {t: Regression(head=PooledHead) for t in NAMES}).train()
    inputs = torch.randn(4, *case.shape)
    module.training_step((inputs, {"b": torch.randn(4, 1)})).backward()
    assert [name for name, p in module.encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("tasks", [[], ["a", "a"]], ids=["none", "twice"])
def test_tasks_that_are_none_or_come_twice_raise(tasks: list[str]) -> None:
    with pytest.raises(ValueError, match="tasks must be one or more different names"):
        CGC(MLPEncoder(4, [4]), tasks)


def test_an_encoder_without_features_raises() -> None:
    with pytest.raises(ValueError, match="Linear must declare the same features for all tasks"):
        CGC(nn.Linear(4, 4), NAMES)
    assert FeatureSpec("vector", (4,)).kind == "vector"
