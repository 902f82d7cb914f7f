"""Scores of generated text."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics import Metric
from torchmetrics.functional.text import rouge_score, squad

from lightning_mtl.metrics import EntityF1, ExactMatch, RougeL, TaskMetrics, TokenF1
from lightning_mtl.metrics.text_scores import answer_f1, normalize_answer

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "box-prompt-and-score.json").read_text())["cases"]
SCORES = [case for case in GOLDEN if case["args"]["fn"] == "squad_like"]
TEXTS = [
    ("EGFR <Gene>, asthma <Disease>", "asthma <Disease>, EGFR <Gene>"),
    ("", "yes"),
    ("the CPR:3", "CPR:3"),
    ("a kinase", "the BRCA1 kinase, BRCA1"),
    ("no", "yes"),
    ("", ""),
]
METRICS: dict[str, Callable[[], Metric]] = {
    "exact match": ExactMatch,
    "exact match, best reference": lambda: ExactMatch(reference_scoring=True),
    "token F1": TokenF1,
    "token F1, best reference": lambda: TokenF1(reference_scoring=True),
    "ROUGE-L": RougeL,
    "entities": EntityF1,
    "labels": lambda: EntityF1("labels"),
}
each = pytest.mark.parametrize("build", METRICS.values(), ids=METRICS)


def value(metric: Metric, texts: list[tuple[str, str]]) -> float:
    metric.update([prediction for prediction, _ in texts], [reference for _, reference in texts])
    return float(metric.compute())


@pytest.mark.parametrize("case", SCORES, ids=lambda case: case["inputs"]["prediction"])
def test_normalisation_exact_match_and_f1_are_those_of_the_reference_script(case: dict[str, Any]) -> None:
    prediction, references = case["inputs"]["prediction"], case["inputs"]["references"]
    expected = case["expected"]
    assert normalize_answer(prediction) == expected["normalized_prediction"]
    assert ExactMatch().score(prediction, references) == expected["exact_match"]
    assert TokenF1().score(prediction, references) == pytest.approx(expected["f1"], rel=case["rtol"])


def test_with_one_reference_both_are_those_of_squad() -> None:
    texts = [(p, r) for p, r in TEXTS if p and r]
    preds = [{"prediction_text": p, "id": str(i)} for i, (p, _) in enumerate(texts)]
    target = [{"answers": {"answer_start": [0], "text": [r]}, "id": str(i)} for i, (_, r) in enumerate(texts)]
    expected = squad(preds, target)
    assert value(ExactMatch(), texts) == pytest.approx(float(expected["exact_match"]) / 100)
    assert value(TokenF1(), texts) == pytest.approx(float(expected["f1"]) / 100)


def test_one_of_several_labels_is_right_only_under_reference_scoring() -> None:
    texts = [("inducing angiogenesis", "genomic instability, inducing angiogenesis")]
    assert value(ExactMatch(), texts) == 0.0
    assert value(ExactMatch(reference_scoring=True), texts) == 1.0
    assert value(TokenF1(reference_scoring=True), texts) == 1.0
    assert value(EntityF1("labels"), texts) == pytest.approx(2 / 3)


def test_an_empty_prediction_scores_nothing_and_does_not_divide_by_zero() -> None:
    assert answer_f1("", "yes") == answer_f1("the", "yes") == answer_f1("yes", "a") == 0.0
    assert value(RougeL(), [("", "yes")]) == 0.0


def test_chemical_names_with_commas_are_one_entity() -> None:
    metric = EntityF1()
    assert metric.listed_items("1, 2-dichloroethane <Chemical>,  N, N-dimethyl <Chemical>, x") == {
        "1, 2-dichloroethane <chemical>",
        "n, n-dimethyl <chemical>",
        "x",
    }


def test_entities_count_over_all_texts_and_a_wrong_type_is_wrong() -> None:
    texts = [
        ("a <X>, b <Y>, b <Y>", "b <Y>, a <X>"),  # order and repetition do not matter: 2 hits, 2 + 2
        ("c <X>", "c <Y>"),  # 0 hits, 1 + 1
        ("", "d <X>, e <X>"),  # 0 hits, 0 + 2
    ]
    assert value(EntityF1(), texts) == pytest.approx(2 * 2 / 8)


def test_rouge_takes_the_best_reference_of_every_text() -> None:
    texts = [("binding kinases", "a kinase, binding of kinase"), ("no", "yes")]
    expected = [
        max(
            float(rouge_score(prediction, part, use_stemmer=True, rouge_keys="rougeL")["rougeL_fmeasure"])
            for part in reference.split(", ")
        )
        for prediction, reference in texts
    ]
    assert value(RougeL(reference_scoring=True), texts) == pytest.approx(sum(expected) / 2)
    assert value(RougeL(), texts) < sum(expected) / 2


@each
def test_any_grouping_of_the_texts_gives_the_same_value(build: Callable[[], Metric]) -> None:
    whole, parts = build(), [build(), build()]
    expected = value(whole, TEXTS)
    for text in TEXTS[:1]:
        value(parts[0], [text])
    value(parts[1], TEXTS[1:])
    joined = {name: sum(part.metric_state[name] for part in parts) for name in whole.metric_state}  # as ddp does it
    assert all(torch.equal(joined[name], state) for name, state in whole.metric_state.items())
    assert 0 <= expected <= 1


@each
def test_without_texts_the_value_is_nan_and_reset_forgets(build: Callable[[], Metric]) -> None:
    metrics = TaskMetrics({"score": build()})
    assert metrics.compute()["score"].isnan()
    metrics.update(["x"], ["x"])
    metrics.reset()
    metrics.update([], [])
    assert metrics.compute()["score"].isnan()
    assert metrics["score"].higher_is_better


@each
def test_equal_texts_are_best_and_copies_go_on(build: Callable[[], Metric]) -> None:
    metric = build()
    assert value(metric, [("b <X>", "b <X>")]) == 1.0
    for other in (copy.deepcopy(metric), pickle.loads(pickle.dumps(metric)).half()):
        assert value(other, [("d", "e")]) == pytest.approx(value(copy.deepcopy(metric), [("d", "e")]))
        assert other.compute().dtype == torch.float32


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="TokenF1: predictions and references must be as many, got 1 and 0"):
        TokenF1().update(["a"], [])
    with pytest.raises(ValueError, match="EntityF1: items must be 'entities' or 'labels', got 'words'"):
        EntityF1("words")  # type: ignore[arg-type]
