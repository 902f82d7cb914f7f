"""Loss weighting never waits for the device."""

from __future__ import annotations

import pytest
import torch

from tests.balancers.cases import LOSS_WEIGHTING, TASKS, BalancerCase


@pytest.mark.parametrize("case", LOSS_WEIGHTING, ids=lambda case: case.id)
@pytest.mark.parametrize("names", [TASKS, ("a", "c")], ids=["all", "some"])
def test_no_value_is_read_by_the_host(case: BalancerCase, names: tuple[str, ...]) -> None:
    """Tensors on the meta device have no values, so that reading one raises."""
    balancer = case.build(TASKS)
    leaf = torch.ones(3, 2, device="meta", requires_grad=True)
    for _ in range(2):
        total = balancer({name: leaf.sum() for name in names}, shared=[leaf])
        total.backward()
        if balancer.needs_losses_after_step:
            balancer.after_step({name: leaf.detach().sum() for name in names})
        balancer.end_epoch()
    assert {tensor.device.type for tensor in (total, *balancer.weights.values(), *balancer.buffers())} == {"meta"}
