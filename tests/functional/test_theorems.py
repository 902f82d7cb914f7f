"""What the papers prove, checked on random gradients; and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from lightning_mtl import functional as F
from tests.functional.cases import gradients, visits

FREE = ["random", "conflicting", "aligned", "dependent", "identical", "opposite", "wild norms"]


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


def cosines_to_update(rows: Tensor, weights: Tensor) -> Tensor:
    """Return the cosine of the update with every gradient, as far as rounding errors of the sum allow to tell.

    The products are divided by the length that the update would have without cancellation.
    """
    length = (weights.abs() * rows.norm(dim=1)).sum()
    return (rows @ (rows.T @ weights)) / (rows.norm(dim=1) * length)


def with_norm_ratio(rows: Tensor, ratio: float) -> Tensor:
    return (
        rows / rows.norm(dim=1, keepdim=True) * torch.logspace(0, math.log10(ratio), len(rows)).unsqueeze(-1).double()
    )


@pytest.mark.parametrize("ratio", [1.0, 10.0, 100.0, 1e4, 1e8])
@pytest.mark.parametrize("tasks", [3, 5])
@pytest.mark.parametrize(
    "method", [F.upgrad, F.dualproj, F.mgda, lambda g: F.cagrad(g, 1.0)], ids=["upgrad", "dualproj", "mgda", "cagrad"]
)
def test_no_task_is_harmed_at_any_norm_ratio(method, tasks: int, ratio: float) -> None:
    """100 draws of strongly conflicting gradients, for which peers harm a task in every draw from ratio 10 on."""
    for seed in range(100):
        rows = gradients("random", tasks, seed, 20)
        rows = with_norm_ratio(rows - 0.95 * rows.mean(0), ratio)[torch.randperm(tasks)]
        weights = method(gram(rows))
        update = rows.T @ weights
        cosines = (rows @ update) / (rows.norm(dim=1) * update.norm())
        assert cosines.min() > -1e-8, (seed, cosines)


@pytest.mark.parametrize("kind", FREE)
@pytest.mark.parametrize("tasks", [2, 5, 12])
@pytest.mark.parametrize(
    "method", [F.upgrad, F.dualproj, F.mgda, lambda g: F.cagrad(g, 1.5)], ids=["upgrad", "dualproj", "mgda", "cagrad"]
)
def test_no_task_is_harmed_by_degenerate_gradients(method, tasks: int, kind: str) -> None:
    for seed in range(5):
        rows = gradients(kind, tasks, seed)
        assert cosines_to_update(rows, method(gram(rows))).min() > -1e-9


@pytest.mark.parametrize("kind", [*FREE, "zero row"])
@pytest.mark.parametrize("tasks", [2, 3, 8, 40])
def test_mgda_meets_the_optimality_conditions(tasks: int, kind: str) -> None:
    for seed in range(5):
        rows = gradients(kind, tasks, seed)
        weights = F.mgda(gram(rows))
        update = rows.T @ weights
        assert weights.min() >= 0
        assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)
        # <g_k, update> >= ||update||^2 for all k, with equality on the support
        slack = rows @ update - update @ update
        scale = rows.norm(dim=1) * (weights * rows.norm(dim=1)).sum() + 1e-300
        assert (slack / scale).min() > -1e-10
        assert ((slack * weights).abs() / (scale.max() * weights.max())).max() < 1e-10


def test_mgda_of_two_tasks_has_the_closed_form() -> None:
    for seed in range(20):
        a, b = gradients("random", 2, seed)
        weight = float((((b - a) @ b) / (a - b).square().sum()).clamp(0, 1))
        got = F.mgda(gram(torch.stack([a, b])))
        torch.testing.assert_close(got, torch.tensor([weight, 1 - weight], dtype=a.dtype))


@pytest.mark.parametrize("normalization", ["l2", "loss", "loss+"])
def test_normalized_mgda_is_mgda_of_the_divided_gradients(normalization: str) -> None:
    rows = gradients("random", 4)
    losses = torch.tensor([0.5, 2.0, 3.0, 0.1], dtype=rows.dtype)
    divisor = {"l2": rows.norm(dim=1), "loss": losses, "loss+": losses * rows.norm(dim=1)}[normalization]
    divided = rows / divisor.unsqueeze(-1)
    got = rows.T @ F.mgda(gram(rows), normalization, losses)  # type: ignore[arg-type]
    torch.testing.assert_close(got, divided.T @ F.mgda(gram(divided)))


@pytest.mark.parametrize("kind", ["random", "conflicting", "aligned", "identical", "wild norms"])
@pytest.mark.parametrize("c", [0.1, 0.5, 0.9])
def test_cagrad_is_the_best_worst_case_in_the_ball(c: float, kind: str) -> None:
    """No direction in the ball has a larger smallest improvement: strong duality leaves no gap."""
    for tasks in (2, 3, 8, 30):
        for seed in range(4):
            rows = gradients(kind, tasks, seed)
            mean = rows.mean(0)
            weights = F.cagrad(gram(rows), c)
            update = rows.T @ weights
            radius = c * mean.norm()
            assert float((update - mean).norm()) <= float(radius) * (1 + 1e-8)
            simplex = (weights - 1 / tasks).clamp(min=0)
            simplex = simplex / simplex.sum()
            point = rows.T @ simplex
            upper = mean @ point + radius * point.norm()  # the dual bounds the smallest improvement from above
            gap = upper - (rows @ update).min()
            assert float(gap) <= 1e-7 * float(mean.norm() * (simplex * rows.norm(dim=1)).sum()), (tasks, seed)


def test_cagrad_with_radius_zero_is_the_mean() -> None:
    torch.testing.assert_close(F.cagrad(gram(gradients("random", 5)), 0.0), torch.full((5,), 0.2, dtype=torch.float64))


@pytest.mark.parametrize(("rescale", "factor"), [(1, 1.16), (2, 1.4)])
def test_cagrad_rescaling_divides_the_update(rescale, factor: float) -> None:
    gramian = gram(gradients("random", 5))
    torch.testing.assert_close(F.cagrad(gramian, 0.4, rescale) * factor, F.cagrad(gramian, 0.4))


def test_cagrad_does_not_switch_off_for_small_gradients() -> None:
    rows = gradients("conflicting", 4)
    torch.testing.assert_close(F.cagrad(gram(rows * 1e-9), 0.5), F.cagrad(gram(rows), 0.5))


@pytest.mark.parametrize("kind", ["random", "conflicting", "aligned", "wild norms"])
def test_imtl_g_has_equal_projections(kind: str) -> None:
    for seed in range(10):
        rows = gradients(kind, 6, seed)
        projections = (rows @ (rows.T @ F.imtl_g(gram(rows)))) / rows.norm(dim=1)
        torch.testing.assert_close(projections, projections[:1].expand(6), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize("kind", ["random", "conflicting", "aligned", "wild norms"])
def test_config_has_equal_cosines_and_the_summed_projections_as_length(kind: str) -> None:
    for seed in range(10):
        rows = gradients(kind, 6, seed)
        update = rows.T @ F.config(gram(rows))
        cosines = (rows @ update) / (rows.norm(dim=1) * update.norm())
        torch.testing.assert_close(cosines, cosines[:1].expand(6), rtol=1e-6, atol=0.0)
        assert cosines[0] > 0
        torch.testing.assert_close(update.norm(), (rows @ update).sum() / update.norm(), rtol=1e-6, atol=0.0)


def test_config_cosines_are_proportional_to_the_preference() -> None:
    rows = gradients("random", 4)
    preference = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=rows.dtype)
    update = rows.T @ F.config(gram(rows), preference)
    cosines = (rows @ update) / rows.norm(dim=1)
    torch.testing.assert_close(cosines / cosines[0], preference)


def test_config_through_the_gramian_equals_the_pseudo_inverse_of_the_matrix() -> None:
    for kind in ("random", "conflicting", "dependent", "identical", "zero row"):
        rows = gradients(kind, 6)
        units = torch.nn.functional.normalize(rows, dim=1)
        direction = torch.linalg.pinv(units) @ (rows.norm(dim=1) > 0).double()
        direction = direction / direction.norm()
        torch.testing.assert_close(rows.T @ F.config(gram(rows)), (rows @ direction).sum() * direction)


def with_condition(tasks: int, condition: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(torch.randn(tasks, tasks, generator=generator, dtype=torch.float64))
    values = torch.logspace(0, -math.log10(condition), tasks, dtype=torch.float64)
    return basis * values @ basis.T


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4, 1e6, 1e8])
@pytest.mark.parametrize("tasks", [2, 5, 20])
def test_nash_solves_its_equation_up_to_condition_numbers_of_1e8(tasks: int, condition: float) -> None:
    for seed in range(5):
        gramian = with_condition(tasks, condition, seed)
        weights = F.nash_mtl(gramian)
        assert weights.min() > 0
        assert float(((gramian @ weights) * weights - 1).abs().max()) < 1e-6


@pytest.mark.parametrize("kind", ["random", "conflicting", "aligned", "wild norms"])
@pytest.mark.parametrize("tasks", [2, 3, 8, 40])
def test_nash_solves_its_equation(tasks: int, kind: str) -> None:
    gramian = gram(gradients(kind, tasks))
    weights = F.nash_mtl(gramian)
    assert float(((gramian @ weights) * weights - 1).abs().max()) < 1e-10


def test_nash_update_has_the_norm_sqrt_k_and_can_be_clipped() -> None:
    rows = gradients("random", 5)
    assert float((rows.T @ F.nash_mtl(gram(rows))).norm()) == pytest.approx(math.sqrt(5))
    assert float((rows.T @ F.nash_mtl(gram(rows), max_norm=0.7)).norm()) == pytest.approx(0.7)
    torch.testing.assert_close(F.nash_mtl(gram(rows), max_norm=9.0), F.nash_mtl(gram(rows)))


@pytest.mark.parametrize("alpha", [0.2, 0.5, 1.0, 2.0, 5.0, 10.0])
@pytest.mark.parametrize("kind", ["random", "conflicting", "aligned"])
def test_fairgrad_solves_its_equation(kind: str, alpha: float) -> None:
    for tasks in (2, 3, 8, 40):
        gramian = gram(gradients(kind, tasks))
        weights = F.fairgrad(gramian, alpha)
        assert weights.min() > 0
        assert float(((gramian @ weights) * weights ** (1 / alpha) - 1).abs().max()) < 1e-8


def test_fairgrad_of_parameter_one_is_nash() -> None:
    gramian = gram(gradients("conflicting", 5))
    torch.testing.assert_close(F.fairgrad(gramian, 1.0), F.nash_mtl(gramian))


@pytest.mark.parametrize("tasks", [2, 5, 12])
def test_the_aligned_gradients_have_condition_number_one(tasks: int) -> None:
    for seed in range(5):
        rows = gradients("conflicting", tasks, seed)
        balance = torch.stack([F.aligned_mtl(gram(rows), preference=unit) for unit in torch.eye(tasks).double()])
        values = torch.linalg.svdvals(balance @ rows)
        torch.testing.assert_close(values, torch.linalg.svdvals(rows)[-1].expand(tasks))


@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_the_scale_of_aligned_gradients(mode) -> None:
    rows = gradients("random", 4)
    square = torch.linalg.svdvals(rows).square()
    expected = {"min": square[-1], "median": square.median(), "rmse": square.mean()}[mode].sqrt()
    balance = torch.stack([F.aligned_mtl(gram(rows), mode, unit) for unit in torch.eye(4).double()])
    torch.testing.assert_close(torch.linalg.svdvals(balance @ rows), expected.expand(4))


def test_gradients_without_conflict_are_averaged() -> None:
    rows = gradients("random", 4).abs()
    even = torch.full((4,), 0.25, dtype=rows.dtype)
    torch.testing.assert_close(F.upgrad(gram(rows)), even)
    torch.testing.assert_close(F.dualproj(gram(rows)), even)
    torch.testing.assert_close(F.pcgrad(gram(rows), visits(4)), 4 * even)


def test_upgrad_of_two_tasks_is_pcgrad() -> None:
    for seed in range(10):
        gramian = gram(gradients("conflicting", 2, seed))
        torch.testing.assert_close(2 * F.upgrad(gramian), F.pcgrad(gramian, torch.tensor([[0, 1], [0, 1]])))


@pytest.mark.parametrize("method", [F.upgrad, F.dualproj])
def test_projections_meet_the_optimality_conditions(method) -> None:
    for tasks in (2, 5, 12, 40):
        rows = gradients("conflicting", tasks)
        gramian = gram(rows)
        tasks_or_mean = torch.eye(tasks).double() if method is F.upgrad else torch.full((1, tasks), 1 / tasks).double()
        for start in tasks_or_mean[:5]:
            weights = F.dualproj(gramian, start)
            added, gain = weights - start, gramian @ weights
            assert added.min() >= 0
            assert gain.min() > -1e-10
            assert float((added * gain).abs().max()) < 1e-10
        if method is F.upgrad:
            summed = torch.stack([F.dualproj(gramian, start) for start in tasks_or_mean]).mean(0)
            torch.testing.assert_close(F.upgrad(gramian), summed)


def test_upgrad_is_linear_in_the_preference() -> None:
    gramian = gram(gradients("conflicting", 4))
    first, second = torch.tensor([1.0, 2.0, 0.5, 0.0]).double(), torch.tensor([0.0, 1.0, 1.0, 3.0]).double()
    torch.testing.assert_close(F.upgrad(gramian, first + second), F.upgrad(gramian, first) + F.upgrad(gramian, second))


def naive_pcgrad(rows: Tensor, order: Tensor) -> Tensor:
    total = torch.zeros_like(rows[0])
    for i in range(len(rows)):
        gradient = rows[i].clone()
        for j in order[i].tolist():
            product = gradient @ rows[j]
            if j != i and product < 0:
                gradient -= product / (rows[j] @ rows[j]) * rows[j]
        total += gradient
    return total


@pytest.mark.parametrize("kind", ["random", "conflicting", "dependent", "opposite", "zero row", "wild norms"])
def test_pcgrad_equals_the_loop_over_gradients(kind: str) -> None:
    rows = gradients(kind, 6)
    got = rows.T @ F.pcgrad(gram(rows), visits(6))
    torch.testing.assert_close(got, naive_pcgrad(rows, visits(6)), rtol=1e-6, atol=1e-9 * float(rows.norm()))


def test_pcgrad_depends_on_the_order_of_three_tasks() -> None:
    gramian = gram(gradients("conflicting", 3))
    forward = torch.arange(3).expand(3, 3)
    assert not torch.allclose(F.pcgrad(gramian, forward), F.pcgrad(gramian, forward.flip(1)))


def naive_gradvac(rows: Tensor, targets: Tensor, order: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    total, targets = torch.zeros_like(rows[0]), targets.clone()
    for i in range(len(rows)):
        gradient = rows[i].clone()
        for j in order[i].tolist():
            if j == i:
                continue
            phi = gradient @ rows[j] / (gradient.norm() * rows[j].norm())
            goal = targets[i, j].clone()
            if phi < goal:
                root = (1 - goal**2).sqrt()
                factor = gradient.norm() * (goal * (1 - phi**2).sqrt() - phi * root) / (rows[j].norm() * root)
                gradient += factor * rows[j]
            targets[i, j] = (1 - beta) * goal + beta * phi
        total += gradient
    return total, targets


def test_gradvac_equals_the_loop_over_gradients() -> None:
    rows = gradients("conflicting", 5)
    targets = torch.rand(5, 5, dtype=rows.dtype) - 0.3
    weights, new = F.gradvac(gram(rows), targets, visits(5), beta=0.2)
    update, expected = naive_gradvac(rows, targets, visits(5), 0.2)
    torch.testing.assert_close(rows.T @ weights, update)
    torch.testing.assert_close(new, expected)


def test_gradvac_reaches_its_goal_for_two_tasks() -> None:
    rows = gradients("conflicting", 2)
    goal = torch.full((2, 2), 0.4, dtype=rows.dtype)
    coefficients = F.gradvac(gram(rows), goal, torch.tensor([[0, 1], [0, 1]]))[0] - 1
    first = rows[0] + coefficients[1] * rows[1]
    assert float(torch.nn.functional.cosine_similarity(first, rows[1], dim=0)) == pytest.approx(0.4)


def test_gradvac_keeps_its_goals_when_a_gradient_is_not_finite_or_zero() -> None:
    targets = torch.full((3, 3), 0.2)
    gramian = gram(gradients("zero row", 3))
    assert torch.equal(F.gradvac(gramian * math.nan, targets, visits(3))[1], targets)
    moved = F.gradvac(gramian, targets, visits(3))[1]
    assert torch.equal(moved[2], targets[2])
    assert torch.equal(moved[:, 2], targets[:, 2])
    assert not torch.equal(moved[:2, :2], targets[:2, :2])


def test_db_mtl_brings_all_gradients_to_the_largest_norm() -> None:
    rows = gradients("wild norms", 5)
    scaled = rows * F.db_mtl(gram(rows)).unsqueeze(-1)
    torch.testing.assert_close(scaled.norm(dim=1), rows.norm(dim=1).amax().expand(5))


def test_krum_leaves_the_outlier_out() -> None:
    rows = torch.ones(6, 4, dtype=torch.float64) + 0.01 * gradients("random", 6)[:, :4]
    rows[2] = 100.0
    weights = F.krum(gram(rows), n_byzantine=1, n_selected=3)
    assert weights[2] == 0
    assert sorted(weights.tolist()) == pytest.approx([0, 0, 0, 1 / 3, 1 / 3, 1 / 3])


def test_modo_is_a_projected_gradient_step_of_the_squared_norm() -> None:
    gramian = gram(gradients("random", 4))
    weights = torch.full((4,), 0.25, dtype=torch.float64, requires_grad=True)
    (0.5 * weights @ gramian @ weights + 0.5 * 0.3 * weights @ weights).backward()
    expected = F.project_to_simplex(weights.detach() - 0.01 * weights.grad)
    torch.testing.assert_close(F.modo(gramian, weights, gamma=0.01, rho=0.3), expected)


def test_many_modo_steps_reach_the_minimum_norm() -> None:
    gramian = gram(gradients("conflicting", 4))
    weights = torch.full((4,), 0.25, dtype=torch.float64)
    for _ in range(2000):
        weights = F.modo(gramian, weights, gamma=0.02, rho=0.0)
    torch.testing.assert_close(weights, F.mgda(gramian), rtol=1e-6, atol=1e-8)


def test_many_sdmgrad_steps_minimize_the_regularized_norm() -> None:
    gramian = gram(gradients("conflicting", 4))
    even = torch.full((4,), 0.25, dtype=torch.float64)
    _, inner = F.sdmgrad(gramian, even, lambda_=0.5, lr=0.2, momentum=0.0, n_iter=3000)
    gradient = gramian @ (inner + 0.5 * even)
    support = inner > 1e-9
    torch.testing.assert_close(gradient[support], gradient.amin().expand(int(support.sum())), rtol=1e-6, atol=1e-8)


def test_sdmgrad_with_strong_pull_follows_the_preference() -> None:
    gramian = gram(gradients("random", 3))
    preference = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    weights, _ = F.sdmgrad(gramian, torch.full((3,), 1 / 3, dtype=torch.float64), preference, lambda_=1e9)
    torch.testing.assert_close(weights, preference)


def test_cr_mogm_is_a_moving_average() -> None:
    got = F.cr_mogm(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), alpha=0.75)
    torch.testing.assert_close(got, torch.tensor([0.25, 0.75]))


def closest_direction(units: np.ndarray, tau: float) -> np.ndarray:
    constraint = {"type": "ineq", "fun": lambda d: units[1:] @ d - tau, "jac": lambda d: units[1:]}
    return minimize(
        lambda d: 0.5 * ((d - units[0]) ** 2).sum(),
        units[0],
        jac=lambda d: d - units[0],
        constraints=constraint,
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    ).x


@pytest.mark.parametrize("tasks", [2, 4])
@pytest.mark.parametrize("tau", [0.0, 0.02, 0.3])
def test_pcd_is_the_closest_direction_with_guaranteed_progress(tau: float, tasks: int) -> None:
    for seed in range(5):
        rows = gradients("conflicting", tasks, seed)
        units = rows / rows.norm(dim=1, keepdim=True)
        update = rows.T @ F.pcd(gram(rows), tau)
        torch.testing.assert_close(update.norm(), rows[0].norm())
        found = closest_direction(units.numpy(), tau)
        expected = torch.from_numpy(found)
        torch.testing.assert_close(update / update.norm(), expected / expected.norm(), rtol=1e-4, atol=1e-5)


def test_pcd_drops_constraints_that_cannot_be_met() -> None:
    rows = gradients("random", 3)
    rows[2] = -rows[1]
    torch.testing.assert_close(F.pcd(gram(rows), 0.1), torch.tensor([1.0, 0.0, 0.0], dtype=rows.dtype))


def test_pcd_of_a_zero_primary_gradient_is_zero() -> None:
    rows = gradients("zero row", 3).flip(0)
    assert torch.equal(F.pcd(gram(rows)), torch.zeros(3, dtype=rows.dtype))


def test_pmtl_inside_of_its_region_is_mgda() -> None:
    gramian = gram(gradients("conflicting", 3))
    losses = torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(F.pmtl(gramian, losses, torch.eye(3), 0), F.mgda(gramian))
    assert torch.equal(F.pmtl(gramian, losses, torch.eye(3), 0, initial=True), torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("initial", [False, True])
def test_pmtl_descends_on_tasks_and_on_violated_constraints(initial: bool) -> None:
    for seed in range(10):
        rows = gradients("random", 3, seed)
        losses = torch.tensor([1.0, 2.0, 3.0], dtype=rows.dtype)
        rays = torch.eye(3, dtype=rows.dtype)
        update = rows.T @ F.pmtl(gram(rows), losses, rays, 0, initial)
        constraints = (rays - rays[0])[1:] @ rows  # both are violated
        assert (constraints @ update).min() > 0
        if not initial:
            assert (rows @ update).min() > -1e-10
            extended = torch.cat([rows, constraints])
            torch.testing.assert_close(update, extended.T @ F.mgda(gram(extended)))


def test_epo_balances_then_descends() -> None:
    """On two quadratics the search ends where the weighted losses are equal, on the Pareto front."""
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    point = torch.tensor([0.3, 1.5], dtype=torch.float64)
    ray = torch.tensor([0.8, 0.2], dtype=torch.float64)
    for _ in range(150):
        difference = point - centres
        losses = 1 - torch.exp(-difference.square().sum(1))
        rows = 2 * difference * torch.exp(-difference.square().sum(1, keepdim=True))
        point = point - 0.1 * rows.T @ F.epo(gram(rows), losses, ray)
    weighted = ray * losses
    assert float(weighted.max() / weighted.min()) == pytest.approx(1.0, abs=0.05)
    assert abs(float(point[1])) < 1e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: F.mgda(g, "l3"), "mgda: normalization must be"),
        (lambda g: F.mgda(g, "loss"), "mgda: losses must be given"),
        (lambda g: F.gradvac(g, g, visits(3), beta=1.5), "gradvac: beta must be between 0 and 1, got 1.5"),
        (lambda g: F.cagrad(g, -0.1), "cagrad: c must not be negative, got -0.1"),
        (lambda g: F.cagrad(g, 0.1, rescale=3), "cagrad: rescale must be 0, 1 or 2, got 3"),
        (lambda g: F.nash_mtl(g, -1.0), "nash_mtl: max_norm must not be negative, got -1.0"),
        (lambda g: F.fairgrad(g, 0.0), "fairgrad: alpha must be positive, got 0.0"),
        (lambda g: F.aligned_mtl(g, "max"), "aligned_mtl: scale_mode must be"),
        (lambda g: F.krum(g, 1), "krum: n_byzantine must be between 0 and K - 3, got 1 with K = 3"),
        (lambda g: F.krum(g, 0, 4), "krum: n_selected must be between 1 and K, got 4"),
        (lambda g: F.sdmgrad(g, g[0], lr=0.0), "sdmgrad: lambda_ must be >= 0, lr > 0"),
        (lambda g: F.modo(g, g[0], gamma=0.0), "modo: gamma must be positive"),
        (lambda g: F.cr_mogm(g[0], g[0], 2.0), "cr_mogm: alpha must be between 0 and 1, got 2.0"),
        (lambda g: F.pmtl(g, g[0], g, 3), "pmtl: index must be a row of preferences, got 3"),
        (lambda g: F.pcd(g, 2.0), "pcd: tau must be between 0 and 1, got 2.0"),
        (lambda g: F.epo(g, g[0], g[0], tolerance=-1.0), "epo: tolerance must not be negative"),
        (lambda g: F.trimmed_mean(g, 2), "trimmed_mean: trim_number must be at least 0 and below K / 2, got 2"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        call(gram(gradients("random", 3)))
