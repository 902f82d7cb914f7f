"""What all gradient methods do beyond the contract of balancers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lightning_mtl.balancers import (
    CRMOGM,
    DBMTL,
    EPO,
    IMTL,
    MGDA,
    PCD,
    PMTL,
    AlignedMTL,
    Balancer,
    CAGrad,
    EncodecBalancer,
    ExcessMTL,
    FairGrad,
    GradDrop,
    GradientAggregation,
    GradientBalancer,
    GradientWeighting,
    GradVac,
    Krum,
    MatrixWeighting,
    MoCo,
    MoDo,
    NashMTL,
    SDMGrad,
    TrimmedMean,
    UPGrad,
)
from tests.balancers.cases import GRADIENT_WEIGHTING, TASKS, BalancerCase, Toy, tensors_of, toy_batches, train

every = pytest.mark.parametrize("case", GRADIENT_WEIGHTING, ids=lambda case: case.id)
some_tasks = pytest.mark.parametrize("names", [TASKS, ("a", "c")], ids=["all", "some"])


def update_of(balancer: Balancer, rows: Tensor, losses: Sequence[float] | None = None) -> Tensor:
    """Return the update for these task gradients."""
    leaf = torch.zeros(rows.shape[1], dtype=rows.dtype, requires_grad=True)
    values = torch.ones(len(rows), dtype=rows.dtype) if losses is None else torch.tensor(losses, dtype=rows.dtype)
    names = [chr(ord("a") + row) for row in range(len(rows))]
    total = balancer(dict(zip(names, rows @ leaf + values, strict=True)), shared=[leaf])
    return torch.autograd.grad(total, leaf)[0]


def random_rows(seed: int = 0, tasks: int = 3, size: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tasks, size, generator=generator, dtype=torch.float64)


gramian_only = pytest.mark.parametrize(
    "case",
    [case for case in GRADIENT_WEIGHTING if isinstance(case.build(TASKS), GradientWeighting)],
    ids=lambda case: case.id,
)


@gramian_only
@pytest.mark.parametrize("factor", [1e-10, 1e10])
def test_weights_react_to_the_scale_of_the_gradients_as_declared(case: BalancerCase, factor: float) -> None:
    balancer, other = case.build(TASKS), case.build(TASKS)
    assert isinstance(balancer, GradientWeighting)
    degree = balancer.weight_degree
    assert degree is not None
    for seed in range(2):
        rows = random_rows(seed)
        update_of(balancer.double(), rows)
        update_of(other.double(), factor * rows)
        for name, weight in balancer.weights.items():
            expected = factor**degree * weight
            torch.testing.assert_close(other.weights[name], expected, rtol=1e-6, atol=1e-9 * float(expected.abs()))


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "equal": lambda rows: rows[:1].expand(3, -1),
    "opposite": lambda rows: torch.stack([rows[0], -rows[0], rows[1]]),
    "parallel": lambda rows: torch.stack([rows[0], 3 * rows[0], 1e-3 * rows[0]]),
    "one zero": lambda rows: torch.stack([0 * rows[0], rows[1], rows[2]]),
    "all zero": lambda rows: 0 * rows,
    "norms apart": lambda rows: rows * torch.tensor([[1e-6], [1.0], [1e6]], dtype=rows.dtype),
}


@every
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_degenerate_gradients_give_finite_updates_and_states(case: BalancerCase, kind: str, dtype: torch.dtype) -> None:
    balancer = case.build(TASKS)
    for seed in range(2):
        assert update_of(balancer, KINDS[kind](random_rows(seed)).to(dtype)).isfinite().all()
    assert all(weight.isfinite() for weight in balancer.weights.values())
    assert all(value.isfinite().all() for value in tensors_of(balancer).values())


@every
@pytest.mark.parametrize("tasks", [1, 2, 40])
def test_any_number_of_tasks(case: BalancerCase, tasks: int) -> None:
    if tasks < case.fewest:
        with pytest.raises(ValueError, match=r"need"):
            case.build([chr(ord("a") + row) for row in range(tasks)])
        return
    balancer = case.build([chr(ord("a") + row) for row in range(tasks)])
    assert update_of(balancer, random_rows(tasks=tasks, size=60)).isfinite().all()


@every
def test_fifty_steps_after_a_resume_are_identical(case: BalancerCase) -> None:
    balancer, model = case.build(TASKS), Toy()
    batches = toy_batches(60)
    train(balancer, model, batches[:10], skip="b")
    file = io.BytesIO()
    torch.save({"balancer": balancer.state_dict(), "model": model.state_dict()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    fresh, twin = case.build(TASKS), Toy()
    fresh.load_state_dict(state["balancer"])
    twin.load_state_dict(state["model"])
    expected = train(balancer, model, batches[10:], skip="b")
    assert train(fresh, twin, batches[10:], skip="b") == expected
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, two)


@every
@some_tasks
def test_no_value_is_read_by_the_host(case: BalancerCase, names: tuple[str, ...]) -> None:
    """Tensors on the meta device have no values, so that reading one raises."""
    balancer = case.build(TASKS).to("meta")
    rows, count = [TASKS.index(name) for name in names], len(names)
    matrix, losses = torch.ones(count, 7, device="meta"), torch.ones(count, device="meta")
    for _ in range(2):
        with torch.no_grad():
            if isinstance(balancer, GradientWeighting):
                found = balancer.compute_weights(matrix @ matrix.T, losses, rows)
            elif isinstance(balancer, MatrixWeighting):
                found = balancer.compute_weights(matrix, rows)
            else:
                assert isinstance(balancer, GradientAggregation)
                found = balancer.aggregate(matrix, losses, rows)
    assert {found.device.type, *(value.device.type for value in tensors_of(balancer).values())} == {"meta"}


@every
def test_features_can_be_compared_where_declared(case: BalancerCase) -> None:
    balancer = case.build(TASKS)
    assert isinstance(balancer, GradientBalancer)
    arguments = {**balancer._recorded_arguments, "at": "features"}
    if "features" not in balancer.compares_at:
        with pytest.raises(ValueError, match=rf"{type(balancer).__name__}: at must be one of \['parameters'\]"):
            type(balancer)(**arguments)
        return
    balancer = type(balancer)(**arguments)
    model = Toy()
    for inputs, targets in toy_batches(3):
        features = model.encoder(inputs)
        losses = {
            name: model.factors[name] * (model.heads[name](features).squeeze(1) - targets[:, row]).square().mean()
            for row, name in enumerate(TASKS)
        }
        total = balancer(losses, shared=model.encoder.parameters(), features=features)
        plain = torch.stack([torch.autograd.grad(losses[name], features, retain_graph=True)[0] for name in TASKS])
        total.backward(retain_graph=True)
        if case.combines and not isinstance(balancer, IMTL):
            weights = torch.stack(list(balancer.weights.values()))
            wanted = torch.autograd.grad(features, model.encoder[0].weight, torch.tensordot(weights, plain, 1))
            torch.testing.assert_close(model.encoder[0].weight.grad, wanted[0])
        assert all(parameter.grad is not None for parameter in model.parameters())
        model.zero_grad()


def test_a_state_of_another_number_of_parameters_is_refused() -> None:
    balancer = MoCo(tasks=TASKS)
    update_of(balancer, random_rows())
    with pytest.raises(ValueError, match=r"remembers 7 numbers a task, the shared parameters now have 5; call reset"):
        update_of(balancer, random_rows(size=5))
    balancer.reset()
    assert update_of(balancer, random_rows(size=5)).shape == (5,)


def test_remembered_gradients_are_not_sent_around_with_the_buffers() -> None:
    balancer = MoDo(tasks=TASKS)
    update_of(balancer, random_rows())
    assert balancer.memory.vectors.shape == (3, 7)
    assert sum(buffer.numel() for buffer in balancer.buffers()) < 10
    assert copy.deepcopy(balancer).memory.vectors.equal(balancer.memory.vectors)


BAD: list[tuple[Callable[[], Balancer], str]] = [
    (lambda: MGDA("l1"), "MGDA: normalization must be"),
    (lambda: GradVac(1.5), "GradVac: beta must be between 0 and 1, got 1.5"),
    (lambda: CAGrad(-0.1), "CAGrad: c must not be negative, got -0.1"),
    (lambda: CAGrad(0.5, 3), "CAGrad: rescale must be 0, 1 or 2, got 3"),
    (lambda: IMTL(balance="accumulated"), "IMTL: .*balance must be"),
    (lambda: NashMTL(-1.0), "NashMTL: max_norm must not be negative, got -1.0"),
    (lambda: FairGrad(0.0), "FairGrad: alpha must be positive, got 0.0"),
    (lambda: AlignedMTL("max"), "AlignedMTL: scale_mode must be"),
    (lambda: UPGrad({"a": -1.0, "b": 1.0}), "UPGrad: preference must be finite, not negative"),
    (lambda: UPGrad({"a": 0.0, "b": 0.0}), "UPGrad: preference must be finite, not negative, and not all zero"),
    (lambda: UPGrad({"a": 1.0}, tasks=TASKS), "UPGrad: preference must have one entry for each"),
    (lambda: Krum(1, tasks=TASKS), "Krum: n_byzantine=1 and n_selected=1 need at least 4 tasks, got 3"),
    (lambda: Krum(-1), "Krum: n_byzantine must not be negative, got -1"),
    (lambda: Krum(0, 0), "Krum: n_selected must be at least 1, got 0"),
    (lambda: TrimmedMean(2, tasks=TASKS), "TrimmedMean: trim_number=2 needs more than 4 tasks, got 3"),
    (lambda: TrimmedMean(-1), "TrimmedMean: trim_number must not be negative, got -1"),
    (lambda: EPO(tolerance=-1.0), "EPO: tolerance must not be negative"),
    (lambda: PMTL([{"a": 1.0}], 1), "PMTL: index must be one of 1 preferences"),
    (lambda: PMTL([{"a": 1.0}], 0, -1), "PMTL: initial_epochs must not be negative"),
    (lambda: PCD("z", tasks=TASKS), r"PCD: primary must be one of \['a', 'b', 'c'\], got 'z'"),
    (lambda: PCD(tau=2.0), "PCD: tau must be between 0 and 1, got 2.0"),
    (lambda: PCD(beta=1.0), "PCD: beta must be at least 0 and below 1, got 1.0"),
    (lambda: CRMOGM(MGDA(), 1.5), "CRMOGM: alpha must be between 0 and 1, got 1.5"),
    (lambda: CRMOGM(MGDA(at="features")), r"CRMOGM: weighting has the options \['at'\] of its own"),
    (lambda: EncodecBalancer(total_norm=0.0), "EncodecBalancer: total_norm must be positive, got 0.0"),
    (lambda: EncodecBalancer(ema_decay=1.1), "EncodecBalancer: ema_decay must be between 0 and 1, got 1.1"),
    (lambda: MoDo(0.0), "MoDo: gamma must be positive, got 0.0"),
    (lambda: MoDo(rho=-1.0), "MoDo: rho must not be negative, got -1.0"),
    (lambda: MoDo(engine="mixed"), 'MoDo: needs the matrix of gradients, which engine="mixed" never builds'),
    (lambda: MoDo(parameters="last"), 'MoDo: .*parameters must be "all"'),
    (lambda: SDMGrad(-1.0), "SDMGrad: lambda_ must not be negative, got -1.0"),
    (lambda: SDMGrad(lr=0.0), "SDMGrad: lr must be positive, got 0.0"),
    (lambda: SDMGrad(momentum=1.0), "SDMGrad: momentum must be at least 0 and below 1, got 1.0"),
    (lambda: SDMGrad(n_iter=0), "SDMGrad: n_iter must be at least 1, got 0"),
    (lambda: ExcessMTL(0.0), "ExcessMTL: lr must be positive, got 0.0"),
    (lambda: ExcessMTL(warmup_steps=0), "ExcessMTL: warmup_steps must be at least 1, got 0"),
    (lambda: MoCo(0.0), "MoCo: beta must be above 0 and at most 1, got 0.0"),
    (lambda: MoCo(gamma=0.0), "MoCo: gamma must be positive, got 0.0"),
    (lambda: MoCo(rho=-1.0), "MoCo: rho must not be negative, got -1.0"),
    (lambda: MoCo(normalization="l2"), "MoCo: normalization must be 'none' or 'loss', got 'l2'"),
    (lambda: MoCo(projection="clip"), "MoCo: projection must be 'simplex' or 'softmax', got 'clip'"),
    (lambda: DBMTL(1.0), "DBMTL: beta must be at least 0 and below 1, got 1.0"),
    (lambda: DBMTL(beta_decay=-1.0), "DBMTL: beta_decay must not be negative, got -1.0"),
    (lambda: DBMTL(balance="accumulated"), "DBMTL: .*balance must be"),
    (lambda: GradDrop({"a": 2.0}), "GradDrop: leak must be between 0 and 1"),
]


@pytest.mark.parametrize(("build", "message"), BAD, ids=[message.split(" must")[0] for _, message in BAD])
def test_arguments_out_of_range_are_refused(build: Callable[[], Balancer], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
