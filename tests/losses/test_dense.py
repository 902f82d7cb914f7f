"""The dense losses against their equations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from lightning_mtl.losses import BalancedBCE, BerHu, CosineDistance, Huber, SILog


def test_balance_of_an_image_is_the_share_of_its_negatives() -> None:
    target = torch.tensor([[1.0, 0.0, 0.0, 255.0], [1.0, 1.0, 1.0, 0.0]]).view(2, 1, 2, 2)
    logits = torch.randn(2, 1, 2, 2)
    values = F.binary_cross_entropy_with_logits(logits, target.clamp(max=1), reduction="none")
    weights = torch.tensor([[2 / 3, 1 / 3, 1 / 3, 0.0], [0.25, 0.25, 0.25, 0.75]]).view(2, 1, 2, 2)
    torch.testing.assert_close(BalancedBCE("image")(logits, target), (weights * values).sum() / 7)


def test_fixed_balance_weighs_the_two_classes() -> None:
    target = torch.tensor([1.0, 0.0, 0.0, 1.0]).view(1, 1, 2, 2)
    logits = torch.randn(1, 1, 2, 2)
    values = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    weights = torch.where(target == 1, 0.95, 0.05)
    torch.testing.assert_close(BalancedBCE(0.95)(logits, target), (weights * values).mean())


@pytest.mark.parametrize("balance", [0.0, 1.0, -1.0, "batch"])
def test_balance_out_of_range_is_refused(balance: object) -> None:
    with pytest.raises(ValueError, match=r"balance must be 'image' or in \(0, 1\)"):
        BalancedBCE(balance)  # type: ignore[arg-type]


def test_berhu_is_its_equation_with_the_threshold_of_each_image() -> None:
    prediction, target = torch.rand(3, 1, 4, 4).double() * 5, torch.rand(3, 1, 4, 4) * 5
    target[:, :, 0, 0] = 0
    values = BerHu("nonpositive", reduction="none")(prediction, target).numpy()
    for p, t, value in zip(prediction.numpy(), target.double().numpy(), values, strict=True):
        error = np.abs(p - t)[t > 0]
        c = error.max() / 5
        np.testing.assert_allclose(value[t > 0], np.where(error <= c, error, (error**2 + c**2) / (2 * c)))


def test_berhu_gradient_takes_the_threshold_as_constant() -> None:
    prediction = torch.tensor([[0.5, 4.0, 10.0]], dtype=torch.float64, requires_grad=True)
    BerHu()(prediction, torch.zeros(1, 3)).backward()
    assert prediction.grad is not None
    torch.testing.assert_close(prediction.grad * 3, torch.tensor([[1.0, 2.0, 5.0]], dtype=torch.float64))


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0])
def test_silog_is_equation_4_of_eigen_et_al(factor: float) -> None:
    prediction, target = torch.rand(3, 1, 4, 4).double() + 0.1, torch.rand(3, 1, 4, 4).double() + 0.1
    target[0, 0, 0] = 0
    target[2] = 0
    expected = []
    for p, t in zip(prediction[:2].numpy(), target[:2].numpy(), strict=True):
        d = np.log(p[t > 0]) - np.log(t[t > 0])
        expected.append((d**2).mean() - factor * d.sum() ** 2 / d.size**2)
    assert SILog(factor)(prediction, target).item() == pytest.approx(np.mean(expected))


def test_silog_with_focus_one_does_not_see_a_common_factor() -> None:
    prediction, target = torch.rand(2, 1, 4, 4) + 0.1, torch.rand(2, 1, 4, 4) + 0.1
    loss = SILog(1.0)
    torch.testing.assert_close(loss(10 * prediction, target), loss(prediction, target))


def test_cosine_distance_is_one_minus_the_mean_dot_product_and_ignores_length() -> None:
    prediction, target = torch.randn(2, 3, 4, 4), F.normalize(torch.randn(2, 3, 4, 4), dim=1)
    expected = 1 - F.cosine_similarity(prediction, target, dim=1).mean()
    torch.testing.assert_close(CosineDistance()(prediction, target), expected)
    torch.testing.assert_close(CosineDistance()(1e15 * prediction, 0.5 * target), expected)


def test_opposite_normals_are_at_distance_two_and_zero_vectors_have_bounded_gradients() -> None:
    target = torch.tensor([[0.0, 0.0, 1.0]])
    assert CosineDistance()(-3 * target, target) == 2
    prediction = torch.zeros(1, 3, requires_grad=True)
    value = CosineDistance()(prediction, target)
    value.backward()
    assert value == 1
    assert prediction.grad is not None
    assert 0 < prediction.grad.abs().max() <= 1e4 * (1 + 1e-6)


def test_huber_is_that_of_torch() -> None:
    prediction, target = 3 * torch.randn(20), torch.randn(20)
    torch.testing.assert_close(Huber(0.7)(prediction, target), F.huber_loss(prediction, target, delta=0.7))
