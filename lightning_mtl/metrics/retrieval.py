"""Metrics of retrieval: where the right document stands among all documents of the data set."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities import dim_zero_cat

from lightning_mtl.metrics.base import ExactMetric

_QUERIES_AT_ONCE = 1024
_LARGEST_GROUP = 2**24  # what float32 tells apart


class PairRanks(ExactMetric):
    """The vectors that the retrieval metrics are made of, and the rank of the right document for every query.

    Every query is compared with the documents of **all** rows seen since the last reset, on all processes. Documents of
    the query's group are right, the best of them counts; the others that score as high or higher stand before it.

    Args:
        ignore_index: Group of rows that are left out, query and document.

    Shape:
        - prediction: vectors of query and document ``(B, 2, D)``, compared by their inner product.
        - target: group of every row, ``(B,)`` integers below 2 ** 24.

    Raises:
        ValueError: If a group is too large.

    Note:
        Keeps all vectors, in float32.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    vectors: list[Tensor]
    groups: list[Tensor]

    def __init__(self, ignore_index: int = -100) -> None:
        super().__init__()
        self.ignore_index = ignore_index
        self.add_state("vectors", [], dist_reduce_fx="cat")
        self.add_state("groups", [], dist_reduce_fx="cat")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        labelled = target != self.ignore_index
        if bool((target.abs() >= _LARGEST_GROUP).any()):
            raise ValueError(
                f"{type(self).__name__}: groups must be below {_LARGEST_GROUP}, got {int(target.abs().max())}; number "
                "the groups of the data set from 0."
            )
        # Flat and float32, so that a process without any batch can contribute an empty tensor of its kind.
        self.vectors.append(prediction[labelled].detach().float().flatten())
        self.groups.append(target[labelled].float())

    def ranks(self) -> Tensor:
        """Return the rank of the right document for every query, from 1; empty without any."""
        groups = dim_zero_cat(self.groups) if len(self.groups) > 0 else torch.empty(0)
        if not len(groups):
            return torch.empty(0)
        queries, documents = dim_zero_cat(self.vectors).view(len(groups), 2, -1).unbind(1)
        found = []
        for part, own in zip(_parts(queries), _parts(groups), strict=True):
            scores = part @ documents.T
            right = own[:, None] == groups[None, :]
            best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
            found.append(1 + ((scores >= best) & ~right).sum(1))
        return torch.cat(found)


class PairRecall(PairRanks):
    """Share of the queries whose right document is among the first k of all documents (recall@k), NaN without any.

    Args:
        k: How many documents are looked at.
        ignore_index: Group of rows that are left out, query and document.

    Shape:
        - prediction: vectors of query and document ``(B, 2, D)``, compared by their inner product.
        - target: group of every row, ``(B,)`` integers; the documents of a query's group are right.

    Note:
        The documents are those of all rows since the last reset, on all processes: the value depends on the size of
        the evaluation set, not on that of the batches. All vectors are kept. Ties count against the right document.

    Raises:
        ValueError: If ``k`` is not positive.

    Example:
        >>> metric = PairRecall(k=1)
        >>> pairs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.5, 0.0]]])
        >>> metric.update(pairs, torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.5000)
    """

    def __init__(self, k: int, ignore_index: int = -100) -> None:
        super().__init__(ignore_index)
        if k < 1:
            raise ValueError(f"PairRecall: k must be positive, got {k}.")
        self.k = k

    def compute(self) -> Tensor:
        """Return the recall."""
        return (self.ranks() <= self.k).float().mean().to(self.device)


class PairMRR(PairRanks):
    """Mean reciprocal rank of the right document among all documents, NaN without any.

    Args:
        ignore_index: Group of rows that are left out, query and document.

    Shape:
        - prediction: vectors of query and document ``(B, 2, D)``, compared by their inner product.
        - target: group of every row, ``(B,)`` integers; the documents of a query's group are right.

    Note:
        As :class:`PairRecall`.

    Example:
        >>> metric = PairMRR()
        >>> pairs = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.5, -0.1]]])
        >>> metric.update(pairs, torch.tensor([0, 1]))
        >>> metric.compute()
        tensor(0.7500)
    """

    def compute(self) -> Tensor:
        """Return the mean reciprocal rank."""
        return (1 / self.ranks()).float().mean().to(self.device)


def _parts(rows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(rows, _QUERIES_AT_ONCE)
