"""Every task with small arguments, and batches for it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_mtl.nn import FasterRCNNHead, FCOSHead, FeatureSpec, RetinaNetHead
from lightning_mtl.tasks import (
    FCOS,
    BinaryClassification,
    DenseRegression,
    Depth,
    DetectionTask,
    Edges,
    LanguageModeling,
    MulticlassClassification,
    MultilabelClassification,
    MultipleChoice,
    MultiRC,
    OrdinalClassification,
    Regression,
    RetinaNet,
    Retrieval,
    Saliency,
    SemanticSegmentation,
    SpanQuestionAnswering,
    SurfaceNormals,
    Task,
    TextClassification,
    TextRegression,
    TokenClassification,
)

SIZE = (16, 24)
TOKENS = (7, 5)


@dataclass(frozen=True)
class TaskCase:
    """A task and how to make its targets."""

    id: str
    build: Callable[[], Task]
    target: Callable[[int], Tensor]
    """Number of samples -> target, some of it missing."""
    hole: float
    metrics: tuple[str, ...]
    predicted: tuple[int, ...]
    """Shape of a prediction for one sample, without the batch."""
    dense: bool = False
    bad_label: float | None = None
    perfect: Callable[[Tensor], Tensor] | None = None
    """Target -> the raw prediction whose loss is zero."""
    sample: tuple[int, ...] = (5,)
    """Shape of the features of one sample, for tasks that are not dense; ``(L, 5)`` are tokens."""
    joins: bool = True
    """Whether the loss of two joined batches is the mean over their units."""

    @property
    def spec(self) -> FeatureSpec:
        """The features that the task's head is built on."""
        if self.dense:
            return FeatureSpec("maps", (4, 6), (2, 4))  # light: the default head is a convolution
        return FeatureSpec("tokens" if self.sample == TOKENS else "vector", (5,))


def holes(target: Tensor, value: float) -> Tensor:
    target.view(-1)[1::5] = value
    return target


def normals(n: int) -> Tensor:
    target = torch.nn.functional.normalize(torch.randn(n, 3, *SIZE), dim=1)
    target[..., :3, :] = 0
    return target


def bits(target: Tensor) -> Tensor:
    return torch.where(target == 1, 100.0, -100.0)


def ranks(target: Tensor) -> Tensor:
    return torch.where(target.unsqueeze(1) > torch.arange(3), 100.0, -100.0)


def answers(n: int) -> Tensor:
    target = torch.stack([torch.randint(2, (n,)), torch.randint(4, (n,))], 1)
    target[1::5] = -100
    return target


def one_hot(target: Tensor, classes: int) -> Tensor:
    return 100.0 * torch.nn.functional.one_hot(target.clamp(min=0), classes)


def spans(n: int) -> Tensor:
    first = torch.randint(5, (n,))
    target = torch.stack([first, first + torch.randint(3, (n,))], 1)
    target[1::5] = -100
    return target


TAGS = ("O", "B-X", "I-X")
DEPTH = ("abs_error", "delta1", "delta2", "delta3", "rel_error", "rmse")

