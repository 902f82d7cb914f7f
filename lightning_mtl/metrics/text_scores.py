"""Scores of generated text against reference text."""

from __future__ import annotations

import re
import string
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_mtl.metrics.base import ExactMetric, nan_unless

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_AFTER_TYPE = re.compile(r"(?<=>)\s*,\s+")


def normalize_answer(text: str) -> str:
    """Return an answer as it is compared: lower case, no punctuation, no articles, single spaces.

    Example:
        >>> normalize_answer("The  (EGFR)-binding, a kinase")
        'egfrbinding kinase'

    References:
        Rajpurkar, Zhang, Lopyrev, Liang. *SQuAD: 100,000+ Questions for Machine Comprehension of Text*. EMNLP 2016.
        https://arxiv.org/abs/1606.05250
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def split_references(text: str) -> list[str]:
    """Return the references that the scoring of In-BoXBART sees in one target: its parts between ``", "``.

    Example:
        >>> split_references("egfr <Gene>, 1, 2-dichloroethane <Chemical>")
        ['egfr <Gene>', '1', '2-dichloroethane <Chemical>']
    """
    return text.split(", ")


def answer_f1(prediction: str, reference: str) -> float:
    """Return the F1 of the words that two answers have in common, after :func:`normalize_answer`.

    Example:
        >>> answer_f1("the BRCA1 kinase", "BRCA1")
        0.6666666666666666
    """
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(reference).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    if common == 0:  # before any division: one of them may be empty
        return 0.0
    precision, recall = common / len(predicted), common / len(expected)
    return 2 * precision * recall / (precision + recall)


class TextMetric(ExactMetric):
    """Base of metrics of predicted texts, each against its reference; subclasses implement :meth:`add`."""

    higher_is_better = True

    @abstractmethod
    def add(self, prediction: str, reference: str) -> None:
        """Add a text."""

    def update(self, predictions: Sequence[str], references: Sequence[str]) -> None:
        """Add texts.

        Args:
            predictions: Generated texts.
            references: One for each.

        Raises:
            ValueError: If their numbers differ.
        """
        if len(predictions) != len(references):
            raise ValueError(
                f"{type(self).__name__}: predictions and references must be as many, got {len(predictions)} and "
                f"{len(references)}."
            )
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction, reference)


class TextScore(TextMetric):
    """A score in [0, 1] of every predicted text against its reference, averaged over the texts.

    Numerator and denominator are summed over batches and processes, however the texts are spread. NaN without any.
    Subclasses implement :meth:`score`.

    Args:
        reference_scoring: Take every part of the reference between ``", "`` as a reference of its own, and the best
            score among them, as the scoring script of In-BoXBART does. A prediction of several labels is then right
            when it hits one of them.
    """

    total: Tensor
    count: Tensor

    def __init__(self, reference_scoring: bool = False) -> None:
        super().__init__()
        self.reference_scoring = reference_scoring
        self.add_sum("total")
        self.add_sum("count", dtype=torch.int64)

    @abstractmethod
    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Return the best score of a text among several references."""

    def add(self, prediction: str, reference: str) -> None:
        """Add the score of a text."""
        self.total += self.score(prediction, split_references(reference) if self.reference_scoring else [reference])
        self.count += 1

    def compute(self) -> Tensor:
        """Return the mean score since the last reset, NaN without texts."""
        return nan_unless(self.count > 0, self.total / self.count)


