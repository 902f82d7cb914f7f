"""Metrics of text tasks where there is little to measure, and those of vectors."""

from __future__ import annotations

import copy
import pickle

import pytest
import scipy.stats
import torch
from sklearn.metrics import f1_score, matthews_corrcoef
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_matthews_corrcoef

from lightning_mtl.metrics import (
    LabelledBinaryF1,
    LabelledMatthews,
    LabelledPearson,
    LabelledSpearman,
    PairMRR,
    PairRecall,
    TaggedEntityF1,
    TaskMetrics,
)


def value(metric: Metric, prediction: object, target: object) -> float:
    metric.update(torch.as_tensor(prediction), torch.as_tensor(target))
    return float(metric.compute())


@pytest.mark.filterwarnings("ignore:A single label was found:UserWarning")  # of scikit-learn
@pytest.mark.parametrize(
    ("prediction", "target"),
    [
        ([1, 1, 1, 1], [1, 0, 1, 1]),
        ([0, 0, 0, 0], [1, 0, 1, 1]),
        ([0, 1, 1, 0], [1, 1, 1, 1]),
        ([1, 1, 1, 1], [1, 1, 1, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([1, 0, 0, 1], [0, 1, 1, 0]),
        ([1], [0]),
    ],
    ids=str,
)
def test_one_class_only_gives_what_scikit_learn_gives(prediction: list[int], target: list[int]) -> None:
    expected = matthews_corrcoef(target, prediction)
    assert value(LabelledMatthews(2), prediction, target) == pytest.approx(expected)
    f1 = f1_score(target, prediction, zero_division=0.0)
    assert value(LabelledBinaryF1(), prediction, target) == pytest.approx(f1)


def test_matthews_of_large_counts_is_exact() -> None:
    torch.manual_seed(0)
    target = torch.randint(3, (20000,))
    prediction = torch.where(torch.rand(20000) < 0.5, target, torch.randint(3, (20000,)))
    metric = LabelledMatthews(3)
    for p, t in zip(prediction.split(3000), target.split(3000), strict=True):
        metric.update(p, t)
    assert float(metric.compute()) == pytest.approx(matthews_corrcoef(target, prediction), abs=1e-6)
    torch.testing.assert_close(metric.compute(), multiclass_matthews_corrcoef(prediction, target, 3))


def test_correlations_of_similarity_scores_are_those_of_scipy_and_constant_predictions_have_none() -> None:
    torch.manual_seed(0)
    target = (torch.rand(50) * 25).round() / 5
    prediction = target + torch.randn(50)
    assert value(LabelledPearson(), prediction, target) == pytest.approx(
        scipy.stats.pearsonr(prediction, target).statistic, abs=1e-6
    )
    assert value(LabelledSpearman(), prediction, target) == pytest.approx(
        scipy.stats.spearmanr(prediction, target).statistic, abs=1e-6
    )
    for metric in (LabelledPearson(), LabelledSpearman()):
        assert torch.tensor(value(metric, torch.full((50,), 2.5), target)).isnan()


LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        ([1, 2, 0, 3], [1, 2, 0, 3], 1.0),
        ([1, 0, 0, 3], [1, 2, 0, 3], 2 / 4),  # too short
        ([1, 1, 0, 3], [1, 2, 0, 3], 2 / 5),  # two where one is
        ([0, 2, 0, 4], [0, 1, 0, 3], 1.0),  # what nothing begins, begins there
        ([1, 4, 4, 0], [1, 3, 4, 0], 1.0),  # another type begins another entity
        ([1, 2, 2, 2], [1, -100, 2, -100], 1.0),  # further pieces of a word do not count
        ([1, 0, 2, 0], [1, -100, 2, -100], 1.0),
        ([0, 0, 0, 3], [0, 0, 0, -100], float("nan")),
        ([3, 0, 0, 0], [0, 0, 0, 0], 0.0),
    ],
    ids=str,
)
def test_entities_are_read_as_in_conll(prediction: list[int], target: list[int], expected: float) -> None:
    found = value(TaggedEntityF1(LABELS), [prediction], [target])
    assert found == pytest.approx(expected, nan_ok=True)


def test_tags_without_entities_are_refused() -> None:
    with pytest.raises(ValueError, match=r"TaggedEntityF1: labels must be in BIO form"):
        TaggedEntityF1(["NOUN", "VERB"])


# ------------------------------------------------------------------ retrieval
def pair_batch(n: int) -> tuple[Tensor, Tensor]:
    queries = torch.randn(n, 3)
    documents = queries + torch.randn(n, 3)
    groups = torch.randint(n, (n,))
    groups[torch.rand(n) < 0.2] = -100
    return torch.stack([queries, documents], 1), groups


def naive_ranks(pairs: Tensor, groups: Tensor) -> list[int]:
    ranks = []
    known = [i for i in range(len(groups)) if groups[i] != -100]
    for i in known:
        scores = {j: float((pairs[i, 0] * pairs[j, 1]).sum()) for j in known}
        best = max(score for j, score in scores.items() if groups[j] == groups[i])
        ranks.append(1 + sum(score >= best for j, score in scores.items() if groups[j] != groups[i]))
    return ranks


def build() -> TaskMetrics:
    metrics: dict[str, Metric] = {"one": PairRecall(1), "three": PairRecall(3), "mrr": PairMRR()}
    return TaskMetrics(metrics, shared=[["one", "three", "mrr"]])


def test_documents_of_all_batches_are_candidates() -> None:
    torch.manual_seed(0)
    batches = [pair_batch(n) for n in (12, 1, 20)]
    groups = torch.cat([batch[1] for batch in batches])
    ranks = naive_ranks(torch.cat([batch[0] for batch in batches]), groups)
    metrics = build()
    for batch in batches:
        metrics.update(*batch)
    values = {name: float(found) for name, found in metrics.compute().items()}
    assert values["one"] == pytest.approx(sum(rank <= 1 for rank in ranks) / len(ranks))
    assert values["three"] == pytest.approx(sum(rank <= 3 for rank in ranks) / len(ranks))
    assert values["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks))
    for other in (copy.deepcopy(metrics), pickle.loads(pickle.dumps(metrics))):
        assert other.compute() == metrics.compute()


def test_ties_count_against_the_right_document() -> None:
    metrics = build()
    metrics.update(torch.ones(4, 2, 3), torch.arange(4))
    assert {name: float(found) for name, found in metrics.compute().items()} == {"one": 0, "three": 0, "mrr": 0.25}


def test_without_rows_retrieval_has_no_value() -> None:
    metrics = build()
    assert all(found.isnan() for found in metrics.compute().values())
    metrics.update(torch.ones(2, 2, 3), torch.tensor([-100, -100]))
    assert all(found.isnan() and found.shape == () for found in metrics.compute().values())
    with pytest.raises(ValueError, match="PairRecall: k must be positive, got 0"):
        PairRecall(0)
    with pytest.raises(ValueError, match="PairMRR: groups must be below 16777216, got 16777217"):
        PairMRR().update(torch.ones(1, 2, 3), torch.tensor([2**24 + 1]))
