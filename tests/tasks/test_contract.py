"""What every task does."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import warnings
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

from lightning_mtl import tasks
from lightning_mtl.metrics import TaskMetrics
from lightning_mtl.nn.recorded import describe
from lightning_mtl.tasks import Task
from tests.tasks.cases import CASES, DETECTION, SIZE, TaskCase

every = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


def built(case: TaskCase) -> Task:
    task = case.build()
    task.build_head(case.spec)
    return task


def features(case: TaskCase, n: int) -> Any:
    if not case.dense:
        return torch.randn(n, *case.sample)
    spec = case.spec
    return [torch.randn(n, c, 32 // s, 32 // s) for c, s in zip(spec.channels, spec.strides, strict=True)]


def raw(task: Task, case: TaskCase, n: int) -> Tensor:
    out: Tensor = task(features(case, n), SIZE).detach()
    return out


@every
@pytest.mark.parametrize("n", [1, 3])
def test_default_head_gives_a_prediction_that_fits_the_target(case: TaskCase, n: int) -> None:
    task = built(case)
    prediction = task(features(case, n), SIZE)
    loss = task.loss(prediction, case.target(n))
    assert loss.shape == ()
    assert torch.isfinite(loss)
    loss.backward()
    missing = [name for name, p in task.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert missing == []


@every
def test_without_a_size_a_dense_prediction_keeps_that_of_the_head(case: TaskCase) -> None:
    if not case.dense:
        pytest.skip("no dense task")
    task = built(case)
    assert task(features(case, 2)).shape[-2:] == (8, 8)
    assert task(features(case, 2), (8, 8)).shape[-2:] == (8, 8)
    assert task(features(case, 2), SIZE).shape[-2:] == SIZE


@every
def test_perfect_prediction_has_no_loss_and_the_best_metrics(case: TaskCase) -> None:
    task, target = case.build(), case.target(30)
    assert case.perfect is not None
    prediction = case.perfect(target)
    torch.testing.assert_close(task.loss(prediction, target).item(), 0.0, atol=1e-6, rtol=0)
    task.update_metrics(prediction, target)
    for name, value in task.metrics.compute().items():
        if name == "ods_f":  # thinning takes some of the scattered pixels
            continue
        best = 1.0 if task.metrics[name].higher_is_better or name == "perplexity" else 0.0
        assert value.item() == pytest.approx(best, abs=0.006), name


@every
def test_num_labelled_counts_what_the_loss_averages_over(case: TaskCase) -> None:
    task, target = built(case), case.target(5)
    prediction = raw(task, case, 5)
    counts = [task.num_labelled(part) for part in (target[:2], target[2:])]
    losses = [task.loss(prediction[:2], target[:2]), task.loss(prediction[2:], target[2:])]
    assert all(count.shape == () and not count.is_floating_point() for count in counts)
    assert task.num_labelled(target) == sum(counts)
    if not case.joins:
        return
    joined = sum(count * loss for count, loss in zip(counts, losses, strict=True)) / sum(counts)
    torch.testing.assert_close(task.loss(prediction, target), joined)


@every
def test_without_labels_loss_and_gradients_are_exactly_zero_and_metrics_are_untouched(case: TaskCase) -> None:
    task, target = built(case), case.target(3)
    nothing = torch.full_like(target, case.hole)
    prediction = task(features(case, 3), SIZE)
    loss = task.loss(prediction, nothing)
    loss.backward()
    assert loss == 0
    assert task.num_labelled(nothing) == 0
    assert all(p.grad is not None and (p.grad == 0).all() for p in task.parameters())
    task.update_metrics(prediction, nothing)
    assert all(value.isnan() for value in task.metrics.compute().values())
    task.update_metrics(prediction, target)
    with_nothing = task.metrics.compute()
    task.metrics.reset()
    task.update_metrics(prediction, target)
    for name, value in task.metrics.compute().items():
        torch.testing.assert_close(value, with_nothing[name], rtol=0, atol=0, equal_nan=True)


@every
def test_metrics_have_names_and_directions_and_stay_silent(case: TaskCase) -> None:
    task = case.build()
    assert isinstance(task.metrics, TaskMetrics)
    assert tuple(sorted(task.metrics.keys())) == case.metrics
    assert all(task.metrics[name].higher_is_better in (True, False) for name in task.metrics)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        task.metrics.compute()
        task = built(case)
        task.update_metrics(raw(task, case, 1), case.target(1))  # one sample, one class
        values = task.metrics.compute()
    assert tuple(sorted(values)) == case.metrics
    assert all(value.shape == () for value in values.values())


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions_are_scored_and_read_in_float32(case: TaskCase, dtype: torch.dtype) -> None:
    task, target = built(case), case.target(3)
    prediction = raw(task, case, 3).to(dtype)
    loss = task.loss(prediction, target)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, task.loss(prediction.float(), target))
    assert task.predict(prediction).dtype in (torch.float32, torch.int64)
    task.update_metrics(prediction, target)


@every
def test_forward_runs_under_autocast(case: TaskCase) -> None:
    task = built(case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = task(features(case, 2), SIZE)
        loss = task.loss(prediction, case.target(2))
    assert loss.dtype == torch.float32
    loss.backward()


@every
def test_prediction_is_readable_and_drawn_like_the_target(case: TaskCase) -> None:
    task, target = built(case), case.target(2)
    predicted = task.predict(raw(task, case, 2))
    assert predicted.shape == (2, *case.predicted)
    for value in (predicted, target):
        picture = task.render(value)
        assert picture.dtype == torch.uint8
        assert picture.shape == ((2, 3, *SIZE) if case.dense else (0, 3, 1, 1))


@every
def test_unlabelled_pixels_are_drawn_in_one_colour_of_their_own(case: TaskCase) -> None:
    if not case.dense:
        pytest.skip("nothing is drawn")
    task, target = case.build(), case.target(2)
    missing = target.isnan() if case.hole != case.hole else target == case.hole
    hole = missing.view(2, -1, *SIZE).all(1)
    picture = task.render(target).movedim(1, -1)
    assert len(picture[hole].unique(dim=0)) == 1
    assert not (picture[~hole] == picture[hole][0]).all(-1).any()


@every
def test_bad_label_is_refused(case: TaskCase) -> None:
    if case.bad_label is None:
        pytest.skip("every value is a label or a hole")
    task, target = built(case), case.target(3)
    target.view(-1)[-1] = case.bad_label
    with pytest.raises(ValueError, match=f"target must hold .*, got {case.bad_label}"):
        task.loss(raw(task, case, 3), target)


@every
def test_prediction_of_another_size_is_refused(case: TaskCase) -> None:
    task, target = built(case), case.target(3)
    with pytest.raises(ValueError, match=r"must (be|have) .*, got \("):
        task.loss(raw(task, case, 3)[:2], target)


@every
def test_task_survives_deepcopy_pickle_and_state_dict(case: TaskCase) -> None:
    task, target = built(case), case.target(3)
    prediction = raw(task, case, 3)
    task.update_metrics(prediction, target)
    inputs = features(case, 2)
    other = built(case)
    other.load_state_dict(task.state_dict())
    for twin in (copy.deepcopy(task), pickle.loads(pickle.dumps(task)), other):
        assert torch.equal(twin(inputs, SIZE), task(inputs, SIZE))
        assert twin.loss(prediction, target) == task.loss(prediction, target)
    torch.testing.assert_close(copy.deepcopy(task).metrics.compute(), task.metrics.compute(), equal_nan=True)


@every
def test_state_dict_holds_parameters_of_the_task_only(case: TaskCase) -> None:
    task = case.build()
    assert set(task.state_dict()) == {name for name, _ in task.named_parameters()}


@every
def test_forward_and_predict_export_in_one_graph(case: TaskCase) -> None:
    task = built(case).eval()

    class Deployed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.task = task

        def forward(self, inputs: Any) -> Tensor:
            out: Tensor = task.predict(task(inputs, SIZE))
            return out

    inputs = features(case, 2)
    exported = torch.export.export(Deployed(), (inputs,))
    buffer = io.BytesIO()
    torch.export.save(exported, buffer)
    torch.testing.assert_close(exported.module()(inputs), task.predict(task(inputs, SIZE)))


@every
def test_task_is_rebuilt_from_its_recorded_arguments(case: TaskCase) -> None:
    parser = ArgumentParser()
    parser.add_argument("--task", type=Task)
    task = case.build()
    again = parser.instantiate_classes(parser.parse_object({"task": describe(task)})).task
    assert type(again) is type(task)
    given = describe(task)["init_args"]
    assert {name: describe(again)["init_args"][name] for name in given} == given
    again.build_head(case.spec)


CONCRETE = {name for name in tasks.__all__ if not inspect.isabstract(getattr(tasks, name))}


@pytest.mark.parametrize("name", sorted(CONCRETE))
def test_head_and_weight_are_arguments_of_every_task(name: str) -> None:
    required = {"MulticlassClassification": 3, "MultilabelClassification": 3, "OrdinalClassification": 3}
    required |= {"SemanticSegmentation": 3, "FCOS": 3, "FasterRCNN": 3, "RetinaNet": 3}
    required |= {"TextClassification": 3, "TokenClassification": 3, "MultipleChoice": 3}
    first = (required[name],) if name in required else ()
    head = torch.nn.Identity()
    task = getattr(tasks, name)(*first, head=head, loss_weight=0.5)
    assert task.head is head
    assert task.loss_weight == 0.5
    with pytest.raises(ValueError, match=f"{name}: loss_weight must be positive, got 0"):
        getattr(tasks, name)(*first, loss_weight=0)


def test_every_public_task_has_a_case() -> None:
    covered = {type(case.build()).__name__ for case in (*CASES, *DETECTION)} | {"FasterRCNN"}
    covered |= {"TextToText"}  # its default head has no parameters, its metrics read strings: test_text_to_text.py
    assert covered == CONCRETE
