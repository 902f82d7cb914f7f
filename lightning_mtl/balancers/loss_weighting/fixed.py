"""Weights that do not look at the losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mtl.balancers.base import take
from lightning_mtl.balancers.loss_weighting.base import LossWeighting


class EqualWeighting(LossWeighting):
    r"""Sum the losses with weight one each (linear scalarization with equal weights).

    .. math:: w_k = 1

    Args:
        tasks: Task names; None binds them at the first call.
        normalize: Divide by the number of present tasks, so that the total is their mean.

    Example:
        >>> import torch
        >>> EqualWeighting()({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
        tensor(3.)

    References:
        Caruana. *Multitask Learning*. Machine Learning 28, 1997. https://doi.org/10.1023/A:1007379606734
    """

    reads_losses: ClassVar[bool] = False

    def __init__(self, tasks: Sequence[str] | None = None, normalize: bool = False) -> None:
        super().__init__()
        self.normalize = normalize
        self.bind(tasks)

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return ones, or their shares."""
        return torch.full_like(losses, 1 / len(rows) if self.normalize else 1.0)


class FixedWeighting(LossWeighting):
    r"""Weight every loss with a constant that the user chose.

    Args:
        weights: Task name -> weight, not negative and not all zero. Its keys are the tasks.
        normalize: Divide by the sum of the weights of the present tasks, so that the total is a weighted mean. Where
            all present tasks have weight zero, so has the total.

    Raises:
        ValueError: If a weight is negative or all are zero.

    Example:
        >>> import torch
        >>> FixedWeighting({"a": 1.0, "b": 0.5})({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
        tensor(2.)

    References:
        Caruana. *Multitask Learning*. Machine Learning 28, 1997. https://doi.org/10.1023/A:1007379606734
    """

    reads_losses: ClassVar[bool] = False
    fixed: Tensor

    def __init__(self, weights: Mapping[str, float], normalize: bool = False) -> None:
        super().__init__()
        if any(not value >= 0 for value in weights.values()) or not any(weights.values()):
            raise ValueError(f"FixedWeighting: weights must not be negative nor all be zero, got {dict(weights)}.")
        self.given = dict(weights)
        self.normalize = normalize
        self.bind(tuple(weights))

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("fixed", self._per_task("weights", self.given, 1.0), persistent=False)

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the constants of the present tasks."""
        weights = take(self.fixed, rows).to(losses.dtype)
        if not self.normalize:
            return weights
        total = weights.sum()
        return weights / torch.where(total > 0, total, 1.0)
