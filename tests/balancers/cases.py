"""Every balancer with small arguments, and small problems to balance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_mtl.balancers import (
    COSMOS,
    CRMOGM,
    DBMTL,
    DWA,
    EPO,
    FAMO,
    IMTL,
    IMTLG,
    IMTLL,
    MGDA,
    PBI,
    PCD,
    PMTL,
    SAM,
    AlignedMTL,
    Balancer,
    CAGrad,
    CoBa,
    ConFIG,
    DualProj,
    EncodecBalancer,
    EqualWeighting,
    ExcessMTL,
    FairGrad,
    FixedWeighting,
    FlatRegions,
    GeometricLoss,
    GradDrop,
    GradientOptions,
    GradNorm,
    GradVac,
    InitialLossNormalization,
    Krum,
    LinearScalarization,
    LogSmoothTchebycheff,
    LogTransform,
    LossSchedule,
    MoCo,
    MoDo,
    NashMTL,
    NonFiniteGradientError,
    PCGrad,
    RandomLossWeighting,
    ScheduledWeighting,
    SDMGrad,
    SmoothTchebycheff,
    TrimmedMean,
    UncertaintyWeighting,
    UPGrad,
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
    combines: bool = True
    """Whether the update is the weighted sum of the gradients."""
    fewest: int = 1
    """Smallest number of tasks."""
    refuses: type[Exception] | None = None
    """What a gradient that is no number raises; None if training goes on."""


def spread(tasks: Sequence[str], first: float = 0.5, step: float = 0.25) -> dict[str, float]:
    """Give each task its own positive number, whatever the order of the names."""
    return {name: first + step * sorted(tasks).index(name) for name in tasks}


def schedules(tasks: Sequence[str]) -> dict[str, LossSchedule]:
    kinds = [LossSchedule(), LossSchedule("linear", 1.0, 0.5, steps=3), LossSchedule("cosine", 0.1, 2.0, steps=4)]
    return {name: kinds[sorted(tasks).index(name) % len(kinds)] for name in tasks}


LOSS_WEIGHTING = [
    BalancerCase("equal", lambda t: EqualWeighting(t), EqualWeighting, float),
    BalancerCase("equal-mean", lambda t: EqualWeighting(t, normalize=True), None, lambda k: 1.0),
    BalancerCase("fixed", lambda t: FixedWeighting(spread(t))),
    BalancerCase("fixed-mean", lambda t: FixedWeighting(spread(t), normalize=True), None, lambda k: 1.0),
    BalancerCase("coba", lambda t: CoBa(t), CoBa, lambda k: 1.0),
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
    BalancerCase("famo-val", lambda t: FAMO(t, on="val"), None, lambda k: 1.0),
    BalancerCase("gradnorm", lambda t: GradNorm(t), GradNorm, float),
    BalancerCase("gradnorm-sgd", lambda t: GradNorm(t, lr=0.01, optimizer="sgd", parameters="all"), None, float),
    BalancerCase("initial", lambda t: InitialLossNormalization(t), InitialLossNormalization),
    BalancerCase("initial-mean", lambda t: InitialLossNormalization(t, num_steps=3)),
    BalancerCase("scheduled", lambda t: ScheduledWeighting(schedules(t))),
    BalancerCase("scheduled-epochs", lambda t: ScheduledWeighting(schedules(t), "epoch")),
    BalancerCase("cosmos", lambda t: COSMOS(spread(t), penalty=0.5), signed=True),
    BalancerCase("pbi", lambda t: PBI(spread(t)), signed=True),
]

# LabelProportionalWeighting must be told the numbers of labels before every call; it is tested in test_coba.py.

RAYS = [(1.0, 0.1, 0.0), (0.5, 0.5, 0.5), (0.1, 1.0, 0.2)]


def rays(tasks: Sequence[str]) -> list[dict[str, float]]:
    """Give every region one number a task, whatever the order of the names."""
    return [{name: ray[sorted(tasks).index(name) % len(ray)] for name in tasks} for ray in RAYS]


def gradient_case(
    id: str,
    build: Callable[[GradientOptions], Balancer],
    unbound: Callable[[], Balancer] | None = None,
    total: Callable[[int], float] | None = None,
    permutable: bool = True,
    signed: bool = False,
    combines: bool = True,
    fewest: int = 1,
) -> BalancerCase:
    return BalancerCase(
        id,
        lambda tasks: build(GradientOptions(tasks=tasks)),
        unbound,
        total,
        permutable,
        signed,
        combines,
        fewest,
        NonFiniteGradientError,
    )


def one(tasks: int) -> float:
    return 1.0


GRADIENT_WEIGHTING = [
    gradient_case("mgda", lambda o: MGDA(**o), MGDA, one),
    gradient_case("mgda-l2", lambda o: MGDA("l2", **o)),
    gradient_case("mgda-loss", lambda o: MGDA("loss", **o)),
    gradient_case("mgda-loss+", lambda o: MGDA("loss+", **o)),
    gradient_case("pcgrad", lambda o: PCGrad(**o), PCGrad, permutable=False),
    gradient_case("gradvac", lambda o: GradVac(0.3, **o), lambda: GradVac(0.3), permutable=False),
    gradient_case("cagrad", lambda o: CAGrad(**o), CAGrad),
    gradient_case("cagrad-rescaled", lambda o: CAGrad(1.0, rescale=1, **o)),
    gradient_case("imtl-g", lambda o: IMTLG(**o), IMTLG, one, signed=True),
    gradient_case("imtl", lambda o: IMTL(**o), signed=True),
    gradient_case("nash", lambda o: NashMTL(**o), NashMTL),
    gradient_case("nash-unbounded", lambda o: NashMTL(None, **o)),
    gradient_case("nash-every-two", lambda o: NashMTL(every_n_steps=2, **o), lambda: NashMTL(every_n_steps=2)),
    gradient_case("fairgrad", lambda o: FairGrad(**o), FairGrad),
    gradient_case("fairgrad-2", lambda o: FairGrad(2.0, **o)),
    gradient_case("aligned", lambda o: AlignedMTL(**o), AlignedMTL, signed=True),
    gradient_case("aligned-rmse", lambda o: AlignedMTL("rmse", spread(o["tasks"]), **o), signed=True),
    gradient_case("upgrad", lambda o: UPGrad(**o), UPGrad),
    gradient_case("upgrad-preference", lambda o: UPGrad(spread(o["tasks"]), **o)),
    gradient_case("dualproj", lambda o: DualProj(**o), DualProj),
    gradient_case("dualproj-preference", lambda o: DualProj(spread(o["tasks"]), **o)),
    gradient_case("config", lambda o: ConFIG(**o), ConFIG, signed=True),
    gradient_case("config-preference", lambda o: ConFIG(spread(o["tasks"]), **o), signed=True),
    gradient_case("linear", lambda o: LinearScalarization(**o), LinearScalarization, one),
    gradient_case("krum", lambda o: Krum(0, 2, **o), lambda: Krum(0, 2), one, fewest=3),
    gradient_case("epo", lambda o: EPO(**o), EPO, float),
    gradient_case("epo-relaxed", lambda o: EPO(spread(o["tasks"]), relax=True, **o), None, float),
    gradient_case("pmtl", lambda o: PMTL(rays(o["tasks"]), 1, **o), signed=True),
    gradient_case("pmtl-direct", lambda o: PMTL(rays(o["tasks"]), 0, initial_epochs=0, **o), signed=True),
    gradient_case("pcd", lambda o: PCD("a", tau=0.1, beta=0.5, **o), lambda: PCD("a", tau=0.1, beta=0.5)),
    gradient_case("cr-mogm", lambda o: CRMOGM(MGDA(), 0.5, **o), lambda: CRMOGM(MGDA(), 0.5), one),
    gradient_case("cr-mogm-gradvac", lambda o: CRMOGM(GradVac(0.3, seed=4), **o), permutable=False),
    gradient_case(
        "encodec",
        lambda o: EncodecBalancer(ema_decay=0.9, at="parameters", **o),
        lambda: EncodecBalancer(ema_decay=0.9, at="parameters"),
    ),
    gradient_case("encodec-shares", lambda o: EncodecBalancer(spread(o["tasks"]), 2.0, at="parameters", **o)),
    gradient_case("modo", lambda o: MoDo(**o), MoDo, one),
    gradient_case("sdmgrad", lambda o: SDMGrad(**o), SDMGrad, one),
    gradient_case("sdmgrad-preference", lambda o: SDMGrad(0.5, spread(o["tasks"]), n_iter=3, **o)),
    gradient_case("excess", lambda o: ExcessMTL(0.3, **o), lambda: ExcessMTL(0.3), one),
    gradient_case("excess-warmup", lambda o: ExcessMTL(0.3, warmup_steps=3, **o), None, one),
    gradient_case("moco", lambda o: MoCo(**o), MoCo, float, combines=False),
    gradient_case(
        "moco-authors", lambda o: MoCo(normalization="loss", projection="softmax", rho=0.1, **o), combines=False
    ),
    gradient_case("db-mtl", lambda o: DBMTL(**o), DBMTL, combines=False),
    gradient_case("db-mtl-decay", lambda o: DBMTL(0.5, beta_decay=0.5, **o), combines=False),
    gradient_case("graddrop", lambda o: GradDrop(**o), GradDrop, float, combines=False),
    gradient_case("graddrop-leak", lambda o: GradDrop(spread(o["tasks"], 0.1, 0.02), seed=3, **o), combines=False),
    gradient_case(
        "trimmed-mean", lambda o: TrimmedMean(1, **o), lambda: TrimmedMean(1), float, combines=False, fewest=3
    ),
]

SHARPNESS_AWARE = [
    gradient_case("flat-linear", lambda o: FlatRegions(LinearScalarization(**o), 0.1), total=one),
    gradient_case(
        "flat-pcgrad", lambda o: FlatRegions(PCGrad(**o), 0.5), lambda: FlatRegions(PCGrad(), 0.5), permutable=False
    ),
    gradient_case(
        "flat-gradvac",
        lambda o: FlatRegions(GradVac(0.3, **o), 0.5, 0.1, norm_scope="joint"),
        lambda: FlatRegions(GradVac(0.3), 0.5, 0.1, norm_scope="joint"),
        permutable=False,
    ),
    gradient_case("flat-moco-plain", lambda o: FlatRegions(MoCo(**o), 0.05, adaptive=False), combines=False),
    gradient_case("flat-mgda-direct", lambda o: FlatRegions(MGDA(**o), 0.5, aggregate="direct"), total=one),
    gradient_case("sam", lambda o: SAM(o["tasks"]), SAM, float),
    gradient_case("sam-adaptive", lambda o: SAM(o["tasks"], 0.5, adaptive=True), None, float),
]

# SharpnessAware is their base class. TorchJDWeighting, TorchJDAggregator and TorchJDScalarizer promise what TorchJD's
# objects do; tested in test_torchjd.py. RotoGrad works with an encoder of its own; tested in test_rotograd.py.
CASES = LOSS_WEIGHTING + GRADIENT_WEIGHTING + SHARPNESS_AWARE

AT_FEATURES = [
    gradient_case("mgda-features", lambda o: MGDA(at="features", **o)),
    gradient_case("nash-features", lambda o: NashMTL(0.5, at="features", every_n_steps=2, **o)),
    gradient_case("encodec-features", lambda o: EncodecBalancer(**o)),
    gradient_case("graddrop-features", lambda o: GradDrop(0.1, at="features", seed=5, **o), combines=False),
]
"""Some methods where the gradients are compared at the features, which a call must be given."""

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
        return self.losses_of(self.encoder(inputs), targets, tasks)

    def losses_of(self, features: Tensor, targets: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        names = list(self.heads) if tasks is None else tasks
        return {
            name: self.factors[name] * (self.heads[name](features).squeeze(1) - targets[:, ord(name) - ord("a")]) ** 2
            for name in names
        }

    def mean_losses(self, inputs: Tensor, targets: Tensor, tasks: Sequence[str] | None = None) -> dict[str, Tensor]:
        return {name: loss.mean() for name, loss in self.losses(inputs, targets, tasks).items()}

    def balance(
        self, balancer: Balancer, inputs: Tensor, targets: Tensor, tasks: Sequence[str] | None = None
    ) -> Tensor:
        """Return the balancer's scalar for a batch."""

        def recompute(wanted: Sequence[str] | None = None) -> dict[str, Tensor]:
            return self.mean_losses(inputs, targets, tasks if wanted is None else wanted)

        features = self.encoder(inputs)
        losses = {name: loss.mean() for name, loss in self.losses_of(features, targets, tasks).items()}
        total: Tensor = balancer(losses, shared=self.encoder.parameters(), features=features, recompute=recompute)
        return total


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
        model.balance(balancer, inputs, targets, names).backward()
        optimizer.step()
        if balancer.needs_losses_after_step:
            with torch.no_grad():
                balancer.after_step(model.mean_losses(inputs, targets, names))
        if (step + 1) % epoch == 0:
            balancer.end_epoch()
        found.append(balancer.weights)
    return found


def linear_losses(
    values: Mapping[str, float], dtype: torch.dtype = torch.float32, leaf: Tensor | None = None
) -> tuple[dict[str, Tensor], Tensor]:
    """Return losses of these values whose gradients are in proportion to them, and the shared leaf they depend on."""
    generator = torch.Generator().manual_seed(1)
    if leaf is None:
        leaf = torch.ones(6, dtype=dtype, requires_grad=True)
    losses = {}
    for name in sorted(values):
        share = torch.rand(6, generator=generator, dtype=torch.float64) + 0.1
        losses[name] = values[name] * (leaf * (share / share.sum()).to(dtype)).sum()
    return {name: losses[name] for name in values}, leaf


def tensors_of(balancer: Balancer) -> dict[str, Tensor]:
    """Return the tensors of the state."""
    return {key: value for key, value in balancer.state_dict().items() if isinstance(value, Tensor)}
