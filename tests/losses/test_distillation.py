"""Losses on a teacher's logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lightning_mtl.losses import DistillationKL, LogitMatching


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_is_that_of_torch(temperature: float) -> None:
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    expected = temperature**2 * F.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    torch.testing.assert_close(DistillationKL(temperature)(student, teacher), expected)


def test_matching_is_the_mean_squared_error_of_torch_when_all_classes_are_known() -> None:
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    torch.testing.assert_close(LogitMatching()(student, teacher), F.mse_loss(student, teacher))


def test_unknown_classes_are_as_if_they_were_not_there() -> None:
    student, teacher = torch.randn(4, 6), torch.randn(4, 6)
    fewer = teacher.clone()
    fewer[:, 4:] = -torch.inf
    torch.testing.assert_close(DistillationKL(2.0)(student, fewer), DistillationKL(2.0)(student[:, :4], teacher[:, :4]))
    torch.testing.assert_close(LogitMatching()(student, fewer), LogitMatching()(student[:, :4], teacher[:, :4]) * 4 / 6)


@pytest.mark.parametrize("loss", [DistillationKL(), LogitMatching()], ids=lambda loss: type(loss).__name__)
def test_unknown_classes_get_no_gradient(loss: DistillationKL | LogitMatching) -> None:
    student = torch.randn(3, 4, requires_grad=True)
    teacher = torch.randn(3, 4)
    teacher[:, 2] = -torch.inf
    loss(student, teacher).backward()
    assert student.grad is not None
    assert (student.grad[:, 2] == 0).all()
    assert (student.grad[:, [0, 1, 3]] != 0).all()


def test_half_the_matching_is_the_limit_of_the_divergence_at_high_temperature() -> None:
    student, teacher = (z - z.mean(1, keepdim=True) for z in torch.randn(2, 5, 7, dtype=torch.float64))
    torch.testing.assert_close(
        DistillationKL(1e4)(student, teacher), LogitMatching()(student, teacher) / 2, rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=f"DistillationKL: temperature must be positive, got {temperature}"):
        DistillationKL(temperature)


def test_labels_in_place_of_logits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"target must be the logits \(B, C, ...\) of a teacher, got .* torch.int64"):
        LogitMatching()(torch.randn(3, 4), torch.zeros(3, 4, dtype=torch.int64))
