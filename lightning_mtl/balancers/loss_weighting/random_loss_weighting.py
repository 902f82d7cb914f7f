"""Random loss weighting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lightning_mtl.balancers.base import take
from lightning_mtl.balancers.loss_weighting.base import LossWeighting


class RandomLossWeighting(LossWeighting):
    r"""Draw new weights at random in every step (RLW; Lin et al., TMLR 2022).

    .. math:: w = \mathrm{softmax}(z), \qquad z \sim \mathcal{N}(0, I_K)

    The draw depends on ``seed`` and the number of the step alone, in the order in which the tasks were bound: all
    processes draw the same, and a resumed run goes on with the same draws. Of an absent task the draw is unused: the
    softmax runs over the present tasks. No state beside the number of the step.

    Args:
        tasks: Task names; None binds them at the first call.
        seed: Seed of the draws.

    Shape:
        - losses: ``(K,)``; returns positive weights ``(K,)`` that sum to 1.

    Note:
        As in the paper, LibMTL and TorchJD the weights sum to 1, not to K. Of the distributions that the paper studies
        this is the normal one, as in LibMTL.

    Example:
        >>> import torch
        >>> balancer = RandomLossWeighting(seed=1)
        >>> _ = balancer({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
        >>> round(float(balancer.weights["a"] + balancer.weights["b"]), 6)
        1.0

    References:
        Lin, Ye, Zhang, Tsang. *Reasonable Effectiveness of Random Weighting: A Litmus Test for Multi-Task Learning*.
        TMLR 2022. https://arxiv.org/abs/2111.10603, Sec. 3.
    """

    reads_losses: ClassVar[bool] = False

    def __init__(self, tasks: Sequence[str] | None = None, seed: int = 0) -> None:
        super().__init__()
        self.seed = seed
        self.bind(tasks)

    def draw(self, num_tasks: int) -> Tensor:
        """Return standard normal numbers ``(num_tasks,)`` on the CPU for this step."""
        return torch.randn(num_tasks, generator=self.generator())

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the softmax of a normal draw."""
        noise = take(self.draw(len(self.task_names)), rows)
        return torch.softmax(noise.to(losses, non_blocking=True), dim=0)
