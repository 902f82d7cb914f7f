"""Metrics of questions with several candidate answers, each of them right or wrong."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lightning_mtl.metrics.base import ExactMetric, mean_or_nan, nan_unless

_WORD = 2**24  # the whole numbers below it are exact in float32


class AnswerF1(ExactMetric):
    """F1 of the right answers, over all answers of all questions; the F1a of MultiRC and SuperGLUE.

    Args:
        ignore_index: Label of unlabelled answers.

    Shape:
        - prediction: scores of wrong and right ``(B, 2)``.
        - target: integers ``(B, 2)``: label (1 is right) and number of the question.

    Note:
        0 where no answer is right and none is called right, as scikit-learn has it; NaN without labels.

    Example:
        >>> metric = AnswerF1()
        >>> scores = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3]])
        >>> metric.update(scores, torch.tensor([[1, 0], [0, 0], [1, 7]]))
        >>> metric.compute()
        tensor(0.5000)

    References:
        Daniel Khashabi, Snigdha Chaturvedi, Michael Roth, Shyam Upadhyay, Dan Roth. *Looking Beyond the Surface: A
        Challenge Set for Reading Comprehension over Multiple Sentences*. NAACL, 2018. https://aclanthology.org/N18-1023
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    both: Tensor
    called: Tensor
    right: Tensor
    labelled: Tensor

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        for name in ("both", "called", "right", "labelled"):
            self.add_sum(name, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        label = target[:, 0]
        labelled = label != self.ignore_index
        called = (prediction.argmax(1) == 1) & labelled
        right = (label == 1) & labelled
        self.both += (called & right).sum()
        self.called += called.sum()
        self.right += right.sum()
        self.labelled += labelled.sum()

    def compute(self) -> Tensor:
        """Return the F1 score."""
        return nan_unless(self.labelled > 0, 2 * self.both / (self.called + self.right).clamp(min=1))


class QuestionExactMatch(ExactMetric):
    """Share of the questions of which every answer is judged right; the exact match of MultiRC in SuperGLUE.

    Answers of one question may come in different batches and on different processes. Unlabelled answers are left out.

    Args:
        ignore_index: Label of unlabelled answers.

    Shape:
        - prediction: scores of wrong and right ``(B, 2)``.
        - target: integers ``(B, 2)``: label (1 is right) and number of the question, which is not negative.

    Note:
        Keeps two numbers for every answer. NaN without labels.

    Example:
        >>> metric = QuestionExactMatch()
        >>> scores = torch.tensor([[0.1, 0.9], [0.2, 0.8], [0.7, 0.3]])
        >>> metric.update(scores, torch.tensor([[1, 0], [0, 0], [0, 7]]))
        >>> metric.compute()
        tensor(0.5000)

    References:
        Alex Wang et al. *SuperGLUE: A Stickier Benchmark for General-Purpose Language Understanding Systems*. NeurIPS,
        2019, Sec. 3.2. https://arxiv.org/abs/1905.00537
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    answers: list[Tensor]

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.add_state("answers", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        labelled = target[:, 0] != self.ignore_index
        label, question = target[labelled].long().unbind(1)
        code = 2 * question + (prediction[labelled].argmax(1) != label)
        # Flat and float32, so that a process without any batch can contribute an empty tensor of the same kind.
        self.answers.append(torch.stack([code // _WORD, code % _WORD], 1).float().flatten())

    def compute(self) -> Tensor:
        """Return the share of questions."""
        if len(self.answers) == 0:
            return mean_or_nan([], self.device)
        high, low = dim_zero_cat(self.answers).view(-1, 2).long().unbind(1)
        code = high * _WORD + low
        _, position = torch.unique(code // 2, return_inverse=True)
        wrong = torch.zeros(int(position.max()) + 1 if len(position) else 0, dtype=torch.bool, device=code.device)
        wrong[position[code % 2 == 1]] = True
        return mean_or_nan([(~wrong).float().mean()], self.device)
