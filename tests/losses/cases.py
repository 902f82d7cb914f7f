"""Every loss with small arguments, and batches for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_mtl.losses import (
    CORAL,
    CORN,
    AbsoluteError,
    BalancedBCE,
    BerHu,
    BinaryCrossEntropy,
    CosineDistance,
    CrossEntropy,
    DistillationKL,
    Huber,
    LabelledLoss,
    LogitMatching,
    SILog,
    SpanCrossEntropy,
    SquaredError,
    TokenCrossEntropy,
)

Reduction = Literal["mean", "none"]


@dataclass(frozen=True)
class LossCase:
    """A loss and how to make its batches."""

    id: str
    build: Callable[[Reduction], LabelledLoss]
    batch: Callable[[int], tuple[Tensor, Tensor]]
    """Number of samples -> float64 prediction and target, some of it missing."""
    missing: Callable[[Tensor], Tensor]
    """Target -> the same without any label."""
    wrong_label: float | None = None
    perfect: Callable[[Tensor], Tensor] | None = None
    """Target -> the prediction whose loss is zero."""
    gradcheck: bool = True


def classes(count: int, *shape: int, missing: int) -> Tensor:
    target = torch.randint(count, shape)
    target.view(-1)[1::3] = missing
    return target


def with_holes(target: Tensor, hole: float) -> Tensor:
    target.view(-1)[::4] = hole
    return target


def logits_of_bits(target: Tensor) -> Tensor:
    return torch.where(target == 1, 200.0, -200.0).double()


def normals(n: int) -> Tensor:
    target = torch.nn.functional.normalize(torch.randn(n, 3, 2, 3), dim=1)
    target[:, :, 0, 0] = 0
    return target


def depths(n: int) -> Tensor:
    return with_holes(torch.rand(n, 1, 2, 5) * 9 + 0.5, 0.0)


def numbers(n: int) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3).double(), with_holes(torch.randn(n, 3), torch.nan)


def all_equal_to(value: float) -> Callable[[Tensor], Tensor]:
    return lambda target: torch.full_like(target, value)


def teacher_logits(*shape: int) -> Tensor:
    """Some units without teacher, some classes that it does not know."""
    target = torch.randn(shape)
    target[1::3] = torch.nan
    target[0, 1] = -torch.inf
    return target


def spans(n: int) -> Tensor:
    first = torch.randint(4, (n,))
    target = torch.stack([first, (first + torch.randint(3, (n,))).clamp(max=4)], 1)
    target[1:-1] = -100
    return target


def span_logits(target: Tensor) -> Tensor:
    return 200 * torch.nn.functional.one_hot(target.clamp(min=0), 5).mT.double()


CASES = [
    LossCase(
        "cross-entropy",
        lambda r: CrossEntropy(4, reduction=r),
        lambda n: (torch.randn(n, 4).double(), classes(4, n, missing=-100)),
        all_equal_to(-100),
        wrong_label=4,
        perfect=lambda t: 200 * torch.nn.functional.one_hot(t.clamp(min=0), 4).double(),
    ),
    LossCase(
        "cross-entropy-pixels",
        lambda r: CrossEntropy(3, 255, label_smoothing=0.1, class_weights=[0.5, 1.0, 2.0], reduction=r),
        lambda n: (torch.randn(n, 3, 2, 5).double(), classes(3, n, 2, 5, missing=255)),
        all_equal_to(255),
        wrong_label=-1,
    ),
    LossCase(
        "span-cross-entropy",
        lambda r: SpanCrossEntropy(reduction=r),
        lambda n: (torch.randn(n, 5, 2).double(), spans(n)),
        all_equal_to(-100),
        wrong_label=5,
        perfect=span_logits,
    ),
    LossCase(
        "binary-cross-entropy",
        lambda r: BinaryCrossEntropy(pos_weight=3.0, reduction=r),
        lambda n: (torch.randn(n, 3).double(), with_holes(torch.randint(2, (n, 3)).float(), torch.nan)),
        all_equal_to(torch.nan),
        wrong_label=0.5,
        perfect=logits_of_bits,
    ),
    LossCase(
        "coral",
        lambda r: CORAL(4, reduction=r),
        lambda n: (torch.randn(n, 3).double(), classes(4, n, missing=-100)),
        all_equal_to(-100),
        wrong_label=4,
        perfect=lambda t: torch.where(t.unsqueeze(1) > torch.arange(3), 200.0, -200.0).double(),
    ),
    LossCase(
        "corn",
        lambda r: CORN(4, reduction=r),
        lambda n: (torch.randn(n, 3).double(), classes(4, n, missing=-100)),
        all_equal_to(-100),
        wrong_label=-1,
        perfect=lambda t: torch.where(t.unsqueeze(1) > torch.arange(3), 200.0, -200.0).double(),
    ),
    LossCase(
        "absolute",
        lambda r: AbsoluteError(reduction=r),
        numbers,
        all_equal_to(torch.nan),
        wrong_label=torch.inf,
        perfect=lambda t: t.double().nan_to_num(),
    ),
    LossCase(
        "absolute-depth",
        lambda r: AbsoluteError("nonpositive", reduction=r),
        lambda n: (torch.randn(n, 1, 2, 5).double(), depths(n)),
        all_equal_to(0),
        perfect=lambda t: t.double(),
    ),
    LossCase(
        "squared",
        lambda r: SquaredError(reduction=r),
        numbers,
        all_equal_to(torch.nan),
        wrong_label=-torch.inf,
        perfect=lambda t: t.double().nan_to_num(),
    ),
    LossCase(
        "huber",
        lambda r: Huber(0.7, reduction=r),
        numbers,
        all_equal_to(torch.nan),
        wrong_label=torch.inf,
        perfect=lambda t: t.double().nan_to_num(),
    ),
    LossCase(
        "berhu",
        lambda r: BerHu("nonpositive", reduction=r),
        lambda n: (torch.randn(n, 1, 2, 5).double(), depths(n)),
        all_equal_to(0),
        perfect=lambda t: t.double(),
        gradcheck=False,  # its threshold depends on the prediction but is a constant for the gradient
    ),
    LossCase(
        "silog",
        lambda r: SILog(reduction=r),
        lambda n: (torch.rand(n, 1, 2, 5).double() + 0.1, depths(n)),
        all_equal_to(0),
        perfect=lambda t: t.double(),
    ),
    LossCase(
        "cosine",
        lambda r: CosineDistance(reduction=r),
        lambda n: (torch.randn(n, 3, 2, 3).double(), normals(n)),
        all_equal_to(0),
        perfect=lambda t: 7 * t.double(),
    ),
    LossCase(
        "balanced-bce-image",
        lambda r: BalancedBCE("image", reduction=r),
        lambda n: (torch.randn(n, 1, 2, 5).double(), with_holes(torch.randint(2, (n, 1, 2, 5)).float(), 255)),
        all_equal_to(255),
        wrong_label=2,
        perfect=logits_of_bits,
    ),
    LossCase(
        "balanced-bce-fixed",
        lambda r: BalancedBCE(0.95, reduction=r),
        lambda n: (torch.randn(n, 1, 2, 5).double(), with_holes(torch.randint(2, (n, 1, 2, 5)).float(), 255)),
        all_equal_to(255),
        wrong_label=0.5,
        perfect=logits_of_bits,
    ),
    LossCase(
        "distillation-kl",
        lambda r: DistillationKL(2.0, reduction=r),
        lambda n: (torch.randn(n, 4).double(), teacher_logits(n, 4)),
        all_equal_to(torch.nan),
        wrong_label=torch.inf,
        perfect=lambda t: t.double().nan_to_num(neginf=5.0),
    ),
    LossCase(
        "distillation-kl-pixels",
        lambda r: DistillationKL(reduction=r),
        lambda n: (torch.randn(n, 3, 2, 2).double(), teacher_logits(n, 3, 2, 2)),
        all_equal_to(torch.nan),
        perfect=lambda t: t.double().nan_to_num(neginf=-5.0),
    ),
    LossCase(
        "logit-matching",
        lambda r: LogitMatching(reduction=r),
        lambda n: (torch.randn(n, 4).double(), teacher_logits(n, 4)),
        all_equal_to(torch.nan),
        wrong_label=torch.inf,
        perfect=lambda t: t.double().nan_to_num(neginf=3.0),
    ),
    *(
        LossCase(
            f"token-cross-entropy-{average}-{gamma}",
            lambda r, average=average, gamma=gamma: TokenCrossEntropy(average, gamma, reduction=r),
            lambda n: (torch.randn(n, 3, 4).double(), classes(4, n, 3, missing=-100)),
            all_equal_to(-100),
            wrong_label=4,
            perfect=lambda t: 200 * torch.nn.functional.one_hot(t.clamp(min=0), 4).double(),
        )
        for average, gamma in (("tokens", 0.0), ("samples", 0.0), ("samples", 2.0))
    ),
]

# MultiTaskTokenLoss and TaskFocalLoss read batches of several tasks; they are tested in test_multi_task_token_loss.py.
# LogPartitionPenalty wraps a loss, whose messages name that loss; it is tested in test_log_partition_penalty.py.
