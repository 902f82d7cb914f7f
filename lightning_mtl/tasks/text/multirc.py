"""Questions with several candidate answers, each of them judged for itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from lightning_mtl.metrics import AnswerF1, QuestionExactMatch, TaskMetrics
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.classification import MulticlassClassification
from lightning_mtl.tasks.text.base import TextTask


class MultiRC(TextTask, MulticlassClassification):
    """Judge whether an answer to a question is right, where a question may have several right answers.

    A sample is one answer with its question and paragraph. Softmax cross entropy over wrong and right; metrics ``f1a``,
    the F1 of right answers over all answers, and ``em``, the share of questions of which every answer is judged right,
    the two that SuperGLUE averages. ``predict`` gives probabilities.

    Args:
        label_smoothing: Share of the target spread evenly over both classes, in ``[0, 1)``.
        ignore_index: Label of unlabelled answers.
        class_weights: Factors of wrong and of right answers on the loss.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits of wrong and right ``(B, 2)``.
        - target: integers ``(B, 2)``: label (1 is right), and number of the question, by which ``em`` puts answers
          together wherever they are evaluated.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> task = MultiRC()
        >>> task.loss(torch.zeros(3, 2), torch.tensor([[1, 7], [0, 7], [-100, -100]]))
        tensor(0.6931)

    References:
        Daniel Khashabi, Snigdha Chaturvedi, Michael Roth, Shyam Upadhyay, Dan Roth. *Looking Beyond the Surface: A
        Challenge Set for Reading Comprehension over Multiple Sentences*. NAACL, 2018. https://aclanthology.org/N18-1023
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        ignore_index: int = -100,
        class_weights: Sequence[float] | None = None,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(2, label_smoothing, ignore_index, class_weights, head, loss_weight)
        self.metrics = TaskMetrics({"f1a": AnswerF1(ignore_index), "em": QuestionExactMatch(ignore_index)})

    def loss(self, prediction: Any, target: Any) -> Tensor:
        """Return the mean loss over the labelled answers, exactly zero without any.

        Raises:
            ValueError: If the shapes do not fit or a label is neither 0, 1 nor missing.
        """
        return super().loss(prediction, self._labels(target))

    def num_labelled(self, target: Any) -> Tensor:
        """Return how many answers ``loss`` averages over."""
        return super().num_labelled(self._labels(target))

    def _labels(self, target: Tensor) -> Tensor:
        if target.ndim != 2 or target.shape[1] != 2:
            raise ValueError(
                f"{type(self).__name__}: target must be (B, 2), label and number of the question, got "
                f"{tuple(target.shape)}."
            )
        return target[:, 0]
