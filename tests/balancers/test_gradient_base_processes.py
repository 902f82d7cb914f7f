"""Two processes balance gradients like one process on the joined batch, whatever part of the labels each has."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from lightning_mtl.balancers.gradient_weighting import GradientBalancer
from tests.balancers.test_gradient_base import InverseNorm, Median
from tests.balancers.trunks import Problem

TASKS = ("t0", "t1", "t2")
SETUPS: dict[str, tuple[type[GradientBalancer], dict[str, Any]]] = {
    "sequential": (InverseNorm, {"engine": "sequential"}),
    "batched": (InverseNorm, {"engine": "batched"}),
    "mixed": (InverseNorm, {"engine": "mixed"}),  # takes the matrix when there are several processes
    "weighted heads": (InverseNorm, {"head_gradients": "weighted"}),
    "last": (InverseNorm, {"parameters": "last"}),
    "reuse": (InverseNorm, {"every_n_steps": 2}),
    "features": (InverseNorm, {"at": "features"}),
    "features, reuse, weighted": (InverseNorm, {"at": "features", "every_n_steps": 2, "head_gradients": "weighted"}),
    "median": (Median, {}),
}
STEPS, ROWS = 5, 8


class Joint(nn.Module):
    """A problem with its balancer, as Lightning wraps them."""

    def __init__(self, setup: str) -> None:
        super().__init__()
        self.problem = Problem(dtype=torch.float64)
        kind, options = SETUPS[setup]
        self.balancer = kind(**options)

    def forward(self, inputs: Tensor, labelled: dict[str, Tensor], counts: dict[str, Tensor], world: int) -> Tensor:
        features = self.problem.encoder(inputs)
        losses = {}
        for k, (name, head) in enumerate(self.problem.heads.items()):
            if counts[name] == 0:
                continue
            if not labelled[name].any():
                losses[name] = sum((0 * parameter).sum() for parameter in head.parameters())
                continue
            each = (k + 1) * (head(features) - 0.3 * k).square().mean(1)
            losses[name] = each[labelled[name]].sum() / counts[name] * world
        total: Tensor = self.balancer(losses, shared=self.problem.shared, features=features)
        idle = [p for name, head in self.problem.heads.items() if name not in losses for p in head.parameters()]
        return total + sum((0.0 * parameter).sum() for parameter in idle)


def batches() -> list[tuple[Tensor, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(7)
    found = []
    for step in range(STEPS):
        inputs = torch.randn(ROWS, 5, generator=generator, dtype=torch.float64)
        labelled = {name: torch.rand(ROWS, generator=generator) < 0.6 for name in TASKS}
        labelled["t0"][:] = True
        labelled["t1"][1::2] = False  # never on rank 1
        labelled["t1"][0] = True
        if step == 3:
            labelled["t2"][:] = False  # nowhere
        found.append((inputs, labelled))
    return found


def train(setup: str, rank: int, world: int) -> tuple[Tensor, list[dict[str, Tensor]], list[Tensor]]:
    joint = Joint(setup)
    network = nn.parallel.DistributedDataParallel(joint) if world > 1 else joint
    optimizer = torch.optim.SGD(joint.parameters(), lr=0.02, momentum=0.5)
    weights, gramians = [], []
    for inputs, labelled in batches():
        counts = {name: mask.sum() for name, mask in labelled.items()}
        mine = {name: mask[rank::world] for name, mask in labelled.items()}
        optimizer.zero_grad()
        network(inputs[rank::world], mine, counts, world).backward()
        optimizer.step()
        weights.append(joint.balancer.weights)
        gramians.append(joint.balancer.last_gramian)
    return nn.utils.parameters_to_vector(joint.parameters()).detach(), weights, gramians


def train_sharded(parts: bool, head_gradients: Any) -> Tensor:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    joint = Joint("features")
    joint.balancer = InverseNorm(at="features", head_gradients=head_gradients)
    if parts:
        for module in (joint.problem.encoder, *joint.problem.heads.values()):
            fully_shard(module, mesh=mesh)
    else:
        fully_shard(joint, mesh=mesh)
    optimizer = torch.optim.SGD(joint.parameters(), lr=0.02, momentum=0.5)
    for inputs, labelled in batches():
        mask = {name: torch.ones_like(part[::2]) for name, part in labelled.items()}
        counts = {name: torch.tensor(ROWS) for name in labelled}
        optimizer.zero_grad()
        joint(inputs[dist.get_rank() :: 2], mask, counts, 2).backward()
        optimizer.step()
    return torch.cat([parameter.full_tensor().flatten() for parameter in joint.parameters()]).detach()  # type: ignore[attr-defined]


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    found: dict[str, Any] = {setup: train(setup, rank, world) for setup in SETUPS}
    for head_gradients in ("own", "weighted"):
        for parts in (True, False):
            found[f"sharded {parts} {head_gradients}"] = train_sharded(parts, head_gradients)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    mp.spawn(work, args=(2, str(folder)), nprocs=2)
    return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("setup", SETUPS)
def test_two_processes_balance_like_one(setup: str, ranks: list[Any]) -> None:
    parameters, weights, gramians = train(setup, 0, 1)
    for rank in ranks:
        found, found_weights, found_gramians = rank[setup]
        for one, two in zip(gramians, found_gramians, strict=True):
            torch.testing.assert_close(two, one, rtol=1e-9, atol=1e-12)
        for before, after in zip(weights, found_weights, strict=True):
            assert {name: pytest.approx(float(weight), rel=1e-9) for name, weight in before.items()} == {
                name: float(weight) for name, weight in after.items()
            }
        torch.testing.assert_close(found, parameters, rtol=0, atol=1e-10)
    assert torch.equal(ranks[0][setup][0], ranks[1][setup][0])


@pytest.mark.parametrize("setup", SETUPS)
def test_both_processes_have_the_very_same_weights(setup: str, ranks: list[Any]) -> None:
    for one, two in zip(ranks[0][setup][1], ranks[1][setup][1], strict=True):
        assert {name: float(weight) for name, weight in one.items()} == {n: float(w) for n, w in two.items()}


@pytest.mark.parametrize("head_gradients", ["own", "weighted"])
@pytest.mark.parametrize("parts", [True, False], ids=["module by module", "as a whole"])
def test_sharded_models_are_balanced_at_the_features(parts: bool, head_gradients: Any, ranks: list[Any]) -> None:
    joint = Joint("features")
    joint.balancer = InverseNorm(at="features", head_gradients=head_gradients)
    optimizer = torch.optim.SGD(joint.parameters(), lr=0.02, momentum=0.5)
    for inputs, labelled in batches():
        optimizer.zero_grad()
        counts = {name: torch.tensor(ROWS) for name in labelled}
        joint(inputs, {name: torch.ones_like(mask) for name, mask in labelled.items()}, counts, 1).backward()
        optimizer.step()
    expected = nn.utils.parameters_to_vector(joint.parameters()).detach()
    for rank in ranks:
        torch.testing.assert_close(rank[f"sharded {parts} {head_gradients}"], expected, rtol=0, atol=1e-10)
