"""Metrics that torchmetrics lacks: missing entries, boxes, depth, surface normals, saliency, edges and answers."""

from lightning_mtl.metrics.answers import AnswerF1, QuestionExactMatch
from lightning_mtl.metrics.base import ExactMetric, TaskMetrics, directions
from lightning_mtl.metrics.classification import (
    LabelledAccuracy,
    LabelledMulticlassF1,
    LabelledMultilabelF1,
    MeanAUROC,
)
from lightning_mtl.metrics.continual import average_accuracy, backward_transfer, forgetting, forward_transfer
from lightning_mtl.metrics.depth import DepthAbsError, DepthRelError, DepthRMSE, DepthWithin
from lightning_mtl.metrics.detection import BoxAveragePrecision
from lightning_mtl.metrics.f_measure import ODSF, MaxF
from lightning_mtl.metrics.glue import LabelledBinaryF1, LabelledMatthews
from lightning_mtl.metrics.language import SequenceExactMatch, TokenAccuracy, TokenPerplexity
from lightning_mtl.metrics.normals import MeanAngle, MedianAngle, WithinAngle
from lightning_mtl.metrics.regression import LabelledMAE, LabelledPearson, LabelledR2, LabelledRMSE, LabelledSpearman
from lightning_mtl.metrics.retrieval import PairMRR, PairRecall
from lightning_mtl.metrics.spans import SpanExactMatch, SpanF1
from lightning_mtl.metrics.tagging import TaggedEntityF1
from lightning_mtl.metrics.text_scores import EntityF1, ExactMatch, RougeL, TokenF1

__all__ = [
    "ODSF",
    "AnswerF1",
    "BoxAveragePrecision",
    "DepthAbsError",
    "DepthRMSE",
    "DepthRelError",
    "DepthWithin",
    "EntityF1",
    "ExactMatch",
    "ExactMetric",
    "LabelledAccuracy",
    "LabelledBinaryF1",
    "LabelledMAE",
    "LabelledMatthews",
    "LabelledMulticlassF1",
    "LabelledMultilabelF1",
    "LabelledPearson",
    "LabelledR2",
    "LabelledRMSE",
    "LabelledSpearman",
    "MaxF",
    "MeanAUROC",
    "MeanAngle",
    "MedianAngle",
    "PairMRR",
    "PairRecall",
    "QuestionExactMatch",
    "RougeL",
    "SequenceExactMatch",
    "SpanExactMatch",
    "SpanF1",
    "TaggedEntityF1",
    "TaskMetrics",
    "TokenAccuracy",
    "TokenF1",
    "TokenPerplexity",
    "WithinAngle",
    "average_accuracy",
    "backward_transfer",
    "directions",
    "forgetting",
    "forward_transfer",
]
