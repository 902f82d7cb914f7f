"""Balancers of instruction tuning: CoBa, FAMO on validation losses, shares of the labels."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_mtl.balancers import (
    FAMO,
    Balancer,
    CoBa,
    EqualWeighting,
    FixedWeighting,
    LabelProportionalWeighting,
)
from lightning_mtl.balancers.loss_weighting import convergence_weights
from lightning_mtl.balancers.loss_weighting.coba import slopes

GOLDEN = {
    c["args"].get("fn"): c
    for c in json.loads((Path(__file__).parents[1] / "golden/mft-losses.json").read_text())["cases"]
}
NAMES = ("a", "b", "c")


def named(values: Any) -> dict[str, Tensor]:
    return dict(zip(NAMES, torch.as_tensor(values, dtype=torch.float64).unbind(), strict=True))


def weights(balancer: Balancer, losses: Any = (1.0, 1.0, 1.0)) -> list[float]:
    balancer(named(losses))
    return [float(weight) for weight in balancer.weights.values()]


def golden_ratios() -> Tensor:
    return torch.tensor(GOLDEN["CoBa"]["inputs"]["normalised_valid_loss_history"], dtype=torch.float64).T


@pytest.mark.parametrize("remember", ["authors", "history"])
def test_coba_gives_the_golden_weights(remember: Any) -> None:
    """They are those of the authors' code, which a history of equal length for everything follows until it is full."""
    args = GOLDEN["CoBa"]["args"]
    options = {"tau": args["tau"], "min_weight": args["min_weight"], "remember": remember}
    balancer = CoBa(NAMES, args["warmup_steps"], args["history_length"], **options)
    expected = {case["step"]: case["weights"] for case in GOLDEN["CoBa"]["expected"]["weights_by_step"]}
    first = torch.tensor([3.0, 0.5, 7.0], dtype=torch.float64)  # the golden history is divided by its first losses
    balancer.observe_validation(named(first))
    equal = []
    for step, ratios in enumerate(golden_ratios(), start=1):
        found = weights(balancer)
        if found == pytest.approx(expected.get(step, [1 / 3] * 3), rel=1e-6):
            equal.append(step)
        balancer.observe_validation(named(ratios * first))
    last = max(expected) if remember == "authors" else args["history_length"]
    assert equal == list(range(1, last + 1))


