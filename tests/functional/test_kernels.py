"""Tangent kernels against explicit Jacobians, closed forms and reference values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_mtl.functional import (
    center_kernel,
    empirical_ntk,
    kernel_alignment,
    kernel_difficulty,
    kernel_distance,
    kernel_target_alignment,
)
from lightning_mtl.functional.kernels import GradientSketch, output_directions, target_kernel
from lightning_mtl.nn import QuadraticNetwork

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "grokking.json").read_text())["cases"]


def golden(function: str) -> list[dict[str, Any]]:
    found = [case for case in GOLDEN if case["inputs"]["function"] == function]
    assert found
    return found


def double(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def random_kernel(size: int = 6) -> Tensor:
    rows = torch.randn(size, 4, dtype=torch.float64)
    return rows @ rows.T


@pytest.mark.parametrize("case", golden("polynomial_ntk"))
def test_ntk_of_the_quadratic_network_is_that_of_the_reference(case: dict[str, Any]) -> None:
    weight = double(case["inputs"]["W"])
    units, features = weight.shape
    network = QuadraticNetwork(features, hidden=units, quadratic=case["inputs"]["eps"]).double()
    with torch.no_grad():
        network.weight.copy_(weight)
    kernel = empirical_ntk(network, double(case["inputs"]["X"]), [network.weight])
    torch.testing.assert_close(kernel * units, double(case["expected"]), rtol=case["rtol"], atol=case["atol"])


@pytest.mark.parametrize("case", golden("kernel_target_alignment"))
def test_alignment_is_that_of_the_reference(case: dict[str, Any]) -> None:
    kernel, target = double(case["inputs"]["K"]), double(case["inputs"]["y"])
    for centered, name in ((False, "uncentered"), (True, "centered")):
        found = kernel_target_alignment(kernel, target, centered).item()
        assert found == pytest.approx(case["expected"][name], rel=case["rtol"])


@pytest.mark.parametrize("case", golden("kernel_distance"))
def test_distance_is_that_of_the_reference(case: dict[str, Any]) -> None:
    found = kernel_distance(double(case["inputs"]["K"]), double(case["inputs"]["K0"])).item()
    assert found == pytest.approx(case["expected"], rel=case["rtol"])


def test_ntk_with_several_outputs_equals_the_explicit_jacobian() -> None:
    network = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    inputs = torch.randn(4, 5, dtype=torch.float64)
    parameters = dict(network.named_parameters())
    jacobian = torch.func.jacrev(lambda p: torch.func.functional_call(network, p, (inputs,)))(parameters)
    flat = torch.cat([part.flatten(2) for part in jacobian.values()], 2)
    expected = torch.einsum("icp,jcp->ij", flat, flat)
    torch.testing.assert_close(empirical_ntk(network, inputs, list(parameters.values())), expected)


def test_parameters_without_influence_or_gradient_add_nothing() -> None:
    network = nn.Linear(3, 1, bias=False)
    idle, frozen = nn.Parameter(torch.ones(4)), torch.ones(2)
    inputs = torch.randn(3, 3)
    alone = empirical_ntk(network, inputs, [network.weight])
    torch.testing.assert_close(empirical_ntk(network, inputs, [network.weight, idle, frozen]), alone)


def test_random_directions_estimate_the_trace_kernel_without_bias() -> None:
    network = nn.Linear(4, 10, bias=False)
    inputs = torch.randn(3, 4)
    exact = empirical_ntk(network, inputs, [network.weight])
    estimates = [empirical_ntk(network, inputs, [network.weight], max_directions=2, seed=s) for s in range(200)]
    # one estimate scatters by about 0.3; the mean of 200 by a fourteenth of that
    assert kernel_distance(torch.stack(estimates).mean(0), exact) < 1e-6
    torch.testing.assert_close(torch.stack(estimates).mean(0), exact, rtol=0.1, atol=1e-6)


def test_directions_are_the_axes_where_there_are_enough() -> None:
    assert output_directions(3, 4).equal(torch.eye(3))


def test_sketch_keeps_inner_products_to_its_stated_error() -> None:
    vectors = torch.randn(20, 30_000)
    vectors[:, :64] *= 50  # energy concentrated in few neighbours, as in one layer
    exact = vectors @ vectors.T
    sketch = GradientSketch(30_000, max_size=4093)
    rows = torch.stack([sketch(vector) for vector in vectors])
    norms = exact.diagonal().sqrt()
    errors = (rows @ rows.T - exact) / torch.outer(norms, norms)
    assert errors.square().mean().sqrt() < 2 / 4093**0.5


def test_sketch_of_short_vectors_is_exact_and_linear_for_long_ones() -> None:
    x, y = torch.randn(2, 10_000)
    assert GradientSketch(10_000)(x) is x
    sketch = GradientSketch(10_000, max_size=101)
    torch.testing.assert_close(sketch(x) - sketch(y), sketch(x - y), rtol=1e-4, atol=1e-3)
    assert sketch(x).equal(GradientSketch(10_000, max_size=101)(x))


def test_sketched_ntk_is_close_to_the_exact_one() -> None:
    network = nn.Sequential(nn.Linear(20, 200), nn.ReLU(), nn.Linear(200, 1))
    inputs = torch.randn(8, 20)
    parameters = list(network.parameters())
    exact = empirical_ntk(network, inputs, parameters)
    sketched = empirical_ntk(network, inputs, parameters, max_gradient_size=1021)
    assert kernel_distance(sketched, exact) < 0.01


def test_target_kernel_compares_classes_numbers_and_maps_and_skips_missing_labels() -> None:
    assert target_kernel(torch.tensor([1, 1, -100])).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert target_kernel(torch.tensor([2.0, float("nan")])).tolist() == [[4, 0], [0, 0]]
    maps = torch.tensor([[[0, 1], [255, 2]], [[0, 2], [255, 2]]])
    assert target_kernel(maps).tolist() == [[3, 2], [2, 3]]
    assert target_kernel(torch.tensor([255, 255])).tolist() == [[1, 1], [1, 1]]  # a class like any other
    assert target_kernel(torch.tensor([[True, False], [True, True]])).tolist() == [[1, 1], [1, 2]]


def test_alignment_is_one_for_the_targets_own_kernel_and_does_not_see_scale() -> None:
    classes = torch.tensor([0, 1, 2, 0, 1])
    own = target_kernel(classes).double()
    assert kernel_target_alignment(7 * own, classes).item() == pytest.approx(1)
    assert kernel_target_alignment(7 * own, classes, centered=True).item() == pytest.approx(1)
    kernel = random_kernel(5)
    assert kernel_target_alignment(kernel, classes).item() == pytest.approx(
        kernel_target_alignment(1e-10 * kernel, classes).item()
    )


def test_centering_is_the_projection_off_the_constant_vector() -> None:
    kernel = random_kernel()
    projection = torch.eye(6) - torch.ones(6, 6) / 6
    torch.testing.assert_close(center_kernel(kernel), projection.double() @ kernel @ projection.double())


def test_difficulty_is_the_energy_of_the_target_under_the_inverse_kernel() -> None:
    kernel, target = random_kernel(), torch.randn(6, dtype=torch.float64)
    scaled = kernel / kernel.diagonal().mean() + 1e-3 * torch.eye(6, dtype=torch.float64)
    expected = target @ torch.linalg.inv(scaled) @ target / (target @ target)
    assert kernel_difficulty(kernel, target, ridge=1e-3).item() == pytest.approx(expected.item(), rel=1e-9)
    assert kernel_difficulty(100 * kernel, -3 * target, ridge=1e-3).item() == pytest.approx(expected.item(), rel=1e-9)


def test_wrong_shapes_and_ridge_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kernels must be two \(n, n\) matrices, got \(2, 2\) and \(3, 3\)"):
        kernel_alignment(torch.eye(2), torch.eye(3))
    with pytest.raises(ValueError, match="ridge must be positive, got 0"):
        kernel_difficulty(torch.eye(2), torch.ones(2), ridge=0)
