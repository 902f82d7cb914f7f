"""Binding, state and validation that all balancers inherit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from lightning_mtl.balancers import DWA, FAMO, EqualWeighting, FixedWeighting, GradNorm, UncertaintyWeighting
from lightning_mtl.balancers.base import put, take


def test_the_first_call_binds_the_tasks() -> None:
    balancer = DWA()
    balancer({"b": torch.tensor(1.0), "a": torch.tensor(2.0)})
    assert balancer.task_names == ("b", "a")
    assert balancer.count.tolist() == [1, 1]


def test_binding_the_same_tasks_again_keeps_order_and_state() -> None:
    balancer = DWA(["a", "b"])
    balancer({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
    balancer.bind(["b", "a"])
    assert balancer.task_names == ("a", "b")
    assert balancer.running_mean.tolist() == [1, 2]


def test_binding_other_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DWA: bound to the tasks \['a'\], got \['b'\]"):
        DWA(["a"]).bind(["b"])


@pytest.mark.parametrize("tasks", [[], ["a", "a"]])
def test_task_names_must_be_distinct(tasks: list[str]) -> None:
    with pytest.raises(ValueError, match="DWA: task names must be distinct and at least one"):
        DWA(tasks)


def test_a_balancer_that_learns_parameters_must_know_its_tasks_before_the_first_call() -> None:
    balancer = UncertaintyWeighting()
    for _ in range(2):
        with pytest.raises(ValueError, match=r"UncertaintyWeighting: has parameters .* pass tasks=\['a'\]"):
            balancer({"a": torch.tensor(1.0)})


def test_a_state_with_the_tasks_in_another_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DWA: the state to load has the tasks in the order \['b', 'a'\]"):
        DWA(["a", "b"]).load_state_dict(DWA(["b", "a"]).state_dict())


def test_a_state_of_other_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="DWA: bound to the tasks"):
        DWA(["a", "b"]).load_state_dict(DWA(["a", "c"]).state_dict())


def test_an_unbound_state_can_be_loaded() -> None:
    balancer = FAMO()
    balancer.load_state_dict(FAMO().state_dict())
    assert balancer.task_names == ()


def test_reset_before_binding_keeps_it_unbound() -> None:
    balancer = FAMO()
    balancer.end_epoch()
    balancer.reset()
    assert (balancer.task_names, balancer.epochs) == ((), 0)


def test_state_made_after_a_move_lies_on_the_new_device() -> None:
    balancer = FAMO().to("meta")
    balancer.bind(["a", "b"])
    assert {tensor.device.type for tensor in balancer.buffers()} == {"meta"}


def test_calls_and_epochs_are_counted_and_saved() -> None:
    balancer = EqualWeighting()
    for _ in range(3):
        balancer({"a": torch.tensor(1.0)})
    balancer.end_epoch()
    other = EqualWeighting()
    other.load_state_dict(balancer.state_dict())
    assert (other.steps, other.epochs, other.task_names) == (3, 1, ("a",))


@pytest.mark.parametrize("rows", [[0, 1, 2], [0, 2], [1]])
def test_take_and_put_agree_with_indexing(rows: list[int]) -> None:
    state = torch.tensor([1.0, 2.0, 3.0])
    expected = state.clone()
    found = take(state, rows)
    assert torch.equal(found, expected[rows])
    found += 1
    assert torch.equal(state, expected)
    put(state, rows, found.double())
    expected[rows] += 1
    assert torch.equal(state, expected)


def test_weights_of_the_last_step_are_a_copy() -> None:
    balancer = EqualWeighting()
    balancer({"a": torch.tensor(1.0)})
    balancer.weights.clear()
    assert list(balancer.weights) == ["a"]


def test_a_balancer_can_be_copied_after_a_step_of_training() -> None:
    balancer = UncertaintyWeighting(["a"])
    balancer({"a": torch.tensor(1.0, requires_grad=True)}).backward()
    assert copy.deepcopy(balancer).weights == balancer.weights


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FixedWeighting({"a": -1.0}), "FixedWeighting: weights must not be negative"),
        (lambda: FixedWeighting({"a": 0.0}), "FixedWeighting: weights must not be negative nor all be zero"),
        (lambda: FAMO(["a"], min_losses={"b": 0.0}), r"FAMO: min_losses must have one entry .* \['a'\], got \['b'\]"),
        (lambda: GradNorm(["a"], initial_losses={"a": 1.0, "b": 1.0}), "GradNorm: initial_losses must have one entry"),
    ],
)
def test_numbers_per_task_are_checked(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
