"""Writing a text in answer to a text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from torchmetrics import Metric

from lightning_mtl.data.text.symbols import find_tokenizer
from lightning_mtl.metrics import EntityF1, ExactMatch, RougeL, TaskMetrics, TokenF1
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.text.language_modeling import LanguageModeling

Score = Literal["exact_match", "token_f1", "rouge_l", "entity_f1", "label_f1"]

_SCORES: dict[Score, Callable[[bool], Metric]] = {
    "exact_match": ExactMatch,
    "token_f1": TokenF1,
    "rouge_l": RougeL,
    "entity_f1": lambda _: EntityF1("entities"),
    "label_f1": lambda _: EntityF1("labels"),
}


class TextToText(LanguageModeling):
    """Write a text: teacher-forced training, and text written by the encoder at evaluation.

    The loss is that of :class:`LanguageModeling`. At validation and test the encoder writes an answer to every prompt
    (``encoder.generate``), and ``metrics`` compare it, as a string, with the reference, which is read back from the
    labels. The same task serves encoder-decoders (labels of the decoder's tokens) and causal language models (labels of
    the answer that follows the prompt).

    Args:
        max_new_tokens: Longest text that is written at evaluation, its end included; None writes none, and leaves the
            loss as the only score.
        scores: Metrics of the written text: ``"exact_match"``, ``"token_f1"``, ``"rouge_l"``, or for lists
            ``"entity_f1"`` (``entity <Type>, entity <Type>``) and ``"label_f1"`` (``label a, label b``).
        reference_scoring: Score the first three against the best of the reference's parts between ``", "``, as the
            scoring script of In-BoXBART does.
        tokenizer: Folder of the tokenizer that reads tokens back; None takes that of the Trainer's data module.
        average: What the loss is the mean over: all labelled ``"tokens"``, or all ``"samples"`` of their own means.
        vocab_size: Number of tokens, needed for a ``head`` that is to be built on features that are no logits; None
            takes the number of channels.
        ignore_index: Label of tokens that do not count.
        head: A head, or a callable that builds one from the encoder's features; None gives the features on.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, T, V)``.
        - target: ``(B, T)`` int64, the token after every input (shifted already), or ``ignore_index``.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        A reference that the data module cut to its longest target is scored as it was cut. ``predict_step`` gives the
        written texts, a list of strings.

    Example:
        >>> import torch
        >>> from lightning_mtl.data.text import SymbolTokenizer
        >>> task = TextToText(max_new_tokens=4)
        >>> task.tokenizer = SymbolTokenizer(["a", "b"], "character")
        >>> task.update_generated(torch.tensor([[4, 5, 2, 0]]), torch.tensor([[-100, 4, 5, 2]]))
        >>> task.metrics["exact_match"].compute()
        tensor(1.)

    References:
        Raffel, Shazeer, Roberts, Lee, Narang, Matena, Zhou, Li, Liu. *Exploring the Limits of Transfer Learning with a
        Unified Text-to-Text Transformer*. JMLR 21, 2020. https://arxiv.org/abs/1910.10683
    """

    def __init__(
        self,
        max_new_tokens: int | None = 128,
        scores: Sequence[Score] = ("exact_match", "token_f1"),
        reference_scoring: bool = False,
        tokenizer: str | None = None,
        average: Literal["tokens", "samples"] = "tokens",
        vocab_size: int | None = None,
        ignore_index: int = -100,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(average, 0.0, vocab_size, ignore_index, head, loss_weight)
        if max_new_tokens is not None and max_new_tokens < 1:
            raise ValueError(f"TextToText: max_new_tokens must be at least 1 or None, got {max_new_tokens}.")
        if unknown := [score for score in scores if score not in _SCORES]:
            raise ValueError(f"TextToText: scores must be of {list(_SCORES)}, got {unknown}.")
        self.max_new_tokens = max_new_tokens
        self.ignore_index = ignore_index
        self.tokenizer: Any = None if tokenizer is None else find_tokenizer("TextToText", tokenizer)
        self.metrics = TaskMetrics({score: _SCORES[score](reference_scoring) for score in dict.fromkeys(scores)})

    def attach(self, datamodule: Any) -> None:
        """Take the data module's tokenizer where none was given."""
        if self.tokenizer is None:
            self.tokenizer = getattr(datamodule, "tokenizer", None)

    def update_metrics(self, prediction: Tensor, target: Tensor) -> None:
        """Do nothing: the metrics are of written text, see ``update_generated``."""

    def read_generated(self, tokens: Tensor) -> list[str]:
        """Return the texts that these tokens are, one a row."""
        if self.tokenizer is None:
            raise ValueError(
                "TextToText: a tokenizer must be there to read what was written; pass tokenizer= with its folder, or "
                "a data module that has one."
            )
        return [self.tokenizer.decode(row, skip_special_tokens=True) for row in tokens.tolist()]

    def update_generated(self, tokens: Tensor, target: Tensor) -> None:
        """Add what was written to ``metrics``; rows without labels are left out."""
        labelled = target != self.ignore_index
        rows = labelled.any(dim=1)
        predictions = self.read_generated(tokens[rows])
        references = [
            self.tokenizer.decode(row[kept].tolist(), skip_special_tokens=True)
            for row, kept in zip(target[rows], labelled[rows], strict=True)
        ]
        self.metrics.update(predictions, references)
