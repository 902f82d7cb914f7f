"""Polynomial regression and modular arithmetic: exact answers, full batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_mtl.data import (
    ModularArithmeticDataModule,
    PolynomialRegressionDataModule,
    QuadraticError,
    quadratic_error,
)
from lightning_mtl.data.table import Table
from tests.toys import make_module, make_trainer

GOLDEN: list[dict[str, Any]] = json.loads((Path(__file__).parents[1] / "golden" / "grokking.json").read_text())["cases"]


def polynomial(**options: Any) -> PolynomialRegressionDataModule:
    data = PolynomialRegressionDataModule(**{"num_train": 40, "num_val": 10, "num_test": 10, **options})
    data.setup()
    return data


def modular(**options: Any) -> ModularArithmeticDataModule:
    data = ModularArithmeticDataModule(**{"p": 7, **options})
    data.setup()
    return data


def test_targets_are_powers_of_the_hidden_directions() -> None:
    data = polynomial(degrees={"linear": 1, "cubic": 3}, num_features=6)
    table = data.datasets["train"]
    for task, degree in data.degrees.items():
        direction = data.directions()[task]
        assert direction.square().sum().item() == pytest.approx(6)
        expected = (table.inputs.double() @ direction) ** degree / degree
        torch.testing.assert_close(table.targets[task][:, 0].double(), expected, rtol=1e-4, atol=1e-5)
    assert not data.directions()["linear"].equal(data.directions()["cubic"])


def test_inputs_have_the_stated_variance_and_targets_the_mean_of_half_a_square() -> None:
    table = polynomial(num_train=20_000).datasets["train"]
    assert table.inputs.var().item() == pytest.approx(1 / 50, rel=0.01)
    assert table.targets["quadratic"].mean().item() == pytest.approx(0.5, abs=0.03)


def test_noise_is_added_to_the_training_targets_alone() -> None:
    clean, noisy = polynomial(), polynomial(noise=0.5)
    assert clean.datasets["train"].inputs.equal(noisy.datasets["train"].inputs)
    difference = noisy.datasets["train"].targets["quadratic"] - clean.datasets["train"].targets["quadratic"]
    assert difference.std().item() == pytest.approx(0.5, rel=0.3)
    assert clean.datasets["val"].targets["quadratic"].equal(noisy.datasets["val"].targets["quadratic"])


@pytest.mark.parametrize("case", [c for c in GOLDEN if c["inputs"]["function"] == "polynomial_test_mse"])
def test_quadratic_error_is_that_of_the_reference(case: dict[str, Any]) -> None:
    inputs = case["inputs"]
    matrices = [torch.tensor(inputs[key], dtype=torch.float64) for key in ("W", "W0", "beta")]
    found = quadratic_error(*matrices, alpha=inputs["alpha"], epsilon=inputs["eps"])
    expected = case["expected"]
    assert isinstance(found, QuadraticError)
    assert found.trace == pytest.approx(expected["trace_term"], rel=case["rtol"])
    assert found.misalignment == pytest.approx(expected["misalignment_term"], rel=case["rtol"])
    assert found.linear == pytest.approx(expected["linear_term"], rel=case["rtol"])
    assert found.total == pytest.approx(expected["test_mse"], rel=case["rtol"])


def test_quadratic_error_is_the_mean_over_samples() -> None:
    data = polynomial(num_features=5, num_test=200_000)
    start, weight = torch.randn(2, 9, 5, dtype=torch.float64)
    inputs, target = data.datasets["test"].inputs.double(), data.datasets["test"].targets["quadratic"][:, 0]
    hidden, first = inputs @ weight.T, inputs @ start.T
    prediction = 0.8 * ((hidden + 0.15 * hidden**2) - (first + 0.15 * first**2)).mean(1)
    found = quadratic_error(weight, start, data.directions()["quadratic"], alpha=0.8, epsilon=0.3)
    assert (prediction - target).square().mean().item() == pytest.approx(found.total, rel=0.03)


def test_answers_are_exact_and_splits_hold_every_pair_once() -> None:
    data = modular(operations=["add", "sub", "mul", "div"])
    pairs = []
    for split in ("train", "val", "test"):
        table = data.datasets[split]
        first, second = table.inputs[:, :7].argmax(1), table.inputs[:, 7:].argmax(1)
        assert (table.inputs.sum(1) == 2).all()
        for operation, answer in table.targets.items():
            expected = {"add": first + second, "sub": first - second, "mul": first * second}.get(operation)
            if expected is None:
                assert ((answer * second) % 7).equal(first)
            else:
                assert answer.equal(expected % 7)
        pairs += list(zip(first.tolist(), second.tolist(), strict=True))
    assert sorted(pairs) == [(a, b) for a in range(7) for b in range(1, 7)]
    assert len(data.datasets["train"]) == round(0.6 * 42)


def test_tokens_are_the_same_pairs_and_an_equals_sign() -> None:
    table, tokens = modular().datasets["val"], modular(one_hot=False).datasets["val"].inputs
    assert tokens.dtype == torch.int64
    assert tokens[:, 0].equal(table.inputs[:, :7].argmax(1))
    assert tokens[:, 1].equal(table.inputs[:, 7:].argmax(1))
    assert (tokens[:, 2] == 7).all()


def test_targets_as_vectors_are_the_same_answers() -> None:
    classes, vectors = (modular(one_hot_targets=form).datasets["train"].targets["add"] for form in (False, True))
    assert vectors.dtype == torch.float32
    assert vectors.sum(1).eq(1).all()
    assert vectors.argmax(1).equal(classes)


@pytest.mark.parametrize("build", [polynomial, modular], ids=["polynomial", "modular"])
def test_the_whole_training_set_is_one_batch_by_default(build: Any) -> None:
    data = build()
    batches = list(data.train_dataloader())
    assert len(batches) == 1
    inputs, _ = batches[0]
    assert len(inputs) == len(data.datasets["train"])
    assert sorted(map(tuple, inputs.tolist())) == sorted(map(tuple, data.datasets["train"].inputs.tolist()))


def test_a_batch_taken_at_once_is_that_of_single_samples() -> None:
    data = modular(batch_size=8)
    table = data.datasets["train"]
    whole = table.__getitems__([3, 1, 2])
    torch.testing.assert_close(whole, data.collate([table[3], table[1], table[2]]))
    assert data.collate(whole) is whole


def test_partial_labels_work_with_full_batches() -> None:
    data = polynomial(label_fraction={"quadratic": 0.25})
    _, targets = next(iter(data.train_dataloader()))
    assert targets["quadratic"].isnan().sum() == 30


def test_they_train_in_a_trainer() -> None:
    data = PolynomialRegressionDataModule({"size": 1, "age": 2}, num_features=8, num_train=16, num_val=4)
    module = make_module(tasks={name: task for name, task in make_module().tasks.items() if name in data.degrees})
    trainer = make_trainer(max_epochs=2)
    trainer.fit(module, data)
    assert trainer.global_step == 2


def test_a_table_with_targets_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"targets must have the length of the inputs, 3, got \{'a': 2\}"):
        Table(torch.zeros(3), {"a": torch.zeros(2)})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PolynomialRegressionDataModule(degrees={"a": 0}), r"degrees\['a'\] must be at least 1, got 0"),
        (lambda: PolynomialRegressionDataModule(degrees={}), "degrees must name at least one task"),
        (lambda: PolynomialRegressionDataModule(num_features=0), "num_features must be at least 1, got 0"),
        (lambda: PolynomialRegressionDataModule(noise=-1), "noise must not be negative, got -1"),
        (lambda: ModularArithmeticDataModule(p=1), "p must be at least 2, got 1"),
        (lambda: ModularArithmeticDataModule(operations=["pow"]), "operations must name at least one of"),
        (lambda: ModularArithmeticDataModule(p=9, operations=["div"]), "p must be a prime for 'div', got 9"),
        (lambda: ModularArithmeticDataModule(train_fraction=1.0), "train_fraction must be between 0 and 1, got 1"),
        (lambda: ModularArithmeticDataModule(p=2, train_fraction=0.9), "must leave pairs for all splits"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_values_out_of_range_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
