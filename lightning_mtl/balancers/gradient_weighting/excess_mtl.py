"""ExcessMTL."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import put, take
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions
from lightning_mtl.balancers.gradient_weighting.gradient_memory import GradientMemory, MatrixWeighting


class ExcessMTL(MatrixWeighting):
    r"""Weight every task by its estimated distance to convergence (He et al., ICML 2024).

    The excess risk, the part of a loss that training can still remove, is estimated from a Taylor expansion with the
    diagonal curvature of Adagrad, relative to its value at the start, and the weights follow it by exponentiated steps:

    .. math:: E_k = g_k^\top \operatorname{diag}(S_k)^{-1/2} g_k, \qquad S_k \leftarrow S_k + g_k^2, \qquad
        w_k \leftarrow \frac{w_k \exp(\eta E_k / E_k^0)}{\sum_j w_j \exp(\eta E_j / E_j^0)}

    Tasks with noisy labels have a high loss and little excess risk, and so are not favoured.

    State: the sums :math:`S`, K × P in at least float32 and in every checkpoint, the start values :math:`E^0`, and the
    weights as logarithms. Absent tasks keep theirs; the present ones share their part of the simplex.

    Args:
        lr: Step size :math:`\eta` of the weights, positive; 0.01 is LibMTL's default, 1.0 TorchJD's.
        warmup_steps: Number of first steps of a task in which its start value is measured, as the mean, and its weight
            left alone. 1 as in the authors' code; the paper recommends about three epochs.
        options: See :class:`GradientOptions`; ``at`` must be ``"parameters"``.

    Shape:
        - Gradients ``(K, P)``; weights ``(K,)`` that sum to 1.

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        Weights lie on the simplex as in the paper; those of the authors' code and of LibMTL are K times as large and
        otherwise the same. TorchJD moves the weights in the first step too, by risks that are not yet divided by their
        start values and so depend on the scale of the gradients; this is not followed. All three add 1e-7 to S, which
        outweighs squared gradients below that; nothing is added here. A task whose gradient has always been zero
        has no start value and keeps its weight. The authors weight the heads too: ``head_gradients="weighted"``.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = ExcessMTL(lr=0.5)
        >>> for scale in (1.0, 3.0):  # the gradient of b grows
        ...     _ = balancer({"a": x[0], "b": scale * x[1]}, shared=[x])
        >>> bool(balancer.weights["b"] > balancer.weights["a"])
        True

    References:
        He, Zhou, Zhang, Yun, Xu, Zeng, Chilimbi, Zhao. *Robust Multi-Task Learning with Excess Risks*. ICML 2024.
        https://arxiv.org/abs/2402.02009, Eq. 6-9 and Alg. 1. Authors' code: https://github.com/yifei-he/ExcessMTL, MIT.
    """

    memory: GradientMemory
    log_weights: Tensor
    start_sums: Tensor
    start_counts: Tensor

    def __init__(self, lr: float = 0.01, warmup_steps: int = 1, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if not lr > 0:
            raise ValueError(f"ExcessMTL: lr must be positive, got {lr}.")
        if not warmup_steps >= 1:
            raise ValueError(f"ExcessMTL: warmup_steps must be at least 1, got {warmup_steps}.")
        self.lr = lr
        self.warmup_steps = warmup_steps

    def _create_state(self, num_tasks: int) -> None:
        self.memory = GradientMemory(num_tasks)
        self.register_buffer("log_weights", torch.zeros(num_tasks) - torch.tensor(float(num_tasks)).log())
        self.register_buffer("start_sums", torch.zeros(num_tasks))
        self.register_buffer("start_counts", torch.zeros(num_tasks))

    def compute_weights(self, matrix: Tensor, rows: list[int]) -> Tensor:
        """Return the weights after their step."""
        self.memory.fit(matrix)
        self.memory.step(rows)
        risks = torch.stack([self._risk(row, gradient) for row, gradient in zip(rows, matrix.unbind(), strict=True)])
        sums, counts, before = (take(state, rows) for state in (self.start_sums, self.start_counts, self.log_weights))
        starting = (counts < self.warmup_steps) & (risks > 0)
        moving = counts >= self.warmup_steps
        starts = torch.where(moving, sums / counts.clamp(min=1), 1)
        gain = torch.where(moving, self.lr * risks / starts, 0).clamp(max=torch.finfo(before.dtype).max / 4)
        after = before + gain
        after = after - after.logsumexp(0) + before.logsumexp(0)
        put(self.start_sums, rows, torch.where(starting, sums + risks, sums))
        put(self.start_counts, rows, torch.where(starting, counts + 1, counts))
        put(self.log_weights, rows, after)
        return torch.softmax(after, dim=0)

    def _risk(self, row: int, gradient: Tensor) -> Tensor:
        total = self.memory.vectors[row]
        square = gradient.to(total.dtype).square()
        total.add_(square)
        return torch.where(total > 0, square * total.rsqrt(), 0).sum()
