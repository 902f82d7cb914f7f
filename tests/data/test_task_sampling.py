from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from lightning_mtl.data import (
    AnnealedSampling,
    DynamicSampling,
    FixedRatios,
    ProportionalSampling,
    RoundRobinSampling,
    TaskSampling,
    TemperatureSampling,
    UniformSampling,
)

SIZES = {"mnli": 3927, "cola": 85, "wnli": 6}
POLICIES: dict[str, TaskSampling] = {
    "proportional": ProportionalSampling(),
    "uniform": UniformSampling(),
    "square-root": TemperatureSampling(2.0),
    "annealed": AnnealedSampling(5),
    "fixed": FixedRatios({"wnli": 1, "mnli": 7, "cola": 2}),
    "round-robin": RoundRobinSampling(),
    "dynamic": DynamicSampling(dict.fromkeys(SIZES, 0.8), "accuracy"),
}


@pytest.mark.parametrize("epoch", [0, 3, 9])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_probabilities_are_positive_and_sum_to_one_in_the_order_of_the_tasks(policy: TaskSampling, epoch: int) -> None:
    found = policy.probabilities(SIZES, epoch)
    assert list(found) == list(SIZES)
    assert min(found.values()) > 0
    assert sum(found.values()) == pytest.approx(1, abs=1e-12)


def test_a_temperature_is_a_power_between_proportional_and_uniform() -> None:
    total = sum(SIZES.values())
    assert TemperatureSampling(1.0).probabilities(SIZES, 0) == pytest.approx({k: n / total for k, n in SIZES.items()})
    roots = {task: math.sqrt(size) for task, size in SIZES.items()}
    expected = {task: root / sum(roots.values()) for task, root in roots.items()}
    assert TemperatureSampling(2.0).probabilities(SIZES, 0) == pytest.approx(expected)
    assert TemperatureSampling(math.inf).probabilities(SIZES, 0) == pytest.approx(dict.fromkeys(SIZES, 1 / 3))


def test_annealing_follows_the_exponents_of_bert_and_pals() -> None:
    epochs = 25
    sampling = AnnealedSampling(epochs)
    for epoch in (1, 2, 13, 25):  # the paper counts from 1: alpha = 1 - 0.8 (e - 1) / (E - 1)
        alpha = 1 - 0.8 * (epoch - 1) / (epochs - 1)
        powers = {task: size**alpha for task, size in SIZES.items()}
        expected = {task: power / sum(powers.values()) for task, power in powers.items()}
        assert sampling.probabilities(SIZES, epoch - 1) == pytest.approx(expected)
    assert sampling.probabilities(SIZES, 99) == sampling.probabilities(SIZES, epochs - 1)
    assert AnnealedSampling(1).probabilities(SIZES, 0) == pytest.approx(ProportionalSampling().probabilities(SIZES, 0))


def test_huge_data_sets_do_not_overflow() -> None:
    found = TemperatureSampling(2.0).probabilities({"a": 10**300, "b": 10**300}, 0)
    assert found == {"a": 0.5, "b": 0.5}


def dynamic(**options: Any) -> DynamicSampling:
    return DynamicSampling({"a": 0.9, "b": 0.8}, metric={"a": "accuracy", "b": "f1"}, **options)


def test_dynamic_sampling_follows_the_gaps_to_the_single_task_scores() -> None:
    sampling = dynamic()
    sizes = {"a": 30, "b": 10}
    assert sampling.probabilities(sizes, 0) == {"a": 0.75, "b": 0.25}
    sampling.observe({"a": {"accuracy": 0.8}})  # b is not known yet
    assert sampling.probabilities(sizes, 0) == {"a": 0.75, "b": 0.25}
    sampling.observe({"a": {"accuracy": torch.tensor(0.7)}, "b": {"f1": torch.tensor(0.2), "loss": 3.0}})
    assert sampling.probabilities(sizes, 1) == pytest.approx({"a": 0.25, "b": 0.75})
    sampling.observe({"a": {"accuracy": 0.95}, "b": {"f1": 0.71}})  # a is ahead: the floor
    assert sampling.probabilities(sizes, 1) == pytest.approx({"a": 0.1, "b": 0.9})
    sampling.observe({"a": {"accuracy": math.nan}, "b": {"f1": 0.6}})
    assert sampling.probabilities(sizes, 1) == pytest.approx({"a": 0.5, "b": 0.5})


def test_dynamic_sampling_by_a_loss_turns_the_gap_around() -> None:
    sampling = DynamicSampling({"a": 0.1, "b": 0.1}, "loss", higher_is_better=False, initial=UniformSampling())
    assert sampling.probabilities({"a": 30, "b": 10}, 0) == {"a": 0.5, "b": 0.5}
    sampling.observe({"a": {"loss": 0.4}, "b": {"loss": 0.2}})
    assert sampling.probabilities({"a": 30, "b": 10}, 1) == pytest.approx({"a": 0.75, "b": 0.25})


def test_the_state_of_dynamic_sampling_is_plain_and_comes_back() -> None:
    sampling = dynamic()
    sampling.observe({"a": {"accuracy": 0.7}, "b": {"f1": 0.2}})
    other = dynamic()
    other.load_state_dict(json.loads(json.dumps(sampling.state_dict())))
    assert other.probabilities({"a": 3, "b": 1}, 1) == sampling.probabilities({"a": 3, "b": 1}, 1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TemperatureSampling(0.5), "TemperatureSampling: temperature must be at least 1, got 0.5"),
        (lambda: AnnealedSampling(0), "AnnealedSampling: epochs must be at least 1, got 0"),
        (lambda: AnnealedSampling(3, end=-1), "AnnealedSampling: end must be finite and not negative, got -1"),
        (lambda: FixedRatios({"a": 0.0}), "FixedRatios: ratios must be positive and finite, got 0.0 for task 'a'"),
        (
            lambda: FixedRatios({"b": 1.0}).probabilities({"a": 1}, 0),
            r"ratios must name the tasks \['a'\], got \['b'\]",
        ),
        (lambda: dynamic(floor=0.0), "DynamicSampling: floor must be positive, got 0.0"),
        (lambda: DynamicSampling({"a": 1.0}, {"b": "x"}), r"metric must name the tasks \['a'\], got \['b'\]"),
        (lambda: dynamic().probabilities({"a": 1}, 0), r"references must name the tasks \['a'\], got \['a', 'b'\]"),
        (lambda: dynamic().observe({"a": {"f1": 1.0}}), r"metric of task 'a' \(\['f1'\]\), got 'accuracy'"),
    ],
)
def test_bad_arguments_are_named(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
