"""Weights by schedule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_mtl.balancers import Balancer, LossSchedule, ScheduledWeighting
from lightning_mtl.nn.recorded import describe


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (LossSchedule(start=0.5), [0.5, 0.5, 0.5, 0.5]),
        (LossSchedule("linear", 1.0, 3.0, steps=4), [1.0, 2.0, 3.0, 3.0]),
        (LossSchedule("cosine", 1.0, 3.0, steps=4), [1.0, 2.0, 3.0, 3.0]),
        (LossSchedule("exponential", 1.0, 4.0, steps=4), [1.0, 2.0, 4.0, 4.0]),
        (LossSchedule("step", 1.0, 0.0, steps=3), [1.0, 1.0, 0.0, 0.0]),
    ],
    ids=lambda value: value.type if isinstance(value, LossSchedule) else "",
)
def test_values_at_start_middle_end_and_after(schedule: LossSchedule, expected: list[float]) -> None:
    assert [schedule.at(step) for step in (0, 2, 4, 9)] == pytest.approx(expected)


def test_cosine_is_flat_at_both_ends() -> None:
    schedule = LossSchedule("cosine", 0.0, 1.0, steps=100)
    assert schedule.at(1) == pytest.approx((1 - math.cos(math.pi / 100)) / 2)
    assert schedule.at(99) == pytest.approx(1 - schedule.at(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"type": "square"}, "LossSchedule: type must be one of .*, got 'square'"),
        ({"start": -1.0}, "LossSchedule: start must be finite and not negative, got -1.0"),
        ({"end": math.inf}, "LossSchedule: end must be finite and not negative, got inf"),
        ({"type": "linear"}, "LossSchedule: steps must be positive for type 'linear', got 0"),
        ({"type": "exponential", "end": 0.0, "steps": 1}, "LossSchedule: start and end must be positive for type"),
    ],
)
def test_schedules_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LossSchedule(**arguments)


@pytest.mark.parametrize("interval", ["step", "epoch"])
def test_a_schedule_goes_on_with_steps_or_epochs_while_its_task_is_absent(interval: Any) -> None:
    balancer = ScheduledWeighting({"a": LossSchedule(), "b": LossSchedule("linear", 0.0, 1.0, steps=4)}, interval)
    found = []
    for tasks in ("ab", "a", "ab", "ab"):
        balancer({name: torch.tensor(1.0) for name in tasks})
        found.append({name: float(weight) for name, weight in balancer.weights.items()}.get("b"))
        if len(found) == 2:
            balancer.end_epoch()
    assert found == ([0.0, None, 0.5, 0.75] if interval == "step" else [0.0, None, 0.25, 0.25])


def test_interval_is_checked() -> None:
    with pytest.raises(ValueError, match="ScheduledWeighting: interval must be 'step' or 'epoch', got 'day'"):
        ScheduledWeighting({"a": LossSchedule()}, "day")  # type: ignore[arg-type]


def parse(config: dict[str, Any]) -> Balancer:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Balancer, "balancer")
    balancer: Balancer = parser.instantiate_classes(parser.parse_object({"balancer": config})).balancer
    return balancer


def test_a_recipe_writes_schedules_as_mappings() -> None:
    schedule = {"type": "cosine", "start": 0.1, "end": 1.0, "steps": 100}
    balancer = parse(
        {
            "class_path": "lightning_mtl.balancers.ScheduledWeighting",
            "init_args": {"schedules": {"seg": {"type": "constant"}, "depth": schedule}},
        }
    )
    assert isinstance(balancer, ScheduledWeighting)
    assert balancer.schedules == {"seg": LossSchedule(), "depth": LossSchedule("cosine", 0.1, 1.0, 100)}


def test_its_written_down_form_builds_it_again() -> None:
    balancer = ScheduledWeighting({"a": LossSchedule("linear", 1.0, 0.0, 3), "b": LossSchedule()}, "epoch")
    again = parse(describe(balancer))
    assert isinstance(again, ScheduledWeighting)
    assert (again.schedules, again.interval) == (balancer.schedules, balancer.interval)
