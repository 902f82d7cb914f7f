"""Collections of metrics."""

from __future__ import annotations

import torch
from torchmetrics import MetricCollection

from lightning_mtl.metrics import DepthAbsError, DepthRMSE, LabelledAccuracy, LabelledMAE, LabelledR2, TaskMetrics


def test_computing_before_any_update_gives_nan_without_a_warning() -> None:
    values = TaskMetrics({"accuracy": LabelledAccuracy(), "other": LabelledAccuracy()}).compute()
    assert sorted(values) == ["accuracy", "other"]
    assert all(value.isnan() for value in values.values())


def test_metrics_whose_states_are_equal_by_chance_stay_apart() -> None:
    values = []
    for collection in (TaskMetrics, MetricCollection):
        metrics = collection({"all": LabelledAccuracy(), "without one": LabelledAccuracy(ignore_index=1)})
        for target in (0, 1):  # equal states after the first batch, different ones after the second
            metrics.update(torch.tensor([0]), torch.tensor([target]))
        values.append({name: value.item() for name, value in metrics.compute().items()})
    assert values[0] == {"all": 0.5, "without one": 1.0}
    assert values[1] == {"all": 0.5, "without one": 0.5}, (
        "torchmetrics no longer joins them: TaskMetrics need not differ"
    )


def test_declared_groups_share_one_update() -> None:
    metrics = TaskMetrics({"mae": LabelledMAE(), "r2": LabelledR2()}, shared=[["mae", "r2"]])
    metrics.update(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0]))
    metrics.update(torch.tensor([3.0]), torch.tensor([3.0]))
    assert metrics.compute_groups == {0: ["mae", "r2"]}
    alone = LabelledR2()
    alone.update(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 3.0]))
    assert metrics.compute() == {"mae": torch.tensor(1 / 3), "r2": alone.compute()}


def test_groups_keep_working_after_a_reset() -> None:
    metrics = TaskMetrics({"abs": DepthAbsError(), "rmse": DepthRMSE()}, shared=[["abs", "rmse"]])
    for _ in range(2):
        metrics.update(torch.tensor([2.0]), torch.tensor([1.0]))
        assert metrics.compute() == {"abs": 1, "rmse": 1}
        metrics.reset()


def test_sums_do_not_stop_growing() -> None:
    metric = DepthAbsError()
    metric.totals += 2.0**24  # where float32 no longer holds every integer
    metric.count += 2**24
    for _ in range(8):
        metric.update(torch.tensor([2.0]), torch.tensor([1.0]))
    assert metric.totals[0] == 2**24 + 8
