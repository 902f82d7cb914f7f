"""Random loss weighting."""

from __future__ import annotations

import torch

from lightning_mtl.balancers import RandomLossWeighting


def draws(balancer: RandomLossWeighting, steps: int, tasks: str = "abc") -> torch.Tensor:
    found = []
    for _ in range(steps):
        balancer({name: torch.tensor(1.0) for name in tasks})
        found.append(torch.stack(list(balancer.weights.values())))
    return torch.stack(found)


def test_draws_depend_on_seed_and_step_alone() -> None:
    first = draws(RandomLossWeighting(seed=1), 3)
    torch.rand(5)
    assert torch.equal(draws(RandomLossWeighting(seed=1), 3), first)
    assert not torch.equal(draws(RandomLossWeighting(seed=2), 3), first)
    assert len({tuple(row.tolist()) for row in first}) == 3


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    draws(RandomLossWeighting(), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_logits_are_standard_normal() -> None:
    logs = draws(RandomLossWeighting(), 1500).log()
    differences = logs[:, 0] - logs[:, 1]  # of two independent standard normal numbers
    assert abs(float(differences.mean())) < 0.15
    assert abs(float(differences.var()) - 2) < 0.25


def test_an_absent_task_does_not_change_the_ratio_of_the_others() -> None:
    both = RandomLossWeighting(["a", "b", "c"])
    some = RandomLossWeighting(["a", "b", "c"])
    full, part = draws(both, 1)[0], draws(some, 1, "ac")[0]
    torch.testing.assert_close(part[0] / part[1], full[0] / full[2])
