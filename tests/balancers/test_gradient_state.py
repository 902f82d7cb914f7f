"""Facts of single gradient methods: what they remember, and what they do when tasks are absent."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lightning_mtl import functional as F
from lightning_mtl.balancers import (
    CRMOGM,
    DBMTL,
    EPO,
    IMTL,
    MGDA,
    PCD,
    PMTL,
    Balancer,
    EncodecBalancer,
    ExcessMTL,
    GradDrop,
    GradVac,
    Krum,
    MoCo,
    MoDo,
    NashMTL,
    PCGrad,
    TrimmedMean,
)
from tests.balancers.cases import TASKS, Toy, toy_batches
from tests.balancers.test_gradient_methods import random_rows, update_of


def gramian(rows: Tensor) -> Tensor:
    return rows @ rows.T


def test_orders_differ_between_steps_and_repeat_with_the_seed() -> None:
    one, two = PCGrad(seed=1), PCGrad(seed=1)
    drawn = []
    for _ in range(4):
        drawn.append(one.draw_order(5))
        assert torch.equal(drawn[-1], two.draw_order(5))
        assert torch.equal(drawn[-1].sort(dim=1).values, torch.arange(5).expand(5, 5))
        one.steps += 1
        two.steps += 1
    assert not all(torch.equal(drawn[0], other) for other in drawn[1:])
    assert not torch.equal(PCGrad(seed=2).draw_order(5), drawn[0])


def test_gradvac_moves_only_the_goals_of_present_pairs() -> None:
    balancer = GradVac(0.5, tasks=TASKS).double()
    rows = random_rows()
    update_of(balancer, rows)
    before = balancer.goals.clone()
    assert (before[~torch.eye(3, dtype=torch.bool)] != 0).all()
    leaf = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    balancer({"a": rows[1] @ leaf + 1, "c": rows[2] @ leaf + 1}, shared=[leaf])
    changed = balancer.goals != before
    assert changed[0, 2]
    assert changed[2, 0]
    assert changed.sum() == 2


def test_nash_mtl_shortens_the_update_in_reused_steps_too() -> None:
    balancer = NashMTL(max_norm=1.0, every_n_steps=2).double()
    rows = random_rows()
    assert update_of(balancer, rows).norm().item() == pytest.approx(1.0)
    weights = F.nash_mtl(gramian(rows))
    for factor in (10.0, 1e-3):
        balancer = NashMTL(max_norm=1.0, every_n_steps=2).double()
        update_of(balancer, rows)
        update = update_of(balancer, factor * rows)
        wanted = factor * weights @ rows
        torch.testing.assert_close(update, wanted / max(1.0, float(wanted.norm())))


def test_imtl_heads_and_scales_descend_the_scaled_losses() -> None:
    balancer, model = IMTL(0.5, tasks=TASKS), Toy()
    inputs, targets = toy_batches(1)[0]
    losses = model.mean_losses(inputs, targets)
    plain = {name: torch.autograd.grad(losses[name], model.heads[name].weight, retain_graph=True)[0] for name in TASKS}
    balancer(losses, shared=model.encoder.parameters()).backward()
    for row, name in enumerate(TASKS):
        torch.testing.assert_close(model.heads[name].weight.grad, math.exp(0.5) * plain[name])
        wanted = math.exp(0.5) * losses[name].item() - 1
        assert balancer.log_scales.grad[row].item() == pytest.approx(wanted, rel=1e-5)


def test_imtl_brings_the_scaled_losses_to_one() -> None:
    balancer = IMTL(tasks=["a", "b"])
    optimizer = torch.optim.SGD(balancer.parameters(), lr=0.1)
    leaf = torch.zeros(2, requires_grad=True)
    for _ in range(300):
        optimizer.zero_grad()
        balancer({"a": leaf[0] + 0.5, "b": leaf[1] + 4.0}, shared=[leaf]).backward()
        optimizer.step()
    torch.testing.assert_close(balancer.log_scales.exp().detach(), torch.tensor([2.0, 0.25]), rtol=1e-3, atol=0)


def test_modo_and_sdmgrad_weights_do_not_see_the_batch_that_they_multiply() -> None:
    updates = []
    for last in (random_rows(2), random_rows(3)):
        balancer = MoDo(tasks=TASKS).double()
        for rows in (random_rows(0), random_rows(1), last):
            update_of(balancer, rows)
        updates.append(balancer.weights)
    assert updates[0] == updates[1]
    assert len({float(weight) for weight in updates[0].values()}) == 3


def test_modo_needs_a_gradient_of_every_present_task_from_an_earlier_batch() -> None:
    balancer = MoDo(tasks=TASKS).double()
    leaf = torch.zeros(7, dtype=torch.float64, requires_grad=True)
    rows = random_rows()
    balancer({"a": rows[0] @ leaf + 1, "b": rows[1] @ leaf + 1}, shared=[leaf])
    for _ in range(2):
        balancer({"a": rows[0] @ leaf + 1, "c": rows[2] @ leaf + 1}, shared=[leaf])
    third = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert balancer.task_weights[0] != balancer.task_weights[2]  # both were seen twice
    torch.testing.assert_close(balancer.task_weights[[0, 2]].sum(), 2 * third[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(balancer.task_weights[1], third[1], rtol=1e-6, atol=0)


def test_moco_removes_the_bias_of_noisy_gradients() -> None:
    """Noise makes a gradient longer, so the min-norm weights of single batches neglect the noisy task."""
    rows = random_rows(5)
    noise = torch.tensor([[0.0], [0.0], [1.5]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    balancer = MoCo(beta=0.02, beta_decay=0.0, gamma=0.05, gamma_decay=0.0, tasks=TASKS).double()
    single = torch.zeros(3, dtype=torch.float64)
    for _ in range(400):
        noisy = rows + noise * torch.randn(rows.shape, generator=generator, dtype=torch.float64)
        update_of(balancer, noisy)
        single += F.mgda(gramian(noisy)) / 400
    exact = F.mgda(gramian(rows))
    assert (balancer.memory.vectors - rows).norm() < 0.3 * rows.norm()
    assert (balancer.multipliers - exact).norm() < 0.5 * (single - exact).norm()


def test_moco_with_full_steps_is_projected_gradient_descent_on_the_weights() -> None:
    balancer = MoCo(beta=1.0, beta_decay=0.0, gamma=0.3, gamma_decay=0.0, rho=0.2, tasks=TASKS).double()
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for seed in range(3):
        rows = 0.3 * random_rows(seed)
        weights = F.project_to_simplex(weights - 0.3 * (gramian(rows) @ weights + 0.2 * weights))
        torch.testing.assert_close(update_of(balancer, rows), weights @ rows, rtol=1e-6, atol=1e-7)


def test_db_mtl_gives_every_task_the_same_norm_whatever_its_loss() -> None:
    rows = random_rows()
    balancer = DBMTL(beta=0.0, tasks=TASKS).double()
    losses = [2.0, 0.1, 30.0]
    logarithmic = rows / torch.tensor(losses, dtype=rows.dtype).unsqueeze(1)
    norms = logarithmic.norm(dim=1)
    wanted = ((norms.max() / norms).unsqueeze(1) * logarithmic).sum(0)
    torch.testing.assert_close(update_of(balancer, rows, losses), wanted)
    scaled = torch.tensor([[1.0], [1e3], [1e-3]], dtype=rows.dtype)
    fresh = DBMTL(beta=0.0, tasks=TASKS).double()
    torch.testing.assert_close(update_of(fresh, scaled * rows, [2.0, 100.0, 0.03]), wanted)


def test_db_mtl_heads_receive_the_gradient_of_the_logarithm() -> None:
    balancer, model = DBMTL(tasks=TASKS), Toy()
    inputs, targets = toy_batches(1)[0]
    losses = model.mean_losses(inputs, targets)
    wanted = {
        name: torch.autograd.grad(losses[name].log(), model.heads[name].weight, retain_graph=True)[0] for name in TASKS
    }
    balancer(losses, shared=model.encoder.parameters()).backward()
    for name in TASKS:
        torch.testing.assert_close(model.heads[name].weight.grad, wanted[name])


def test_excess_mtl_lowers_the_weight_of_a_task_at_its_noise_floor() -> None:
    """One task keeps its gradient, the other one converges to gradients of pure noise around zero."""
    generator = torch.Generator().manual_seed(0)
    balancer = ExcessMTL(lr=0.2, tasks=("a", "b"))
    for step in range(60):
        noise = 0.01 * torch.randn(2, 7, generator=generator)
        update_of(balancer, torch.stack([torch.ones(7), torch.ones(7) * 0.8**step]) + noise, [1.0, 100.0])
    assert balancer.weights["a"] > 2 * balancer.weights["b"]


def test_excess_mtl_leaves_the_weights_alone_while_start_values_are_measured() -> None:
    balancer = ExcessMTL(lr=1.0, warmup_steps=3, tasks=TASKS)
    for seed in range(5):
        update_of(balancer, random_rows(seed).float())
        equal = len({float(weight) for weight in balancer.weights.values()}) == 1
        assert equal == (seed < 3)


def test_pcd_without_its_primary_task_gives_no_update() -> None:
    balancer = PCD("b", tasks=TASKS)
    leaf = torch.ones(2, requires_grad=True)
    (update,) = torch.autograd.grad(balancer({"a": leaf[0], "c": leaf[1]}, shared=[leaf]), leaf)
    assert (update == 0).all()
    total = balancer({"a": leaf[0], "b": leaf[1], "c": leaf.sum()}, shared=[leaf])
    assert torch.autograd.grad(total, leaf)[0].norm().item() == pytest.approx(1.0, rel=1e-5)


def test_pcd_keeps_the_promised_progress_for_any_place_of_the_primary_task() -> None:
    for primary in range(3):
        balancer = PCD(TASKS[primary], tau=0.2, beta=0.0, tasks=TASKS).double()
        rows = random_rows(11)
        rows[1] -= rows[0]
        update = update_of(balancer, rows)
        unit = rows / rows.norm(dim=1, keepdim=True)
        progress = unit @ update / update.norm()
        length = float(rows[primary].norm())
        assert float(update.norm()) == pytest.approx(length)
        shape = F.pcd(gramian(unit[[primary, *[k for k in range(3) if k != primary]]]), 0.2)
        assert shape.norm() > 0
        assert (progress[[k for k in range(3) if k != primary]] > 0).all()


def test_cr_mogm_is_the_moving_average_of_the_wrapped_weights() -> None:
    balancer = CRMOGM(MGDA(), alpha=0.7, tasks=TASKS).double()
    smoothed = None
    for seed in range(4):
        rows = random_rows(seed)
        weights = F.mgda(gramian(rows))
        smoothed = weights if smoothed is None else 0.7 * smoothed + 0.3 * weights
        torch.testing.assert_close(update_of(balancer, rows), smoothed @ rows)


def test_cr_mogm_saves_and_resets_the_state_of_the_wrapped_method() -> None:
    balancer = CRMOGM(GradVac(0.5), tasks=TASKS).double()
    update_of(balancer, random_rows())
    goals = balancer.state_dict()["weighting.goals"]
    assert (goals != 0).any()
    balancer.reset()
    assert (balancer.weighting.goals == 0).all()


@pytest.mark.parametrize("wrapped", [MoCo, lambda: IMTL(tasks=["a"]), lambda: "MGDA"], ids=["MoCo", "IMTL", "text"])
def test_cr_mogm_wraps_gramian_methods_only(wrapped: type[Balancer]) -> None:
    with pytest.raises(TypeError, match="CRMOGM: weighting must be a gradient method on the Gramian without learned"):
        CRMOGM(wrapped())


def test_encodec_weights_are_shares_over_averaged_norms() -> None:
    shares, decay, total = {"a": 1.0, "b": 2.0, "c": 5.0}, 0.6, 3.0
    balancer = EncodecBalancer(shares, total, decay, at="parameters").double()
    sums, count = torch.zeros(3, dtype=torch.float64), 0.0
    for seed in range(4):
        rows = random_rows(seed)
        sums, count = decay * sums + rows.norm(dim=1), decay * count + 1
        weights = total * torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64) / 8 / (sums / count)
        torch.testing.assert_close(update_of(balancer, rows), weights @ rows, rtol=1e-6, atol=1e-7)


def test_krum_leaves_a_far_gradient_out() -> None:
    rows = torch.ones(5, 7) + 0.01 * random_rows(tasks=5).float()
    rows[2] = -1e6
    balancer = Krum(n_byzantine=1, n_selected=3)
    assert (update_of(balancer, rows) - 1).abs().max() < 0.1
    assert balancer.weights["c"] == 0


def test_robust_means_allow_for_as_many_tasks_as_are_present() -> None:
    leaf = torch.ones(2, requires_grad=True)
    names = ["a", "b", "c", "d", "e"]
    for balancer in (Krum(2, tasks=names), TrimmedMean(2, tasks=names)):
        for count in (1, 2, 3, 4):
            losses = {name: (row + 1) * leaf[0] for row, name in enumerate(names[:count])}
            (update,) = torch.autograd.grad(balancer(losses, shared=[leaf]), leaf)
            assert 1 <= update[0] <= count


def two_goals(leaf: Tensor) -> dict[str, Tensor]:
    """Two losses with the front between (1, 0) and (0, 1) of the plane."""
    goals = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=leaf.dtype)
    return {name: (leaf - goal).square().sum() for name, goal in zip("ab", goals, strict=True)}


def test_epo_ends_at_the_pareto_optimum_of_its_ray() -> None:
    for ratio in (0.25, 1.0, 4.0):
        leaf = torch.tensor([0.2, -0.6], dtype=torch.float64, requires_grad=True)
        balancer = EPO({"a": ratio, "b": 1.0})
        for step in range(150):
            (update,) = torch.autograd.grad(balancer(two_goals(leaf), shared=[leaf]), leaf)
            with torch.no_grad():
                leaf -= 0.05 * 0.97**step * update
        losses = two_goals(leaf.detach())
        assert float(losses["b"] / losses["a"]) == pytest.approx(ratio, rel=0.05)
        assert leaf.sum().item() == pytest.approx(1.0, abs=0.02)  # on the front


def test_pmtl_ends_in_its_own_region() -> None:
    rays = [{"a": math.cos(angle), "b": math.sin(angle)} for angle in (0.1, 0.785, 1.47)]
    ends = []
    for index in range(3):
        leaf = torch.tensor([0.5, -0.5], dtype=torch.float64, requires_grad=True)
        balancer = PMTL(rays, index)
        for _ in range(100):
            (update,) = torch.autograd.grad(balancer(two_goals(leaf), shared=[leaf]), leaf)
            with torch.no_grad():
                leaf -= 0.03 * update
        losses = two_goals(leaf.detach())
        direction = [float(losses["a"]), float(losses["b"])]
        closeness = [ray["a"] * direction[0] + ray["b"] * direction[1] for ray in rays]
        assert max(closeness) <= closeness[index] + 0.05
        ends.append(float(losses["a"]))
        assert balancer.in_region == 1
    assert ends == sorted(ends, reverse=True)


def test_pmtl_searches_for_its_region_in_the_first_epochs_only() -> None:
    rays = [{"a": 1.0, "b": 0.0}, {"a": 0.0, "b": 1.0}]
    balancer = PMTL(rays, 0, initial_epochs=1)
    rows, losses = torch.eye(2, dtype=torch.float64), [1.0, 3.0]  # b is too large for region 0
    first = update_of(balancer, rows, losses)
    torch.testing.assert_close(first, torch.tensor([-1.0, 1.0], dtype=torch.float64))
    balancer.end_epoch()
    assert (update_of(balancer, rows, losses) > 0).all()


def test_graddrop_draws_anew_in_every_step_and_repeats_with_the_seed() -> None:
    one, two = GradDrop(seed=3), GradDrop(seed=3)
    rows = random_rows(size=50)
    updates = [update_of(one, rows) for _ in range(3)]
    assert all(torch.equal(update, update_of(two, rows)) for update in updates)
    assert not torch.equal(updates[0], updates[1])
    signs = rows.sign()
    agree = (signs == signs[0]).all(0)
    torch.testing.assert_close(updates[0][agree], rows.sum(0)[agree])
