"""Adam for the few numbers that a balancer updates by its own rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lightning_mtl.balancers.base import put, take


class InnerAdam(nn.Module):
    r"""Adam on one number a task, with its moments in buffers, so that a checkpoint holds them.

    Every task counts its own updates; a task that is left out keeps its moments.

    Args:
        num_tasks: K.
        lr: Step size.
        eps: Added to the root of the second moment. 0 makes the update independent of the gradient's scale.

    References:
        Kingma, Ba. *Adam: A Method for Stochastic Optimization*. ICLR 2015. https://arxiv.org/abs/1412.6980, Alg. 1.
    """

    beta1 = 0.9
    beta2 = 0.999
    first_moment: Tensor
    second_moment: Tensor
    count: Tensor

    def __init__(self, num_tasks: int, lr: float, eps: float = 1e-8) -> None:
        super().__init__()
        self.lr = lr
        self.eps = eps
        self.register_buffer("first_moment", torch.zeros(num_tasks))
        self.register_buffer("second_moment", torch.zeros(num_tasks))
        self.register_buffer("count", torch.zeros(num_tasks))

    def forward(self, gradient: Tensor, rows: list[int], take_part: Tensor) -> Tensor:
        """Return what to add to the numbers in these rows, 0 where they take no part.

        Args:
            gradient: Gradient of the numbers, shape ``(k,)``.
            rows: Their rows in the state, ascending.
            take_part: Which of them to update, bool, shape ``(k,)``.
        """
        first, second, count = (take(state, rows) for state in (self.first_moment, self.second_moment, self.count))
        gradient = torch.where(take_part, gradient, 0.0)
        new_count = count + 1
        new_first = self.beta1 * first + (1 - self.beta1) * gradient
        new_second = self.beta2 * second + (1 - self.beta2) * gradient**2
        put(self.first_moment, rows, torch.where(take_part, new_first, first))
        put(self.second_moment, rows, torch.where(take_part, new_second, second))
        put(self.count, rows, torch.where(take_part, new_count, count))
        root = (new_second / (1 - self.beta2**new_count)).sqrt() + self.eps
        update = -self.lr * (new_first / (1 - self.beta1**new_count)) / torch.where(root > 0, root, 1.0)
        return torch.where(take_part & (root > 0), update, 0.0)
