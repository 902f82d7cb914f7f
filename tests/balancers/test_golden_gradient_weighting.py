"""Updates computed by LibMTL, TorchJD and independent solutions, reproduced through the classes.

``tests/functional/test_golden.py`` compares the stateless methods with every stored case. Here the classes that only
call them are compared once more in full, and all that keep a state, draw numbers, or need the gradients themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_mtl.balancers import (
    CRMOGM,
    DBMTL,
    IMTL,
    IMTLG,
    MGDA,
    PCD,
    AlignedMTL,
    CAGrad,
    ConFIG,
    DualProj,
    ExcessMTL,
    FairGrad,
    GradDrop,
    GradientBalancer,
    GradVac,
    Krum,
    MoCo,
    MoDo,
    NashMTL,
    PCGrad,
    SDMGrad,
    TrimmedMean,
    UPGrad,
)
from tests.balancers.test_golden_loss_weighting import CASES, named, names, step
from tests.functional.test_golden import followed


def tensor(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def stored(*methods: str, which: Callable[[dict[str, Any]], bool] = lambda case: True) -> pytest.MarkDecorator:
    """Run over the cases of these methods whose values are followed."""
    found = [case for case in CASES if case["method"] in methods and followed(case) and which(case)]
    assert found
    ids = [f"{case['method']}-{case['peer']}-{case['kind']}-{index}" for index, case in enumerate(found)]
    return pytest.mark.parametrize("case", found, ids=ids)


def preference(case: dict[str, Any]) -> dict[str, float] | None:
    vector = case["args"].get("pref_vector")
    return named(case, vector) if vector else None


def exact(balancer: GradientBalancer) -> GradientBalancer:
    """Hold the state and the preference in the precision of the file."""
    balancer = balancer.double()
    given = getattr(balancer, "preference", None)
    if given is not None:
        balancer.preference_values = tensor([given[name] for name in balancer.task_names])
    return balancer


def assert_golden(found: Tensor, expected: Any, case: dict[str, Any], factor: float = 1.0) -> None:
    torch.testing.assert_close(found, tensor(expected), rtol=factor * case["rtol"], atol=factor * case["atol"])


BUILD: dict[str, Callable[[dict[str, Any]], GradientBalancer]] = {
    "MGDA": lambda case: MGDA(case["args"].get("gradient_normalization", "none")),
    "CAGrad": lambda case: CAGrad(case["args"]["c"], case["args"]["rescale"]),
    "NashMTL": lambda case: NashMTL(case["args"]["max_norm"]),
    "IMTL-G": lambda case: IMTLG(),
    "AlignedMTL": lambda case: AlignedMTL(case["args"]["scale_mode"], preference(case)),
    "FairGrad": lambda case: FairGrad(case["args"]["alpha"]),
    "UPGrad": lambda case: UPGrad(preference(case)),
    "DualProj": lambda case: DualProj(preference(case)),
    "ConFIG": lambda case: ConFIG(),
    "Krum": lambda case: Krum(case["args"]["n_byzantine"], case["args"]["n_selected"]),
    "TrimmedMean": lambda case: TrimmedMean(case["args"]["trim_number"]),
}


def plain(case: dict[str, Any]) -> bool:
    """Leave out what the peers regularize; ``tests/functional/test_golden.py`` shows that this is all they do."""
    return "J" in case["inputs"] and not case["args"].get("reg_eps")


@stored(*BUILD, which=plain)
def test_methods_without_state(case: dict[str, Any]) -> None:
    balancer = BUILD[case["method"]](case)
    balancer.bind(names(case))
    update = step(exact(balancer), case)
    if case["method"] == "AlignedMTL" and case["peer"] == "LibMTL":  # sums the aligned gradients; ours is the mean
        update = update * len(names(case))
    assert_golden(update, case["expected"]["grad"], case)


@stored("PCGrad")
def test_pcgrad_in_a_given_order(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    balancer = PCGrad()
    monkeypatch.setattr(balancer, "draw_order", lambda num_tasks: torch.tensor(case["inputs"]["order"]))
    assert_golden(step(balancer, case), case["expected"]["grad"], case)


def steps_of(case: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each step as a case of its own, with what is expected of it."""
    pairs = zip(case["inputs"]["steps"], case["expected"]["steps"], strict=True)
    return [({**case, "inputs": inputs}, expected) for inputs, expected in pairs]