def test_slopes_are_those_of_a_polynomial_fit() -> None:
    import numpy as np

    values = torch.rand(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = np.polyfit(np.arange(9), values.numpy(), 1)[0]
    torch.testing.assert_close(slopes(values), torch.tensor(expected))


def test_while_all_converge_the_slower_task_gains_and_no_weight_is_below_the_least() -> None:
    balancer = CoBa(NAMES, warmup_steps=3, min_weight=0.05)
    for step in range(12):
        balancer.observe_validation(named([0.8**step, 0.95**step, 0.99**step]))
    found = weights(balancer)
    assert found == sorted(found)
    assert min(found) >= 0.05
    assert sum(found) == pytest.approx(1.0)


def test_the_divergence_factor_can_be_clipped() -> None:
    per_task, largest = torch.tensor([[-1.0, -0.2], [-0.5, -0.3]]), torch.tensor([-0.1, -0.9])
    free, clipped = (convergence_weights(per_task, largest, clip_df=clip) for clip in (False, True))
    factor = 2 * torch.softmax(-5 * 2 * largest.double() / largest.abs().sum(), 0)[-1]
    assert factor > 1
    assert not torch.allclose(free, clipped)


def test_constant_validation_losses_give_equal_weights() -> None:
    balancer = CoBa(NAMES, warmup_steps=0)
    for _ in range(5):
        balancer.observe_validation(named([1.0, 2.0, 3.0]))
    assert weights(balancer) == pytest.approx([1 / 3] * 3)


def test_the_interval_counts_towards_the_warm_up() -> None:
    balancer = CoBa(NAMES, warmup_steps=12, update_interval=4)
    for number in range(3):
        assert weights(balancer) == pytest.approx([1 / 3] * 3)
        balancer.observe_validation(named([0.5**number, 0.9**number, 1.0]))
    assert weights(balancer)[0] < 0.3


def test_an_absent_task_takes_no_part_and_the_others_sum_to_one() -> None:
    balancer = CoBa(NAMES, warmup_steps=0)
    for step in range(4):
        balancer.observe_validation(named([0.5**step, 0.9**step, 0.99**step]))
    full = weights(balancer)
    balancer({"a": torch.tensor(1.0), "c": torch.tensor(1.0)})
    found = [float(weight) for weight in balancer.weights.values()]
    assert found == pytest.approx([full[0] / (full[0] + full[2]), full[2] / (full[0] + full[2])])


@pytest.mark.parametrize(
    "make", [lambda: CoBa(warmup_steps=2, history=3), lambda: FAMO(on="val")], ids=["coba", "famo"]
)
def test_a_loaded_state_goes_on_bit_by_bit(make: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    history = torch.rand(12, 3, generator=generator) + 0.5
    balancer = make()
    for losses in history[:6]:
        balancer.observe_validation(named(losses))
        balancer(named(losses))
    other = make()
    other.load_state_dict(copy.deepcopy(balancer.state_dict()))
    for losses in history[6:]:
        for one in (balancer, other):
            one.observe_validation(named(losses))
        assert weights(other, losses) == weights(balancer, losses)
    assert str(other.state_dict()) == str(balancer.state_dict())


@pytest.mark.parametrize("on", ["train", "val"])
def test_famo_gives_the_golden_weights_on_the_losses_that_it_is_given(on: Any) -> None:
    case = GOLDEN["FAMO"]
    balancer = FAMO(NAMES, case["args"]["w_lr"], case["args"]["gamma"], on=on).double()
    history = case["inputs"]["losses_per_step"]
    if on == "val":
        balancer.observe_validation(named(history[0]))
    for before, after, expected in zip(history, history[1:], case["expected"]["per_step"], strict=False):
        assert weights(balancer, before) == pytest.approx(expected["loss_weights"], rel=1e-5)
        z = torch.softmax(balancer.logits, 0)
        assert z.tolist() == pytest.approx(expected["simplex"], rel=1e-5)
        if on == "val":
            balancer.observe_validation(named(after))
        else:
            balancer.after_step(named(after))
    assert balancer.logits.tolist() == pytest.approx(case["expected"]["final_logits"], rel=1e-5)


def test_famo_on_validation_losses_asks_for_them_and_not_for_a_second_pass() -> None:
    assert FAMO().needs_losses_after_step
    assert not FAMO().needs_validation_losses
    assert FAMO(on="val").needs_validation_losses
    assert not FAMO(on="val").needs_losses_after_step


def test_shares_of_the_labels_pool_them() -> None:
    balancer = LabelProportionalWeighting(NAMES)
    balancer.observe_labels({"a": 6.0, "c": 2.0})
    total = balancer({"a": torch.tensor(1.0), "c": torch.tensor(3.0)})
    assert total == pytest.approx((6 * 1.0 + 2 * 3.0) / 8)
    with pytest.raises(ValueError, match=r"the numbers of labels of \['a', 'c'\] are unknown"):
        balancer({"a": torch.tensor(1.0), "c": torch.tensor(3.0)})


def test_normalised_constants_average_over_the_present_tasks() -> None:
    losses = {"a": torch.tensor(1.0), "c": torch.tensor(3.0)}
    assert EqualWeighting(NAMES, normalize=True)(losses) == 2.0
    assert FixedWeighting({"a": 1.0, "b": 5.0, "c": 3.0}, normalize=True)(losses) == 2.5
    assert FixedWeighting({"a": 0.0, "b": 5.0, "c": 0.0}, normalize=True)(losses) == 0.0


@pytest.mark.parametrize("balancer", [CoBa(), FAMO(on="val")])
def test_a_trainer_that_feeds_no_validation_losses_is_refused(balancer: Balancer) -> None:
    trainer: Any = SimpleNamespace(callbacks=[])
    with pytest.raises(MisconfigurationException, match="needs validation losses during training; add the callback"):
        balancer.attach(trainer)
    balancer.attach(SimpleNamespace(callbacks=[SimpleNamespace(feeds_validation_losses=True)]))  # type: ignore[arg-type]


def test_a_loop_that_gives_no_validation_losses_is_told_so_after_the_warm_up() -> None:
    balancer = CoBa(NAMES, warmup_steps=2)
    for _ in range(3):
        weights(balancer)
    with pytest.raises(ValueError, match="no validation loss was given in 3 steps; call observe_validation"):
        weights(balancer)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps must not be negative"),
        ({"history": 1}, "history must be at least 2"),
        ({"tau": 0.0}, "tau must be positive"),
        ({"update_interval": 0}, "update_interval must be at least 1"),
        ({"tasks": NAMES, "min_weight": 0.5}, "min_weight must be in"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"CoBa: {message}"):
        CoBa(**arguments)
    with pytest.raises(ValueError, match="FAMO: on must be 'train' or 'val'"):
        FAMO(on="test")  # type: ignore[arg-type]


def test_validation_losses_are_checked() -> None:
    balancer = CoBa(NAMES)
    with pytest.raises(ValueError, match=r"a validation loss of every task is needed, \['c'\] are missing"):
        balancer.observe_validation({"a": torch.tensor(1.0), "b": torch.tensor(1.0)})
    with pytest.raises(ValueError, match=r"validation losses must be finite and positive, got \{'b': nan\}"):
        balancer.observe_validation(named([1.0, float("nan"), 1.0]))