CASES = [
    TaskCase(
        "BinaryClassification",
        lambda: BinaryClassification(pos_weight=2.0),
        lambda n: holes(torch.randint(2, (n,)), -100),
        -100,
        ("accuracy", "auroc", "f1"),
        (),
        bad_label=2,
        perfect=lambda t: bits(t).unsqueeze(1),
    ),
    TaskCase(
        "MulticlassClassification",
        lambda: MulticlassClassification(4, class_weights=[1.0, 2.0, 0.5, 1.0]),
        lambda n: holes(torch.randint(4, (n,)), -100),
        -100,
        ("accuracy", "f1"),
        (4,),
        bad_label=4,
        perfect=lambda t: 100.0 * torch.nn.functional.one_hot(t.clamp(min=0), 4),
    ),
    TaskCase(
        "MultilabelClassification",
        lambda: MultilabelClassification(3),
        lambda n: holes(torch.randint(2, (n, 3)).float(), torch.nan),
        torch.nan,
        ("accuracy", "auroc", "f1"),
        (3,),
        bad_label=0.5,
        perfect=bits,
    ),
    *(
        TaskCase(
            f"Regression-{loss}",
            lambda loss=loss: Regression(2, loss),
            lambda n: holes(torch.randn(n, 2), torch.nan),
            torch.nan,
            ("mae", "pearson", "r2", "rmse", "spearman"),
            (2,),
            bad_label=torch.inf,
            perfect=lambda t: t.nan_to_num(),
        )
        for loss in ("mse", "l1", "huber")
    ),
    *(
        TaskCase(
            f"OrdinalClassification-{kind}",
            lambda kind=kind: OrdinalClassification(4, kind),
            lambda n: holes(torch.randint(4, (n,)), -100),
            -100,
            ("accuracy", "mae", "qwk"),
            (),
            bad_label=-1,
            perfect=ranks,
        )
        for kind in ("coral", "corn")
    ),
    TaskCase(
        "MultiRC",
        lambda: MultiRC(class_weights=[1.0, 2.0]),
        answers,
        -100,
        ("em", "f1a"),
        (2,),
        perfect=lambda t: 100.0 * torch.nn.functional.one_hot(t[:, 0].clamp(min=0), 2),
    ),
    TaskCase(
        "TextClassification",
        lambda: TextClassification(3, ["accuracy", "f1", "binary_f1", "matthews"]),
        lambda n: holes(torch.randint(3, (n,)), -100),
        -100,
        ("accuracy", "binary_f1", "f1", "matthews"),
        (3,),
        bad_label=3,
        perfect=lambda t: one_hot(t, 3),
        sample=TOKENS,
    ),
    TaskCase(
        "TextRegression",
        lambda: TextRegression(loss="huber"),
        lambda n: holes(torch.randn(n), torch.nan),
        torch.nan,
        ("mae", "pearson", "r2", "rmse", "spearman"),
        (1,),
        bad_label=torch.inf,
        perfect=lambda t: t.nan_to_num().unsqueeze(1),
        sample=TOKENS,
    ),
    TaskCase(
        "TokenClassification",
        lambda: TokenClassification(3, TAGS, class_weights=[1.0, 2.0, 0.5]),
        lambda n: holes(torch.randint(3, (n, TOKENS[0])), -100),
        -100,
        ("accuracy", "entity_f1", "f1"),
        (TOKENS[0],),
        bad_label=3,
        perfect=lambda t: one_hot(t, 3),
        sample=TOKENS,
    ),
    *(
        TaskCase(
            f"LanguageModeling-{average}",
            lambda average=average: LanguageModeling(average, vocab_size=6),
            lambda n: holes(torch.randint(6, (n, TOKENS[0])), -100),
            -100,
            ("accuracy", "exact_match", "perplexity"),
            (TOKENS[0],),
            bad_label=6,
            perfect=lambda t: one_hot(t, 6),
            sample=TOKENS,
        )
        for average in ("tokens", "samples")
    ),
    TaskCase(
        "SpanQuestionAnswering",
        lambda: SpanQuestionAnswering(max_answer_length=4),
        spans,
        -100,
        ("exact_match", "f1"),
        (2,),
        bad_label=7,
        perfect=lambda t: one_hot(t, TOKENS[0]).mT,
        sample=TOKENS,
    ),
    TaskCase(
        "MultipleChoice",
        lambda: MultipleChoice(4),
        lambda n: holes(torch.randint(4, (n,)), -100),
        -100,
        ("accuracy",),
        (4,),
        bad_label=4,
        perfect=lambda t: one_hot(t, 4),
        sample=(4, 5),
    ),
    TaskCase(
        "Retrieval",
        lambda: Retrieval(dim=6, learn_temperature=True, recall_at=(1, 2)),
        lambda n: holes(torch.randperm(n), -100),
        -100,
        ("mrr", "recall_1", "recall_2"),
        (2, 6),
        perfect=lambda t: one_hot(t, 30).unsqueeze(1).expand(-1, 2, -1),
        sample=(2, 5),
        joins=False,
    ),
    TaskCase(
        "SemanticSegmentation",
        lambda: SemanticSegmentation(3, class_names=["floor", "wall", "rest"]),
        lambda n: holes(torch.randint(3, (n, *SIZE)), 255),
        255,
        ("miou", "pixel_accuracy"),
        SIZE,
        dense=True,
        bad_label=3,
        perfect=lambda t: 100.0 * torch.nn.functional.one_hot(t.clamp(max=2), 3).movedim(-1, 1),
    ),
    *(
        TaskCase(
            f"Depth-{loss}",
            lambda loss=loss: Depth(loss, representation="inverse" if loss == "berhu" else "metres"),
            lambda n: holes(torch.rand(n, 1, *SIZE) * 9 + 0.5, 0),
            0,
            DEPTH,
            (1, *SIZE),
            dense=True,
            perfect=(lambda t: t.clamp(min=0.1).log()) if loss == "silog" else (lambda t: t),
        )
        for loss in ("l1", "silog", "berhu")
    ),
    *(
        TaskCase(
            f"DenseRegression-{loss}",
            lambda loss=loss: DenseRegression(2, loss, value_range=(-2.0, 2.0) if loss == "mse" else None),
            lambda n: torch.randn(n, 2, *SIZE).masked_fill(torch.arange(SIZE[1]) % 5 == 1, torch.nan),
            torch.nan,
            ("mae", "rmse"),
            (2, *SIZE),
            dense=True,
            bad_label=torch.inf,
            perfect=lambda t: t.nan_to_num(),
        )
        for loss in ("l1", "mse", "huber")
    ),
    TaskCase(
        "SurfaceNormals",
        SurfaceNormals,
        normals,
        0,
        ("mean_angle", "median_angle", "within_11_25", "within_22_5", "within_30"),
        (3, *SIZE),
        dense=True,
        perfect=lambda t: 3 * t,
    ),
    TaskCase(
        "Edges",
        lambda: Edges(tolerance=0.05),
        lambda n: holes((torch.rand(n, 1, *SIZE) < 0.1).float(), 255),
        255,
        ("ods_f",),
        (1, *SIZE),
        dense=True,
        bad_label=0.5,
        perfect=bits,
    ),
    TaskCase(
        "Saliency",
        Saliency,
        lambda n: holes((torch.rand(n, 1, *SIZE) < 0.3).float(), 255),
        255,
        ("max_f",),
        (1, *SIZE),
        dense=True,
        bad_label=2,
        perfect=bits,
    ),
]