@stored("GradVac")
def test_gradvac_over_two_steps(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    balancer = GradVac(case["args"]["beta"]).double()
    for part, expected in steps_of(case):
        order = torch.tensor(part["inputs"]["order"])
        monkeypatch.setattr(balancer, "draw_order", lambda num_tasks, order=order: order)
        assert_golden(step(balancer, part), expected["grad"], case)


@stored("PCD")
def test_pcd_over_three_steps(case: dict[str, Any]) -> None:
    """TorchJD adds 1e-8 to the averages, which is below the tolerance at these norms."""
    balancer = PCD(None, case["args"]["tau"], case["args"]["beta"], tasks=names(steps_of(case)[0][0])).double()
    for part, expected in steps_of(case):
        assert_golden(step(balancer, part), expected["grad"], case)


@stored("NashMTL", which=lambda case: "steps" in case["inputs"])
def test_nash_mtl_with_weights_for_two_steps(case: dict[str, Any]) -> None:
    balancer = NashMTL(case["args"]["max_norm"], every_n_steps=case["args"]["update_weights_every"]).double()
    for part, expected in steps_of(case):
        assert_golden(step(balancer, part), expected["grad"], case)


@stored("CR-MOGM", which=lambda case: case["args"]["base"] != "UPGrad")
def test_cr_mogm_over_three_steps(case: dict[str, Any]) -> None:
    """The peer's UPGrad is regularized; ``tests/functional/test_golden.py`` compares that one."""
    balancer = CRMOGM(IMTLG(), case["args"]["alpha"]).double()
    for part, expected in steps_of(case):
        assert_golden(step(balancer, part), expected["grad"], case)


@stored("MoDo")
def test_modo_on_three_batches_without_a_step_in_between(case: dict[str, Any]) -> None:
    assert_golden(third_update(MoDo(case["args"]["gamma"], case["args"]["rho"]), case), case["expected"]["grad"], case)


@stored("SDMGrad")
def test_sdmgrad_on_three_batches_without_a_step_in_between(case: dict[str, Any]) -> None:
    """The step size tells the peers apart; the inner steps amplify the 1e-8 that both add to a divisor."""
    args = case["args"]
    balancer = SDMGrad(args["lambda"], lr=args["lr"], momentum=args["momentum"], n_iter=args["n_iter"])
    assert_golden(third_update(balancer, case), case["expected"]["grad"], case, factor=3.0)


def third_update(balancer: GradientBalancer, case: dict[str, Any]) -> Tensor:
    balancer.bind([f"task{row}" for row in range(len(case["inputs"]["J1"]))])
    balancer.double()
    for key in ("J1", "J2", "J3"):
        update = step(balancer, {**case, "inputs": {"J": case["inputs"][key]}})
    return update


@stored("MoCo")
def test_moco_as_the_authors_code_over_three_steps(case: dict[str, Any]) -> None:
    """LibMTL runs the authors' code, which tracks directions times losses and ends in a softmax."""
    args = case["args"]
    balancer = MoCo(
        args["beta"],
        args["beta_sigma"],
        args["gamma"],
        args["gamma_sigma"],
        args["rho"],
        normalization="loss",
        projection="softmax",
    ).double()
    for part, expected in steps_of(case):
        assert_golden(step(balancer, part), expected["grad"], case)


@stored("DB-MTL")
def test_db_mtl_over_three_steps(case: dict[str, Any]) -> None:
    balancer = DBMTL(case["args"]["beta"], case["args"]["beta_sigma"]).double()
    for part, expected in steps_of(case):
        assert_golden(step(balancer, part), expected["grad"], case)


@stored("ExcessMTL", which=lambda case: case["peer"] == "LibMTL")
def test_excess_mtl_over_three_steps(case: dict[str, Any]) -> None:
    """LibMTL runs the authors' code with a sum of K; ours is the paper's simplex, so K times less.

    TorchJD moves the weights in the first step by risks that have no start value yet, which is not followed.
    """
    tasks = names(steps_of(case)[0][0])
    balancer = ExcessMTL(case["args"]["robust_step_size"], tasks=tasks).double()
    for part, expected in steps_of(case):
        update = step(balancer, part)
        assert_golden(len(tasks) * update, expected["grad"], case)
        assert_golden(len(tasks) * torch.stack(list(balancer.weights.values())), expected["weights"], case)


@stored("IMTL")
def test_imtl_shared_and_learned_gradients(case: dict[str, Any]) -> None:
    balancer = IMTL(tasks=names(case)).double()
    with torch.no_grad():
        balancer.log_scales.copy_(tensor(case["inputs"]["log_scale"]))
    rows, losses = tensor(case["inputs"]["J"]), tensor(case["inputs"]["losses"])
    leaf = torch.zeros(rows.shape[1], dtype=torch.float64, requires_grad=True)
    total = balancer(dict(zip(names(case), rows @ leaf + losses, strict=True)), shared=[leaf])
    shared, learned = torch.autograd.grad(total, [leaf, balancer.log_scales])
    assert_golden(shared, case["expected"]["grad"], case)
    assert_golden(learned, case["expected"]["log_scale_grad"], case)
    assert_golden(torch.stack(list(balancer.weights.values())), case["expected"]["weights"], case)


@stored("GradDrop")
def test_graddrop_of_parameters(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    leak = case["args"]["leak"]
    balancer = GradDrop(0.0 if leak is None else named(case, leak), tasks=names(case))
    balancer.leaks = tensor(leak if leak else [0.0] * len(names(case)))
    monkeypatch.setattr(balancer, "draw", lambda place, shape, like: tensor(case["inputs"]["U"]))
    assert_golden(step(balancer, case), case["expected"]["grad"], case)


@stored("GradDrop-representation")
def test_graddrop_of_features(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = case["inputs"]
    features = tensor(inputs["rep"]).requires_grad_()
    gradients = tensor(inputs["rep_grads"])
    tasks = [f"task{row}" for row in range(len(gradients))]
    balancer = GradDrop(case["args"]["leak"], at="features", tasks=tasks)
    balancer.leaks = balancer.leaks.double().fill_(case["args"]["leak"])
    monkeypatch.setattr(balancer, "draw", lambda place, shape, like: tensor(inputs["U"]))
    through = features * 1.0
    losses = {name: (through * part).sum() for name, part in zip(tasks, gradients, strict=True)}
    (update,) = torch.autograd.grad(balancer(losses, features=through), features)
    assert_golden(update, case["expected"]["grad"], case)


def test_every_gradient_method_of_the_file_is_compared() -> None:
    compared = {
        *BUILD,
        *("PCGrad", "GradVac", "PCD", "CR-MOGM", "MoDo", "SDMGrad", "MoCo", "DB-MTL", "ExcessMTL", "IMTL"),
        *("GradDrop", "GradDrop-representation"),
    }
    losses = {"Sum", "Mean", "Constant", "RLW", "UW", "GLS", "DWA", "FAMO", "STCH", "STCH-log", "IMTL-L", "GradNorm"}
    assert {case["method"] for case in CASES} == compared | losses | {"COSMOS", "PBI"}
