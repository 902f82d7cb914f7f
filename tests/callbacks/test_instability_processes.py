"""InstabilityMonitor on two processes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lightning_mtl.callbacks import InstabilityMonitor
from tests.callbacks.instability_worker import Plain, train
from tests.processes import start


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("processes")
    processes = start("tests.callbacks.instability_worker", str(folder / "two"))
    for process in processes:
        assert process.wait(timeout=240) == 0
    return {key: torch.load(folder / key, weights_only=True) for key in ("two.0", "two.1")}


def test_two_processes_measure_what_one_measures_on_the_joined_batch(runs: dict[str, Any]) -> None:
    alone = train(Plain, 1, InstabilityMonitor(every_n_steps=2))["state"]
    one, two = alone["history"], runs["two.0"]["watched"]["state"]["history"]
    assert one["curves"].keys() == two["curves"].keys()
    assert two["last"]["attention_logit"]
    for quantity, values in one["last"].items():
        assert two["last"][quantity] == pytest.approx(values, rel=1e-3, abs=1e-6), quantity
    assert runs["two.0"]["watched"]["state"]["losses"] == pytest.approx(alone["losses"], rel=1e-4)


def test_all_processes_know_the_same(runs: dict[str, Any]) -> None:
    for name in ("watched", "late", "skipped"):
        first, second = (runs[key][name] for key in ("two.0", "two.1"))
        assert str(first["state"]) == str(second["state"])
        if name != "late":
            torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)


def test_weights_are_those_of_an_unwatched_run_on_two_processes(runs: dict[str, Any]) -> None:
    for key in ("two.0", "two.1"):
        torch.testing.assert_close(runs[key]["watched"]["weights"], runs[key]["unwatched"]["weights"], rtol=0, atol=0)


def test_a_loss_that_is_not_finite_on_one_process_stops_both_at_the_next_check(runs: dict[str, Any]) -> None:
    state = runs["two.0"]["late"]["state"]
    (alarm,) = [alarm for alarm in state["history"]["alarms"] if alarm["kind"] == "nonfinite"]
    assert (alarm["step"], alarm["where"], state["step"]) == (2, "loss", 4)


def test_a_batch_that_is_bad_on_one_process_is_skipped_on_both(runs: dict[str, Any]) -> None:
    found = runs["two.1"]["skipped"]
    assert found["state"]["step"] == 4
    assert found["state"]["history"]["nonfinite_steps"] == 1
    assert all(bool(value.isfinite().all()) for value in found["weights"].values())