@dataclass(frozen=True)
class DetectionCase:
    """A detection task for three classes; its targets are lists, so it is tested in test_detection.py."""

    id: str
    build: Callable[[], DetectionTask]
    parts: tuple[str, ...]
    joins: bool = True
    """Whether the loss of two joined batches is the mean over their images."""


# TextToText, whose default head has no parameters and whose metrics read strings: test_text_to_text.py.

FCOS_HEAD = functools.partial(FCOSHead, pyramid_channels=32, extra_levels=0, num_convs=1)
RETINANET_HEAD = functools.partial(RetinaNetHead, pyramid_channels=8, extra_levels=0, anchor_scale=2.0)
FASTER_RCNN_HEAD = functools.partial(  # of FasterRCNN, whose first stage alone runs in forward: test_faster_rcnn.py
    FasterRCNNHead,
    pyramid_channels=8,
    min_stride=8,
    anchor_scale=4.0,
    box_channels=16,
    roi_size=3,
    proposals_train=100,
    proposals_eval=100,
)

DETECTION = [
    DetectionCase("FCOS", lambda: FCOS(3, head=FCOS_HEAD), ("box", "centerness", "classification")),
    DetectionCase(
        "FCOS-batch",
        lambda: FCOS(3, ["a", "b", "c"], normalization="batch", class_metrics=True, head=FCOS_HEAD),
        ("box", "centerness", "classification"),
        joins=False,
    ),
    DetectionCase("RetinaNet", lambda: RetinaNet(3, head=RETINANET_HEAD), ("box", "classification")),
]
