"""What every loss does."""

from __future__ import annotations

import copy
import pickle
import re

import pytest
import torch
from torch import Tensor

from tests.losses.cases import CASES, LossCase

losses = pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)


def value_and_gradient(case: LossCase, prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    prediction = prediction.clone().requires_grad_()
    value = case.build("mean")(prediction, target)
    (gradient,) = torch.autograd.grad(value, prediction)
    return value.detach(), gradient


@losses
@pytest.mark.parametrize("n", [1, 4])
def test_mean_is_the_sum_of_the_unreduced_units_over_their_number(case: LossCase, n: int) -> None:
    prediction, target = case.batch(n)
    mean, unreduced = case.build("mean"), case.build("none")
    labelled = mean.labelled(target)
    values = unreduced(prediction, target)
    assert values.shape == labelled.shape
    assert labelled.any()
    assert (values[~labelled] == 0).all()
    assert mean(prediction, target).shape == ()
    torch.testing.assert_close(mean(prediction, target), values.sum() / labelled.sum())


@losses
def test_loss_of_a_joined_batch_is_the_mean_of_its_parts_weighted_by_their_labels(case: LossCase) -> None:
    loss = case.build("mean")
    prediction, target = case.batch(5)
    counts = [loss.labelled(part).sum() for part in (target[:1], target[1:])]
    parts = [loss(prediction[:1], target[:1]), loss(prediction[1:], target[1:])]
    joined = (parts[0] * counts[0] + parts[1] * counts[1]) / (counts[0] + counts[1])
    torch.testing.assert_close(loss(prediction, target), joined)


@losses
def test_gradient_is_that_of_the_value(case: LossCase) -> None:
    if not case.gradcheck:
        pytest.skip("checked on its own")
    prediction, target = case.batch(3)
    assert torch.autograd.gradcheck(lambda p: case.build("mean")(p, target), prediction.requires_grad_())


@losses
def test_without_labels_loss_and_gradient_are_exactly_zero(case: LossCase) -> None:
    prediction, target = case.batch(3)
    value, gradient = value_and_gradient(case, prediction, case.missing(target))
    assert value == 0
    assert (gradient == 0).all()


@losses
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_scored_in_float32(case: LossCase, dtype: torch.dtype) -> None:
    prediction, target = case.batch(3)
    value, gradient = value_and_gradient(case, prediction.to(dtype), target)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    torch.testing.assert_close(value, case.build("mean")(prediction.to(dtype).float(), target))


@losses
@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e4, -1e4])
def test_extreme_predictions_give_finite_losses_and_gradients(case: LossCase, scale: float) -> None:
    prediction, target = case.batch(3)
    value, gradient = value_and_gradient(case, (prediction * scale).float(), target)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()


@losses
def test_perfect_prediction_has_no_loss_and_no_other_has_less(case: LossCase) -> None:
    if case.perfect is None:
        pytest.skip("label smoothing has no zero")
    prediction, target = case.batch(3)
    torch.testing.assert_close(case.build("mean")(case.perfect(target), target).item(), 0.0, atol=1e-7, rtol=0)
    assert (case.build("none")(prediction, target) >= 0).all()


@losses
def test_prediction_of_another_shape_is_refused(case: LossCase) -> None:
    loss = case.build("mean")
    prediction, target = case.batch(3)
    for wrong in (prediction[:2], prediction[:, :0], prediction.unsqueeze(-1)):
        with pytest.raises(ValueError, match=rf"^{type(loss).__name__}: .* got .*{re.escape(str(tuple(wrong.shape)))}"):
            loss(wrong, target)


@losses
def test_value_that_is_no_label_is_refused_and_named(case: LossCase) -> None:
    if case.wrong_label is None:
        pytest.skip("every value is a label or a hole")
    loss = case.build("mean")
    prediction, target = case.batch(3)
    target.view(-1)[-1] = case.wrong_label
    with pytest.raises(ValueError, match=rf"^{type(loss).__name__}: target must hold .*, got {case.wrong_label}"):
        loss(prediction, target)


@losses
def test_loss_compiles_in_one_graph(case: LossCase) -> None:
    torch._dynamo.reset()
    prediction, target = case.batch(3)
    compiled = torch.compile(case.build("mean"), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(prediction, target), case.build("mean")(prediction, target))


@losses
def test_loss_survives_copy_and_pickle_and_has_no_state(case: LossCase) -> None:
    loss = case.build("mean")
    prediction, target = case.batch(3)
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other(prediction, target) == loss(prediction, target)
    assert not loss.state_dict()


@losses
def test_unknown_reduction_is_refused(case: LossCase) -> None:
    with pytest.raises(ValueError, match="reduction must be 'mean' or 'none', got 'sum'"):
        case.build("sum")  # type: ignore[arg-type]


def test_label_values_are_read_on_every_call_on_the_cpu_and_on_the_first_calls_elsewhere() -> None:
    loss = CASES[0].build("mean")
    elsewhere = torch.empty(3, device="meta")
    assert [loss._reads_values(elsewhere) for _ in range(12)] == [True] * 10 + [False] * 2
    assert loss._reads_values(torch.empty(3))
