"""Unit vectors and ranks."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from lightning_mtl.functional.ranks import average_ranks
from lightning_mtl.functional.unit_vectors import unit_vectors


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e30])
def test_unit_vectors_are_those_of_torch_at_every_scale(scale: float) -> None:
    vectors = torch.randn(5, 3, 2)
    vectors[:, 0] += vectors[:, 0].sign()  # not shorter than eps
    torch.testing.assert_close(unit_vectors(scale * vectors), F.normalize(vectors, dim=1))


def test_gradient_of_unit_vectors_is_that_of_the_value() -> None:
    assert torch.autograd.gradcheck(unit_vectors, torch.randn(4, 3).double().requires_grad_())


def test_zero_vector_stays_zero_with_bounded_gradient() -> None:
    vectors = torch.zeros(2, 3, requires_grad=True)
    unit = unit_vectors(vectors, eps=0.01)
    unit.sum().backward()
    assert (unit == 0).all()
    assert vectors.grad is not None
    torch.testing.assert_close(vectors.grad, torch.full((2, 3), 100.0))


def test_ranks_are_those_of_scipy() -> None:
    values = torch.randint(20, (100,)).float()
    np.testing.assert_array_equal(average_ranks(values).numpy(), scipy.stats.rankdata(values.numpy()))
