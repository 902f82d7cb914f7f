"""F1 of the entities that tags of tokens mark."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mtl.metrics.base import ExactMetric, nan_unless


class TaggedEntityF1(ExactMetric):
    r"""Micro F1 of the entities that tags in BIO form mark, as the CoNLL shared tasks count them.

    ``B-X`` begins an entity of type X, ``I-X`` continues it. An ``I-X`` that continues nothing of its type begins an
    entity too, as in the evaluation script of CoNLL-2000 and, by default, in the package seqeval. A predicted entity is
    right if type, first and last token are those of an entity in the labels. NaN without labels, or when neither side
    has an entity.

    Args:
        labels: Names of the tags in the order of the classes; those that begin with neither ``B-`` nor ``I-`` are
            outside of entities.
        ignore_index: Target of tokens that do not count (special tokens, further pieces of a word, padding): they are
            taken out of the row before entities are read, predictions included.

    Shape:
        - prediction: class ids ``(B, L)`` or class scores ``(B, L, C)``.
        - target: integers ``(B, L)``.

    Raises:
        ValueError: If no label begins with ``B-`` or ``I-``.

    Example:
        >>> metric = TaggedEntityF1(["O", "B-PER", "I-PER"])
        >>> metric.update(torch.tensor([[1, 2, 0, 2]]), torch.tensor([[1, 2, 0, 0]]))
        >>> metric.compute()
        tensor(0.6667)

    References:
        Tjong Kim Sang, Buchholz. *Introduction to the CoNLL-2000 Shared Task: Chunking*. CoNLL 2000.
        https://aclanthology.org/W00-0726
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    hits: Tensor
    listed: Tensor

    def __init__(self, labels: Sequence[str], ignore_index: int = -100) -> None:
        super().__init__()
        if not has_entities(labels):
            raise ValueError(
                f"TaggedEntityF1: labels must be in BIO form, with names that begin with 'B-' or 'I-', got {labels}."
            )
        self.labels = list(labels)
        self.ignore_index = ignore_index
        kinds = sorted({label[2:] for label in labels if label[:2] in ("B-", "I-")})
        types = [kinds.index(label[2:]) + 1 if label[:2] in ("B-", "I-") else 0 for label in labels]
        self._types = torch.tensor(types)
        self._begins = torch.tensor([label[:2] == "B-" for label in labels])
        self.add_sum("hits", dtype=torch.int64)
        self.add_sum("listed", dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        if prediction.ndim == target.ndim + 1:
            prediction = prediction.argmax(-1)
        labelled = target != self.ignore_index
        order = (~labelled).to(torch.uint8).argsort(dim=1, stable=True)  # tokens that count come first
        counts = labelled.gather(1, order)
        predicted = self._entities(prediction.gather(1, order), counts)
        there = self._entities(target.gather(1, order), counts)
        same = (predicted[0] & there[0]) & (predicted[1] == there[1]) & (predicted[2] == there[2])
        self.hits += same.sum()
        self.listed += predicted[0].sum() + there[0].sum()

    def _entities(self, tags: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return where an entity begins, of what type it is, and where it ends."""
        tags = tags.clamp(min=0).long()
        types = torch.where(counts, self._types.to(tags.device)[tags], 0)
        begins = self._begins.to(tags.device)[tags]
        outside = types.new_zeros(len(types), 1)
        first = (types > 0) & (begins | (types != torch.cat([outside, types[:, :-1]], 1)))
        no_more = torch.cat([types[:, 1:], outside], 1) != types
        next_begins = torch.cat([first[:, 1:], torch.ones_like(first[:, :1])], 1)
        last = (types > 0) & (no_more | next_begins)
        places = torch.arange(tags.shape[1], device=tags.device).expand_as(tags)
        ends = torch.where(last, places, tags.shape[1]).flip(1).cummin(1).values.flip(1)
        return first, types, ends

    def compute(self) -> Tensor:
        """Return the F1 score."""
        return nan_unless(self.listed > 0, 2 * self.hits / self.listed)


def has_entities(labels: Sequence[str]) -> bool:
    """Return whether tags are in BIO form."""
    return any(label[:2] in ("B-", "I-") and len(label) > 2 for label in labels)
