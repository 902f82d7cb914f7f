"""Contrastive retrieval with the other rows of the batch as negatives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_mtl.losses.contrastive import info_nce
from lightning_mtl.metrics import PairMRR, PairRecall, TaskMetrics
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.tasks.base import HeadCallable, Task, nothing_to_draw
from lightning_mtl.tasks.supervised import in_float32

_LARGEST_SCALE = 100.0  # of CLIP, which found that larger ones make training unstable


class Retrieval(Task):
    r"""Bring queries and their documents together, and apart from the documents of the other rows.

    Query and document of a row go through the same encoder and head and are scaled to unit length. The loss is InfoNCE
    (:func:`~lightning_mtl.losses.info_nce`), the mean of both directions: every query against the documents of the
    batch, every document against its queries. Rows of one group are positives of each other. Metrics: ``recall_k`` and
    ``mrr`` of the query's document among **all documents of the evaluation set**.

    Args:
        dim: Width of the vectors that are compared.
        temperature: Divides the cosine similarities, positive; where learned, the value to start from.
        learn_temperature: Learn the temperature, which stays at 0.01 or above.
        recall_at: The k of the ``recall_k`` metrics.
        gather: With several processes, compare with the rows of all of them in training, gradients included. All
            processes must then hold this task in the same steps. False compares within the rows of a process.
        ignore_index: Group of unlabelled rows; they are neither queries nor candidates.
        head: A head, or a callable that builds one from the encoder's features; None takes a linear layer on the vector
            or the first token. :class:`~lightning_mtl.nn.IdentityHead` compares the encoder's own vectors.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - features: of query and document, ``(B, 2, D)``, or tokens ``(B, 2, L, D)``.
        - prediction: ``(B, 2, dim)``.
        - target: group of every row, integers ``(B,)``.

    Raises:
        ValueError: If an argument is out of range, or the features are no pairs.

    Note:
        The loss depends on which rows share a batch: it is not the mean over parts of a batch, accumulated or on other
        processes (except with ``gather``). In evaluation the loss is that within batches of one process.

    Example:
        >>> task = Retrieval(dim=2, temperature=1.0)
        >>> pairs = torch.tensor([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]]])
        >>> task.loss(pairs, torch.tensor([0, 1]))
        tensor(0.3133)

    References:
        Radford et al. *Learning Transferable Visual Models From Natural Language Supervision*. ICML 2021.
        https://arxiv.org/abs/2103.00020, Fig. 3.
    """

    log_scale: nn.Parameter | None

    def __init__(
        self,
        dim: int = 128,
        temperature: float = 0.05,
        learn_temperature: bool = False,
        recall_at: Sequence[int] = (1, 5, 10),
        gather: bool = False,
        ignore_index: int = -100,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(head, loss_weight)
        if dim < 1:
            raise ValueError(f"Retrieval: dim must be positive, got {dim}.")
        if temperature < 1 / _LARGEST_SCALE:
            raise ValueError(f"Retrieval: temperature must be at least {1 / _LARGEST_SCALE}, got {temperature}.")
        self.out_channels = dim
        self.scale = 1 / temperature
        self.log_scale = nn.Parameter(torch.tensor(math.log(self.scale))) if learn_temperature else None
        self.gather = gather
        self.ignore_index = ignore_index
        metrics: dict[str, Metric] = {f"recall_{k}": PairRecall(k, ignore_index) for k in recall_at}
        self.metrics = TaskMetrics({**metrics, "mrr": PairMRR(ignore_index)}, shared=[[*metrics, "mrr"]])

    def default_head(self, spec: FeatureSpec, out_channels: int) -> nn.Module:
        """Return a linear head on the vector or on the first token."""
        from lightning_mtl.nn import FirstTokenHead, LinearHead

        return (FirstTokenHead if spec.kind == "tokens" else LinearHead)(spec, out_channels)

    def loss(self, prediction: Any, target: Any) -> Tensor:
        """Return the mean loss over the labelled rows, exactly zero without any.

        Raises:
            ValueError: If the shapes do not fit.
        """
        _check_shapes(prediction, target)
        labelled = self._labelled(target)
        vectors, groups = self.predict(prediction)[labelled], target[labelled]
        pool, pool_groups = vectors, groups
        if self.gather and self.training and dist.is_available() and dist.is_initialized():
            pool, pool_groups = gather_rows(vectors), gather_rows(groups)
        scale = self.scale if self.log_scale is None else self.log_scale.exp().clamp(max=_LARGEST_SCALE)
        there = info_nce(vectors[:, 0], pool[:, 1], groups, pool_groups, scale)
        back = info_nce(vectors[:, 1], pool[:, 0], groups, pool_groups, scale)
        return (there + back).sum() / (2 * max(len(groups), 1))

    def _labelled(self, target: Tensor) -> Tensor:
        return target != self.ignore_index

    def num_labelled(self, target: Any) -> Tensor:
        """Return how many rows ``loss`` averages over."""
        return self._labelled(target).sum()

    def predict(self, prediction: Tensor) -> Tensor:
        """Return the vectors of query and document at unit length, ``(B, 2, dim)``."""
        return F.normalize(in_float32(prediction), dim=-1)

    def render(self, value: Any) -> Tensor:
        """Return no picture."""
        return nothing_to_draw()


def _check_shapes(prediction: Tensor, target: Tensor) -> None:
    expected = (*target.shape, 2)
    if target.ndim != 1 or target.is_floating_point() or prediction.ndim != 3 or prediction.shape[:2] != expected:
        raise ValueError(
            "Retrieval: prediction must be (B, 2, dim) and target integers (B,), got "
            f"{tuple(prediction.shape)} and {tuple(target.shape)} of {target.dtype}; give query and document a "
            "dimension of their own in input_ids."
        )


def gather_rows(rows: Tensor) -> Tensor:
    """Return the rows of all processes, one process after the other, with gradients back to each.

    Args:
        rows: ``(N, ...)``; N may differ between the processes.

    Returns:
        ``(N_1 + N_2 + ..., ...)``.
    """
    counts = [torch.zeros((), dtype=torch.long, device=rows.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(len(rows), device=rows.device))
    longest = int(max(counts))
    padded = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
    found = cast(Tensor, _Gather.apply(padded)) if rows.requires_grad or rows.is_floating_point() else _gathered(padded)
    return torch.cat([part[: int(count)] for part, count in zip(found, counts, strict=True)])


def _gathered(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows.contiguous())
    return torch.stack(parts)


class _Gather(torch.autograd.Function):
    """Stack the tensors of all processes; the gradient of one is the sum of those that the processes have of it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _gathered(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank()]
