"""What every metric does."""

from __future__ import annotations

import copy
import inspect
import json
import math
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lightning_mtl import metrics
from lightning_mtl.metrics import ExactMetric, TaskMetrics
from tests.metrics.cases import CASES, Batch, MetricCase

cases = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


def joined(batches: list[Batch]) -> Batch:
    return torch.cat([p for p, _ in batches]), torch.cat([t for _, t in batches])


def oracle(case: MetricCase, batches: list[Batch]) -> float:
    prediction, target = joined(batches)
    return case.oracle(prediction.double().numpy(), target.double().numpy())


def computed(case: MetricCase, batches: list[Batch]) -> Tensor:
    collection = TaskMetrics({"value": case.build()})
    for prediction, target in batches:
        collection.update(prediction, target)
    value: Tensor = collection.compute()["value"]
    return value


def all_holes(case: MetricCase, batch: Batch) -> Batch:
    return batch[0], torch.full_like(batch[1], case.hole)


@cases
@pytest.mark.parametrize("sizes", [(6,), (3, 1, 4)], ids=str)
def test_value_is_that_of_the_plain_computation_over_all_batches(case: MetricCase, sizes: tuple[int, ...]) -> None:
    batches = [case.batch(n) for n in sizes]
    assert computed(case, batches).item() == pytest.approx(oracle(case, batches), abs=case.tolerance)


@cases
def test_batches_without_labels_change_nothing(case: MetricCase) -> None:
    batch = case.batch(5)
    empty = all_holes(case, case.batch(2))
    assert computed(case, [empty, batch, empty]) == computed(case, [batch])


@cases
def test_value_is_nan_without_labels_and_without_batches(case: MetricCase) -> None:
    for batches in ([], [all_holes(case, case.batch(2))]):
        value = computed(case, batches)
        assert value.shape == ()
        assert value.isnan()


@cases
def test_prediction_of_unlabelled_units_does_not_matter(case: MetricCase) -> None:
    prediction, target = case.batch(5)
    hole = target.isnan() if math.isnan(case.hole) else target == case.hole
    other = torch.where(hole, torch.full_like(prediction, 1), prediction)
    assert computed(case, [(other, target)]) == computed(case, [(prediction, target)])


@cases
def test_metric_says_which_direction_is_better_and_gives_a_float32_scalar(case: MetricCase) -> None:
    assert case.build().higher_is_better in (True, False)
    value = computed(case, [case.batch(4)])
    assert value.dtype == torch.float32
    assert value.shape == ()


@cases
def test_reset_forgets(case: MetricCase) -> None:
    first, second = case.batch(3), case.batch(4)
    metric = case.build()
    metric.update(*first)
    metric.reset()
    metric.update(*second)
    assert metric.compute() == computed(case, [second])


@cases
def test_copy_and_pickle_keep_the_state(case: MetricCase) -> None:
    first, second = case.batch(3), case.batch(4)
    metric = case.build()
    metric.update(*first)
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric))):
        other.update(*second)
        assert other.compute() == computed(case, [first, second])


@cases
def test_forward_gives_the_value_of_the_batch_and_keeps_that_of_all(case: MetricCase) -> None:
    first, second = case.batch(4), case.batch(4)
    metric = case.build()
    metric.update(*first)
    assert metric(*second) == computed(case, [second])
    assert metric.compute() == computed(case, [first, second])


@cases
def test_cast_to_half_precision_leaves_the_sums_alone(case: MetricCase) -> None:
    metric = case.build()
    kinds = {name: getattr(value, "dtype", None) for name, value in metric.metric_state.items()}
    metric.to(torch.bfloat16)
    metric.half()
    assert {name: getattr(value, "dtype", None) for name, value in metric.metric_state.items()} == kinds
    batch = case.batch(4)
    metric.update(*batch)
    assert metric.compute() == computed(case, [batch])


@cases
def test_perfect_prediction_is_best(case: MetricCase) -> None:
    prediction, target = case.batch(6)
    metric = case.build()
    known = target.clamp(min=0) if case.hole == -100 else target.nan_to_num()
    best = computed(case, [(case.best(known), target)])
    ideal = 1.0 if metric.higher_is_better else 0.0
    assert best.item() == pytest.approx(ideal, abs=max(case.tolerance, 1e-3))
    assert abs(computed(case, [(prediction, target)]).item() - ideal) > abs(best.item() - ideal)


def test_every_public_metric_has_a_case() -> None:
    covered = {type(case.build()).__name__ for case in CASES}
    classes = {name for name in metrics.__all__ if inspect.isclass(getattr(metrics, name))}
    boxes = {"BoxAveragePrecision"}  # several values of lists of boxes: tested in test_detection.py
    texts = {"EntityF1", "ExactMatch", "RougeL", "TokenF1"}  # of strings: tested in test_text_scores.py
    pairs = {"PairMRR", "PairRecall"}  # of vectors: tested in test_text_metrics.py
    tokens = {"SequenceExactMatch", "TokenAccuracy", "TokenPerplexity"}  # of logits: tested in test_language.py
    assert covered == classes - {ExactMetric.__name__, TaskMetrics.__name__} - boxes - texts - pairs - tokens


def test_two_processes_give_the_value_of_all_their_data(tmp_path: Path) -> None:
    store, output = str(tmp_path / "store"), str(tmp_path / "values")
    command = [sys.executable, "-m", "tests.metrics.processes_worker"]
    root = Path(__file__).parents[2]
    workers = [subprocess.Popen([*command, str(rank), store, output], cwd=root) for rank in range(2)]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0]
    ranks = [json.loads(Path(f"{output}.{rank}").read_text()) for rank in range(2)]
    for case in CASES:
        torch.manual_seed(0)
        expected = oracle(case, [case.batch(8) for _ in range(3)])
        for values in ranks:
            assert values[f"{case.id}/both"] == pytest.approx(expected, abs=case.tolerance)
            assert values[f"{case.id}/one"] == pytest.approx(expected, abs=case.tolerance)
            assert np.isnan(values[f"{case.id}/none"])
