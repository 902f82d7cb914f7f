"""Two processes in a plain loop with DistributedDataParallel train like one process on the joined batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from tests.balancers.cases import AT_FEATURES, CASES, TASKS, BalancerCase, Toy, toy_batches

ALL = CASES + AT_FEATURES
Result = dict[str, tuple[dict[str, Tensor], list[dict[str, Tensor]]]]


class Joint(nn.Module):
    """A network and its balancer, so that both are in the reducer."""

    def __init__(self, case: BalancerCase) -> None:
        super().__init__()
        self.model = Toy(dtype=torch.float64)
        self.balancer = case.build(TASKS).double()

    def forward(self, inputs: Tensor, targets: Tensor, names: list[str]) -> Tensor:
        total = self.model.balance(self.balancer, inputs, targets, names)
        idle = [p for name, head in self.model.heads.items() if name not in names for p in head.parameters()]
        return total + sum(0.0 * parameter.sum() for parameter in idle)


def train_all(rank: int, world: int) -> Result:
    found: Result = {}
    for case in ALL:
        joint = Joint(case)
        network = nn.parallel.DistributedDataParallel(joint) if world > 1 and list(joint.parameters()) else joint
        optimizer = torch.optim.SGD(joint.parameters(), lr=0.02, momentum=0.5)
        weights = []
        for step, batch in enumerate(toy_batches(6, rows=12, dtype=torch.float64)):
            inputs, targets = (tensor[rank::world] for tensor in batch)
            names = [name for name in TASKS if step != 4 or name != "b"]
            optimizer.zero_grad()
            network(inputs, targets, names).backward()
            optimizer.step()
            if joint.balancer.needs_losses_after_step:
                with torch.no_grad():
                    joint.balancer.after_step(joint.model.mean_losses(inputs, targets, names))
            if step % 2:
                joint.balancer.end_epoch()
            weights.append(joint.balancer.weights)
        found[case.id] = ({name: p.detach().clone() for name, p in joint.named_parameters()}, weights)
    return found


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.save(train_all(rank, world), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Result]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(work, args=(2, str(folder)), nprocs=2)
    return {"one": train_all(0, 1)} | {f"rank {r}": torch.load(Path(folder) / f"{r}.pt") for r in range(2)}


@pytest.mark.parametrize("rank", ["rank 0", "rank 1"])
@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_two_processes_train_like_one(case: BalancerCase, rank: str, results: dict[str, Result]) -> None:
    (expected, weights), (found, found_weights) = results["one"][case.id], results[rank][case.id]
    assert set(found) == set(expected)
    for name, parameter in expected.items():
        torch.testing.assert_close(found[name], parameter, rtol=0, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    for one, two in zip(weights, found_weights, strict=True):
        assert set(one) == set(two)
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.id)
def test_both_processes_have_the_very_same_weights(case: BalancerCase, results: dict[str, Result]) -> None:
    for one, two in zip(results["rank 0"][case.id][1], results["rank 1"][case.id][1], strict=True):
        assert {name: float(weight) for name, weight in one.items()} == {n: float(w) for n, w in two.items()}