class ExactMatch(TextScore):
    """Share of the texts that equal their reference after :func:`normalize_answer`.

    Args:
        reference_scoring: Whether one of the parts of the reference between ``", "`` suffices.

    Example:
        >>> metric = ExactMatch()
        >>> metric.update(["The kinase.", "no"], ["kinase", "yes"])
        >>> metric.compute()
        tensor(0.5000)

    References:
        Rajpurkar, Zhang, Lopyrev, Liang. *SQuAD: 100,000+ Questions for Machine Comprehension of Text*. EMNLP 2016.
        https://arxiv.org/abs/1606.05250
    """

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Return 1 if the text equals one of the references, else 0."""
        answer = normalize_answer(prediction)
        return float(any(answer == normalize_answer(reference) for reference in references))


class TokenF1(TextScore):
    """Mean F1 of the words that text and reference have in common, counted as multisets; 0 without any.

    Args:
        reference_scoring: Whether the best among the parts of the reference between ``", "`` counts.

    Example:
        >>> metric = TokenF1()
        >>> metric.update(["binding of a kinase"], ["kinase binding"])
        >>> metric.compute()
        tensor(0.8000)

    References:
        Rajpurkar, Zhang, Lopyrev, Liang. *SQuAD: 100,000+ Questions for Machine Comprehension of Text*. EMNLP 2016.
        https://arxiv.org/abs/1606.05250
    """

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Return the best F1 among the references."""
        return max(answer_f1(prediction, reference) for reference in references)


class RougeL(TextScore):
    """Mean ROUGE-L F-measure with stemming, by torchmetrics; needs the packages ``rouge-score`` and ``nltk``.

    Args:
        reference_scoring: Whether the best among the parts of the reference between ``", "`` counts.

    Raises:
        ModuleNotFoundError: If one of the packages is missing.

    References:
        Lin. *ROUGE: A Package for Automatic Evaluation of Summaries*. 2004. https://aclanthology.org/W04-1013
    """

    def __init__(self, reference_scoring: bool = False) -> None:
        super().__init__(reference_scoring)
        try:
            import nltk  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("RougeL needs `pip install nltk rouge-score`.") from error

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """Return the best F-measure among the references."""
        from torchmetrics.functional.text.rouge import rouge_score

        found = rouge_score(prediction, [list(references)], accumulate="best", use_stemmer=True, rouge_keys="rougeL")
        return float(found["rougeL_fmeasure"])


class EntityF1(TextMetric):
    r"""Micro F1 of the items that a text lists, as sets: entities with their type, or labels.

    .. math:: F_1 = \frac{2 \sum_i |P_i \cap R_i|}{\sum_i |P_i| + \sum_i |R_i|}

    with the items :math:`P_i` of prediction :math:`i` and :math:`R_i` of its reference. Items are compared in lower
    case with single spaces; an item listed twice counts once. NaN without texts, or when no text lists an item.

    Args:
        items: ``"entities"`` reads ``entity <Type>, entity <Type>``: an item ends with its type, so that names may hold
            ``", "`` themselves. ``"labels"`` splits at commas.

    Raises:
        ValueError: If ``items`` is unknown.

    Example:
        >>> metric = EntityF1()
        >>> metric.update(["1, 2-dichloroethane <Chemical>"], ["asthma <Disease>, 1, 2-dichloroethane <Chemical>"])
        >>> metric.compute()
        tensor(0.6667)
    """

    hits: Tensor
    listed: Tensor

    def __init__(self, items: Literal["entities", "labels"] = "entities") -> None:
        super().__init__()
        if items not in ("entities", "labels"):
            raise ValueError(f"EntityF1: items must be 'entities' or 'labels', got {items!r}.")
        self.items = items
        self.add_sum("hits", dtype=torch.int64)
        self.add_sum("listed", dtype=torch.int64)

    def listed_items(self, text: str) -> set[str]:
        """Return the items of a text."""
        parts = _AFTER_TYPE.split(text) if self.items == "entities" else text.split(",")
        return {item for part in parts if (item := " ".join(part.lower().split()))}

    def add(self, prediction: str, reference: str) -> None:
        """Add the items of a text."""
        predicted, expected = self.listed_items(prediction), self.listed_items(reference)
        self.hits += len(predicted & expected)
        self.listed += len(predicted) + len(expected)

    def compute(self) -> Tensor:
        """Return the F1 since the last reset."""
        return nan_unless(self.listed > 0, 2 * self.hits / self.listed)
