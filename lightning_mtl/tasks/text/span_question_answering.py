"""Extractive question answering: where in a text the answer stands."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_mtl.losses.classification import SpanCrossEntropy
from lightning_mtl.metrics import SpanExactMatch, SpanF1, TaskMetrics
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.tasks.base import HeadCallable, nothing_to_draw
from lightning_mtl.tasks.supervised import SupervisedTask, in_float32

_NEVER = -1e4  # a logit that every precision can hold and that no softmax notices


class SpanQuestionAnswering(SupervisedTask):
    """Find the answer to a question as a span of the tokens.

    The loss is the mean of the cross entropies of its first and its last token, over the answered questions; metrics
    ``exact_match`` and ``f1`` of the token positions. ``predict`` gives the best span, first and last token.

    Tokens whose features are all zero, which the text encoders of this package give to padding, are no candidates: the
    loss does not depend on how far a batch is padded.

    Args:
        max_answer_length: Longest answer that ``predict`` gives, in tokens.
        ignore_index: Target of questions without an answer, in both places.
        head: A head, or a callable that builds one from the encoder's features; None takes a linear layer on every
            token.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, L, 2)`` of being the first and the last token.
        - target: first and last token ``(B, 2)``, the last one included.

    Raises:
        ValueError: If an argument is out of range, or the features are no tokens.

    Note:
        The tokens of the question are candidates like those of the text, as in BERT; the ``context`` of ``predict``
        leaves them out.

    Example:
        >>> import torch
        >>> task = SpanQuestionAnswering(max_answer_length=2)
        >>> logits = torch.tensor([[[0.0, 3.0], [2.0, 0.0], [0.0, 1.0], [0.0, 2.0]]])
        >>> task.predict(logits)  # 1..3 is too long, 0..0 comes next
        tensor([[0, 0]])

    References:
        Devlin, Chang, Lee, Toutanova. *BERT: Pre-training of Deep Bidirectional Transformers for Language
        Understanding*. NAACL 2019. https://arxiv.org/abs/1810.04805, Sec. 4.2.
    """

    out_channels = 2

    def __init__(
        self,
        max_answer_length: int = 30,
        ignore_index: int = -100,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        if max_answer_length < 1:
            raise ValueError(f"SpanQuestionAnswering: max_answer_length must be positive, got {max_answer_length}.")
        self.max_answer_length = max_answer_length
        self.criterion = SpanCrossEntropy(ignore_index)
        self.metrics = TaskMetrics({"exact_match": SpanExactMatch(ignore_index), "f1": SpanF1(ignore_index)})

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return a linear layer on every token."""
        from lightning_mtl.nn import TokenHead

        return TokenHead(spec, out_channels)

    def forward(self, features: Any, size: tuple[int, int] | None = None) -> Tensor:
        """Return the logits of being the first and the last token.

        Args:
            features: What the encoder gave: tokens ``(B, L, D)``.
            size: Not used.
        """
        logits: Tensor = super().forward(features)
        padding = (features == 0).all(-1, keepdim=True)
        return logits.masked_fill(padding, _NEVER)

    def predict(self, prediction: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the most likely span of every text, ``(B, 2)``.

        Args:
            prediction: Logits ``(B, L, 2)``.
            context: Tokens that an answer may begin and end with, ``(B, L)``, boolean; None allows all.
        """
        first, last = in_float32(prediction).unbind(-1)
        if context is not None:
            first, last = (logits.masked_fill(~context, -torch.inf) for logits in (first, last))
        longest = min(self.max_answer_length, prediction.shape[1])
        # every possible last token of every first one: (B, L, longest)
        lasts = F.pad(last, (0, longest - 1), value=-torch.inf).unfold(1, longest, 1)
        best = (first.unsqueeze(-1) + lasts).flatten(1).argmax(1)
        start = best // longest
        return torch.stack([start, start + best % longest], 1)

    def render(self, value: Any) -> Tensor:
        """Return no picture."""
        return nothing_to_draw()
