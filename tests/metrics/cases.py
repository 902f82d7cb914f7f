"""Every metric with small arguments, batches for it, and a slow and plain way to compute it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.stats
import sklearn.metrics
import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_mtl.metrics import (
    ODSF,
    AnswerF1,
    DepthAbsError,
    DepthRelError,
    DepthRMSE,
    DepthWithin,
    LabelledAccuracy,
    LabelledBinaryF1,
    LabelledMAE,
    LabelledMatthews,
    LabelledMulticlassF1,
    LabelledMultilabelF1,
    LabelledPearson,
    LabelledR2,
    LabelledRMSE,
    LabelledSpearman,
    MaxF,
    MeanAngle,
    MeanAUROC,
    MedianAngle,
    QuestionExactMatch,
    SpanExactMatch,
    SpanF1,
    TaggedEntityF1,
    WithinAngle,
)

Array = npt.NDArray[np.float64]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class MetricCase:
    """A metric, how to make its batches, and its value for all samples together."""

    id: str
    build: Callable[[], Metric]
    batch: Callable[[int], Batch]
    oracle: Callable[[Array, Array], float]
    hole: float
    """Target value that is no label."""
    best: Callable[[Tensor], Tensor] = lambda target: target
    """Target -> the best prediction."""
    tolerance: float = 1e-5


def holes(target: Tensor, value: float) -> Tensor:
    target[torch.rand(target.shape) < 0.2] = value
    return target


def class_batch(n: int) -> Batch:
    return torch.randint(4, (n, 5)), holes(torch.randint(3, (n, 5)), -100)


def score_batch(n: int) -> Batch:
    return (torch.rand(n, 3) * 10).round() / 10, holes(torch.randint(2, (n, 3)), -100)


def number_batch(n: int) -> Batch:
    target = torch.randn(n, 2) + 50
    return target + torch.randn(n, 2).round(decimals=1), holes(target, torch.nan)


def depth_batch(n: int) -> Batch:
    target = torch.rand(n, 1, 4, 5) * 9 + 0.5
    prediction = target * torch.exp(0.5 * torch.randn_like(target))
    prediction[0, 0, 0, 0] = -1.0
    return prediction, holes(target, 0.0)


def normal_batch(n: int) -> Batch:
    target = torch.nn.functional.normalize(torch.randn(n, 3, 4, 5), dim=1)
    prediction = 3 * (target + 0.7 * torch.randn_like(target))
    target[(torch.rand(n, 1, 4, 5) < 0.2).expand(-1, 3, -1, -1)] = 0
    return prediction, target


def map_batch(n: int) -> Batch:
    target = (torch.rand(n, 1, 12, 16) < 0.2).float()
    prediction = (0.4 * target + 0.6 * torch.rand(n, 1, 12, 16)).clamp(0, 1)
    return prediction, holes(target, 255.0)


def answer_batch(n: int) -> Batch:
    target = torch.stack([torch.randint(2, (n,)), torch.randint(3, (n,))], 1)
    target[0, 0] = 1
    scores = torch.nn.functional.one_hot(target[:, 0], 2) + 1.2 * torch.rand(n, 2)
    scores[0] = torch.tensor([1.0, 0.0])
    target[1:][torch.rand(n - 1) < 0.2] = -100
    return scores, target


def right_answers(target: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(target[:, 0].long(), 2).float()


TAGS = ["O", "B-X", "I-X", "B-Y", "I-Y"]


def tag_batch(n: int) -> Batch:
    target = torch.randint(5, (n, 9))
    prediction = torch.where(torch.rand(n, 9) < 0.8, target, torch.randint(5, (n, 9)))
    return prediction, holes(target, -100)


def entities(tags: list[int]) -> set[tuple[str, int, int]]:
    """Read one row from the left: at every token, an entity goes on, or ends, or begins."""
    found, kind, begin = set(), "", 0
    for place, tag in enumerate([*tags, 0]):
        name = TAGS[tag]
        if kind and name != f"I-{kind}":
            found.add((kind, begin, place - 1))
            kind = ""
        if name != "O" and not kind:
            kind, begin = name[2:], place
    return found


def entity_f1(prediction: Array, target: Array) -> float:
    hits = listed = 0
    for p, t in zip(prediction.astype(int), target.astype(int), strict=True):
        guess, truth = entities(list(p[t != -100])), entities(list(t[t != -100]))
        hits, listed = hits + len(guess & truth), listed + len(guess) + len(truth)
    return 2 * hits / listed


def span_batch(n: int) -> Batch:
    first = torch.randint(6, (n, 2))
    spans = torch.stack([first, first + torch.randint(4, (n, 2))], -1)
    spans[0, 1] = spans[0, 0] + 1
    spans[1:, 1][torch.rand(n - 1) < 0.2] = -100
    return spans[:, 0], spans[:, 1]


def span_f1(prediction: Array, target: Array) -> float:
    scores = []
    for (a, b), (c, d) in zip(prediction.astype(int), target.astype(int), strict=True):
        if c != -100:
            guess, truth = set(range(a, b + 1)), set(range(c, d + 1))
            scores.append(2 * len(guess & truth) / (len(guess) + len(truth)))
    return float(np.mean(scores))


def span_exact_match(prediction: Array, target: Array) -> float:
    known = target[:, 0] != -100
    return float((prediction == target)[known].all(1).mean())


def binary_f1(prediction: Array, target: Array) -> float:
    known = target != -100
    return float(sklearn.metrics.f1_score(target[known] == 1, prediction[known] == 1))


def matthews(prediction: Array, target: Array) -> float:
    known = target != -100
    return float(sklearn.metrics.matthews_corrcoef(target[known], prediction[known]))


def accuracy(prediction: Array, target: Array) -> float:
    known = target != -100
    return float((prediction == target)[known].mean())


def entry_accuracy(prediction: Array, target: Array) -> float:
    return accuracy((prediction > 0.5).astype(float), target)


def f1(prediction: Array, target: Array) -> float:
    hits = float(((prediction == 1) & (target == 1)).sum())
    return 2 * hits / float((prediction == 1).sum() + (target == 1).sum())


def answer_f1(prediction: Array, target: Array) -> float:
    known = target[:, 0] != -100
    return f1(1.0 * (prediction.argmax(1)[known] == 1), target[known, 0])


def question_exact_match(prediction: Array, target: Array) -> float:
    right: dict[float, bool] = {}
    for scores, (label, question) in zip(prediction, target, strict=True):
        if label != -100:
            right[question] = right.get(question, True) and int(scores.argmax()) == label
    return float(np.mean(list(right.values())))


def macro_f1(prediction: Array, target: Array) -> float:
    known = target != -100
    classes = np.union1d(prediction[known], target[known])
    return float(np.mean([f1(1.0 * (prediction[known] == c), 1.0 * (target[known] == c)) for c in classes]))


def label_f1(prediction: Array, target: Array) -> float:
    known = target != -100
    return float(np.mean([f1(p[k] > 0.5, t[k]) for p, t, k in zip(prediction.T, target.T, known.T, strict=True)]))


def auroc(prediction: Array, target: Array) -> float:
    areas = []
    for p, t in zip(prediction.T, target.T, strict=True):
        difference = p[t == 1][:, None] - p[t == 0][None, :]
        areas.append(((difference > 0) + 0.5 * (difference == 0)).mean())
    return float(np.mean(areas))


def of_outputs(function: Callable[[Array, Array], float]) -> Callable[[Array, Array], float]:
    def mean(prediction: Array, target: Array) -> float:
        pairs = zip(prediction.T, target.T, strict=True)
        return float(np.mean([function(p[~np.isnan(t)], t[~np.isnan(t)]) for p, t in pairs]))

    return mean


def of_depths(function: Callable[[Array, Array], float]) -> Callable[[Array, Array], float]:
    return lambda prediction, target: function(prediction[target > 0], target[target > 0])


def within(power: int) -> Callable[[Array, Array], float]:
    def share(p: Array, t: Array) -> float:
        return float(np.mean([a > 0 and max(a / b, b / a) < 1.25**power for a, b in zip(p, t, strict=True)]))

    return of_depths(share)


def of_angles(function: Callable[[Array], float]) -> Callable[[Array, Array], float]:
    def value(prediction: Array, target: Array) -> float:
        p, t = np.moveaxis(prediction, 1, -1).reshape(-1, 3), np.moveaxis(target, 1, -1).reshape(-1, 3)
        known = (t != 0).any(1)
        p, t = p[known], t[known]
        cosine = (p * t).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(t, axis=1)
        return function(np.degrees(np.arccos(cosine)))

    return value


def max_f(prediction: Array, target: Array) -> float:
    known = target != 255
    p, t = prediction[known], target[known] == 1
    values = []
    for k in range(1, 256):
        guess = p >= np.float32(k) / np.float32(255)
        if (guess & t).any():
            precision, recall = (guess & t).sum() / guess.sum(), (guess & t).sum() / t.sum()
            values.append(1.3 * precision * recall / (0.3 * precision + recall))
    return float(max(values))


def ods_f(prediction: Array, target: Array) -> float:
    """Try every pair of pixels at every threshold."""
    radius = 0.1 * math.hypot(*target.shape[-2:])
    best = 0.0
    for k in range(1, 10):
        predicted = right = found = edges = 0
        for p, t in zip(prediction[:, 0], target[:, 0], strict=True):
            guess = np.argwhere((p >= np.float32(k) / np.float32(10)) & (t != 255))
            truth = np.argwhere(t == 1)
            near = np.hypot(*(guess[:, None] - truth[None, :]).transpose(2, 0, 1)) <= radius
            predicted, edges = predicted + len(guess), edges + len(truth)
            right, found = right + near.any(1).sum(), found + near.any(0).sum()
        if predicted and right:
            precision, recall = right / predicted, found / edges
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


CASES = [
    MetricCase("LabelledAccuracy", LabelledAccuracy, class_batch, accuracy, -100),
    MetricCase("LabelledAccuracy-entries", LabelledAccuracy, score_batch, entry_accuracy, -100),
    MetricCase("LabelledMulticlassF1", lambda: LabelledMulticlassF1(4), class_batch, macro_f1, -100),
    MetricCase("LabelledBinaryF1", LabelledBinaryF1, class_batch, binary_f1, -100),
    MetricCase("LabelledMatthews", lambda: LabelledMatthews(4), class_batch, matthews, -100),
    MetricCase("TaggedEntityF1", lambda: TaggedEntityF1(TAGS), tag_batch, entity_f1, -100),
    MetricCase("SpanExactMatch", SpanExactMatch, span_batch, span_exact_match, -100),
    MetricCase("SpanF1", SpanF1, span_batch, span_f1, -100),
    MetricCase("LabelledMultilabelF1", lambda: LabelledMultilabelF1(3), score_batch, label_f1, -100),
    MetricCase("MeanAUROC", lambda: MeanAUROC(3), score_batch, auroc, -100),
    MetricCase(
        "LabelledMAE", lambda: LabelledMAE(2), number_batch, lambda p, t: float(np.nanmean(np.abs(p - t))), np.nan
    ),
    MetricCase(
        "LabelledRMSE",
        lambda: LabelledRMSE(2),
        number_batch,
        lambda p, t: float(np.nanmean((p - t) ** 2) ** 0.5),
        np.nan,
    ),
    MetricCase(
        "LabelledR2",
        lambda: LabelledR2(2),
        number_batch,
        of_outputs(lambda p, t: float(1 - ((p - t) ** 2).sum() / ((t - t.mean()) ** 2).sum())),
        np.nan,
    ),
    MetricCase(
        "LabelledPearson",
        lambda: LabelledPearson(2),
        number_batch,
        of_outputs(lambda p, t: float(scipy.stats.pearsonr(p, t).statistic)),
        np.nan,
    ),
    MetricCase(
        "LabelledSpearman",
        lambda: LabelledSpearman(2),
        number_batch,
        of_outputs(lambda p, t: float(scipy.stats.spearmanr(p, t).statistic)),
        np.nan,
    ),
    MetricCase("DepthAbsError", DepthAbsError, depth_batch, of_depths(lambda p, t: float(np.abs(p - t).mean())), 0),
    MetricCase(
        "DepthRelError", DepthRelError, depth_batch, of_depths(lambda p, t: float((np.abs(p - t) / t).mean())), 0
    ),
    MetricCase("DepthRMSE", DepthRMSE, depth_batch, of_depths(lambda p, t: float(((p - t) ** 2).mean() ** 0.5)), 0),
    *(MetricCase(f"DepthWithin-{k}", lambda k=k: DepthWithin(k), depth_batch, within(k), 0) for k in (1, 2, 3)),
    MetricCase("MeanAngle", MeanAngle, normal_batch, of_angles(lambda a: float(a.mean())), 0),
    MetricCase("MedianAngle", MedianAngle, normal_batch, of_angles(lambda a: float(np.median(a))), 0, tolerance=0.0051),
    *(
        MetricCase(
            f"WithinAngle-{d}",
            lambda d=d: WithinAngle(d),
            normal_batch,
            of_angles(lambda a, d=d: float((a < d).mean())),
            0,
        )
        for d in (11.25, 22.5, 30.0)
    ),
    MetricCase("AnswerF1", AnswerF1, answer_batch, answer_f1, -100, right_answers),
    MetricCase("QuestionExactMatch", QuestionExactMatch, answer_batch, question_exact_match, -100, right_answers),
    MetricCase("MaxF", MaxF, map_batch, max_f, 255),
    MetricCase("ODSF", lambda: ODSF(tolerance=0.1, thin=False, num_thresholds=9), map_batch, ods_f, 255),
]
