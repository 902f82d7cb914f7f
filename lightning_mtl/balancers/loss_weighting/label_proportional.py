"""Weights in proportion to the labels of a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mtl.balancers.loss_weighting.base import LossWeighting


class LabelProportionalWeighting(LossWeighting):
    r"""Weight every task's mean loss by its share of the labels, which pools the labels of all tasks.

    .. math:: w_k = \frac{N_k}{\sum_j N_j}

    with the number of labels :math:`N_k` that the loss of task k is the mean over, on all processes together. The
    weighted sum is then the mean over all labels, whatever their task: the loss of a language model that is trained on
    a mixture without regard to the tasks. A task with few or short answers hardly counts; equal weights are the remedy.

    The counts are taken by :meth:`observe_labels` before every call. ``MultiTaskModule`` does it.

    Args:
        tasks: Task names; None binds them at the first call.

    Shape:
        - losses: ``(K,)``; returns weights ``(K,)`` that sum to 1.

    Raises:
        ValueError: If the counts of the losses were not given, or are all zero.

    Example:
        >>> import torch
        >>> balancer = LabelProportionalWeighting()
        >>> balancer.observe_labels({"long": 6.0, "short": 2.0})
        >>> balancer({"long": torch.tensor(1.0), "short": torch.tensor(3.0)})
        tensor(1.5000)

    References:
        Liu et al. *MFTCoder: Boosting Code LLMs with Multitask Fine-Tuning*. KDD 2024.
        https://arxiv.org/abs/2311.02303, the loss without balancing.
    """

    reads_losses: ClassVar[bool] = False

    def __init__(self, tasks: Sequence[str] | None = None) -> None:
        super().__init__()
        self._counts: dict[str, float] = {}
        self.bind(tasks)

    def observe_labels(self, counts: Mapping[str, float]) -> None:
        """Take the number of labels of every loss of the next call."""
        self._counts = {name: float(count) for name, count in counts.items()}

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the shares of the present tasks in the labels."""
        names = [self.task_names[row] for row in rows]
        missing = [name for name in names if name not in self._counts]
        if missing:
            raise ValueError(
                f"LabelProportionalWeighting: the numbers of labels of {missing} are unknown; call "
                "observe_labels({task: count}) before the balancer."
            )
        counts = [self._counts[name] for name in names]
        self._counts = {}  # a count is good for one call
        if not sum(counts) > 0:
            raise ValueError(f"LabelProportionalWeighting: a task must have a label, got the counts {counts}.")
        return torch.tensor([count / sum(counts) for count in counts], dtype=losses.dtype).to(losses.device)
