"""Every balancer with small arguments, and small problems to balance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_mtl.balancers import (
    COSMOS,
    DWA,
    FAMO,
    IMTLL,
    PBI,
    Balancer,
    EqualWeighting,
    FixedWeighting,
    GeometricLoss,
    GradNorm,
    InitialLossNormalization,
    LogSmoothTchebycheff,
    LogTransform,
    LossSchedule,
    RandomLossWeighting,
    ScheduledWeighting,
    SmoothTchebycheff,
    UncertaintyWeighting,
)


@dataclass(frozen=True)
class BalancerCase:
    """A balancer and what it declares.

    ``build`` takes the names of the tasks; ``unbound`` makes the same balancer before it knows them, where that is
    allowed.
    """

    id: str
    build: Callable[[Sequence[str]], Balancer]
    unbound: Callable[[], Balancer] | None = None
    total: Callable[[int], float] | None = None
    """Declared sum of the weights, given the number of tasks."""
    permutable: bool = True
    """Whether the order in which the tasks are bound is without effect."""
    signed: bool = False
    """Whether weights may be negative."""


def spread(tasks: Sequence[str], first: float = 0.5, step: float = 0.25) -> dict[str, float]:
    """Give each task its own positive number, whatever the order of the names."""
    return {name: first + step * sorted(tasks).index(name) for name in tasks}


def schedules(tasks: Sequence[str]) -> dict[str, LossSchedule]:
    kinds = [LossSchedule(), LossSchedule("linear", 1.0, 0.5, steps=3), LossSchedule("cosine", 0.1, 2.0, steps=4)]
    return {name: kinds[sorted(tasks).index(name) % len(kinds)] for name in tasks}


LOSS_WEIGHTING = [
    BalancerCase("equal", lambda t: EqualWeighting(t), EqualWeighting, float),
    BalancerCase("fixed", lambda t: FixedWeighting(spread(t))),
    BalancerCase("uncertainty", lambda t: UncertaintyWeighting(t)),
    BalancerCase(
        "uncertainty-mixed",
        lambda t: UncertaintyWeighting(t, {n: "softmax" if n == "a" else "laplace" for n in t}, 0.5),
    ),
    BalancerCase("imtl-l", lambda t: IMTLL(t)),
    BalancerCase("dwa", lambda t: DWA(t), DWA, float),
    BalancerCase("random", lambda t: RandomLossWeighting(t), RandomLossWeighting, lambda k: 1.0, permutable=False),
    BalancerCase("geometric", lambda t: GeometricLoss(t), GeometricLoss),
    BalancerCase("log", lambda t: LogTransform(t), LogTransform),
    BalancerCase("stch", lambda t: SmoothTchebycheff(t), SmoothTchebycheff),
    BalancerCase("stch-preferences", lambda t: SmoothTchebycheff(t, 0.5, spread(t), spread(t, 0.01, 0.01))),
    BalancerCase(
        "stch-log",
        lambda t: LogSmoothTchebycheff(t, warmup_epochs=0),
        lambda: LogSmoothTchebycheff(warmup_epochs=0),
    ),
    BalancerCase("stch-log-nadir", lambda t: LogSmoothTchebycheff(t, 0.5, nadir=spread(t))),
    BalancerCase("famo", lambda t: FAMO(t), FAMO, lambda k: 1.0),
    BalancerCase("famo-bounds", lambda t: FAMO(t, 0.1, min_losses=spread(t, -0.5, 0.1)), None, lambda k: 1.0),
    BalancerCase("gradnorm", lambda t: GradNorm(t), GradNorm, float),
    BalancerCase("gradnorm-sgd", lambda t: GradNorm(t, lr=0.01, optimizer="sgd", parameters="all"), None, float),
    BalancerCase("initial", lambda t: InitialLossNormalization(t), InitialLossNormalization),
    BalancerCase("initial-mean", lambda t: InitialLossNormalization(t, num_steps=3)),
    BalancerCase("scheduled", lambda t: ScheduledWeighting(schedules(t))),
    BalancerCase("scheduled-epochs", lambda t: ScheduledWeighting(schedules(t), "epoch")),
    BalancerCase("cosmos", lambda t: COSMOS(spread(t), penalty=0.5), signed=True),
    BalancerCase("pbi", lambda t: PBI(spread(t)), signed=True),
]

CASES = LOSS_WEIGHTING

TASKS = ("a", "b", "c")


class Toy(nn.Module):
    """A shared layer and one head a task; the losses are mean squared errors of unequal scale."""

    def __init__(self, tasks: Sequence[str] = TASKS, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.encoder = nn.Sequential(nn.Linear(4, 5, dtype=dtype), nn.Tanh())
            heads = {name: nn.Linear(5, 1, dtype=dtype) for name in sorted(tasks)}
        self.heads = nn.ModuleDict({name: heads[name] for name in tasks})
        self.factors = spread(tasks, 1.0, 2.0)

    def losses(self, inputs: Tensor, targets: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        features = self.encoder(inputs)
        names = list(self.heads) if tasks is None else tasks
        return {
            name: self.factors[name] * (self.heads[name](features).squeeze(1) - targets[:, ord(name) - ord("a")]) ** 2
            for name in names
        }

    def mean_losses(self, inputs: Tensor, targets: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        return {name: loss.mean() for name, loss in self.losses(inputs, targets, tasks).items()}


def toy_batches(count: int, rows: int = 8, dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(rows, 4, generator=generator, dtype=dtype) for _ in range(count)]
    return [(x, torch.stack([x[:, 0] + 1, 2 * x[:, 1], x[:, 2] * x[:, 3]], dim=1)) for x in inputs]


def train(
    balancer: Balancer, model: Toy, batches: Sequence[tuple[Tensor, Tensor]], epoch: int = 3, skip: str | None = None
) -> list[dict[str, Tensor]]:
    """Train for one step a batch in an own loop; return the weights of each step.

    Args:
        balancer: The balancer.
        model: The network.
        batches: Inputs and targets.
        epoch: Steps of an epoch.
        skip: Task that takes no part in every other step.
    """
    optimizer = torch.optim.SGD([*model.parameters(), *balancer.parameters()], lr=0.02)
    found = []
    for step, (inputs, targets) in enumerate(batches):
        names = [name for name in model.heads if name != skip or step % 2 == 0]
        optimizer.zero_grad()
        total = balancer(model.mean_losses(inputs, targets, names), shared=model.encoder.parameters())
        total.backward()
        optimizer.step()
        if balancer.needs_losses_after_step:
            with torch.no_grad():
                balancer.after_step(model.mean_losses(inputs, targets, names))
        if (step + 1) % epoch == 0:
            balancer.end_epoch()
        found.append(balancer.weights)
    return found


def linear_losses(values: Mapping[str, float], dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], Tensor]:
    """Return losses of these values whose gradients are in proportion to them, and the shared leaf they depend on."""
    generator = torch.Generator().manual_seed(1)
    leaf = torch.ones(6, dtype=dtype, requires_grad=True)
    losses = {}
    for name in sorted(values):
        share = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
        losses[name] = values[name] * (leaf * (share / share.sum()).to(dtype)).sum()
    return {name: losses[name] for name in values}, leaf


def tensors_of(balancer: Balancer) -> dict[str, Tensor]:
    """Return the tensors of the state."""
    return {key: value for key, value in balancer.state_dict().items() if isinstance(value, Tensor)}
