"""MoDo."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import put
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions
from lightning_mtl.balancers.gradient_weighting.gradient_memory import GradientMemory, MatrixWeighting, simplex_part
from lightning_mtl.functional.gradients import row_products
from lightning_mtl.functional.gramian import modo


class DoubleSampling(MatrixWeighting):
    """A method whose weights come from two batches that are independent of the one which they multiply.

    The weights that a step applies were made in the steps before. Then the inner products of the gradients of the last
    batch and of this one make the next weights. State: the weights, and the last gradients, K × P.
    """

    task_weights: Tensor
    memory: GradientMemory

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("task_weights", torch.full((num_tasks,), 1 / num_tasks))
        self.memory = GradientMemory(num_tasks)

    def compute_weights(self, matrix: Tensor, rows: list[int]) -> Tensor:
        """Return the weights, then make the next ones."""
        self.memory.fit(matrix)
        weights, total = simplex_part(self.task_weights, rows)
        products = row_products(self.memory.rows(rows), matrix.to(self.memory.vectors.dtype))
        has_last = (self.memory.step(rows) > 1).all()
        put(self.task_weights, rows, total * torch.where(has_last, self.next_weights(products, weights, rows), weights))
        self.memory.store(rows, matrix)
        return self.applied_weights(weights, rows)

    @abstractmethod
    def next_weights(self, products: Tensor, weights: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of the next step.

        Args:
            products: Inner products of the gradients of the last batch and of this one, ``(k, k)``.
            weights: The weights of this step, with sum 1.
            rows: Rows of the present tasks.
        """

    def applied_weights(self, weights: Tensor, rows: list[int]) -> Tensor:
        """Return what multiplies the gradients of this batch."""
        return weights


class MoDo(DoubleSampling):
    r"""Descend towards the min-norm weights with double sampling (Chen et al., NeurIPS 2023).

    .. math:: w_{t+1} = \Pi_\Delta\big( w_t - \gamma (J_{t-1} J_t^\top w_t + \rho w_t) \big), \qquad
        \hat g_t = J_t^\top w_t

    with the gradients :math:`J_t` of the batch of step t. The gradient of a squared norm is estimated without bias
    only from two independent batches, and the weights must not depend on the batch that they multiply: so the weights
    of a step come from the batches before it.

    State: the weights, 1/K each at the start, and the last gradients, K × P in at least float32, also in every
    checkpoint. Absent tasks keep both; the present ones share their part of the simplex. The weights move once every
    present task was seen before.

    Args:
        gamma: Step size of the weights, positive. Depends on the scale of the gradients; LibMTL's and TorchJD's 0.1.
        rho: Strength of the l2 regularization of the weights, not negative; 0.1 as in both.
        options: See :class:`GradientOptions`; ``at`` must be ``"parameters"``, as features belong to samples.

    Shape:
        - Gradients ``(K, P)``; weights ``(K,)``, on the simplex.

    Raises:
        ValueError: If ``gamma`` is not positive or ``rho`` is negative.

    Note:
        The paper, LibMTL and TorchJD draw three batches a step at the same parameters. Here every step draws one, at a
        third of the cost: the two batches behind a weight step were taken at parameters one update apart, and each
        batch takes part in two weight steps. Where the paper's triple is handed in as three successive batches without
        an optimizer step in between, the third update is the paper's.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = MoDo(rho=0.0)
        >>> for _ in range(3):
        ...     _ = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])
        >>> balancer.weights["a"], balancer.weights["b"]  # 1/2 each in the first two steps
        (tensor(0.5750), tensor(0.4250))

    References:
        Chen, Fernando, Ying, Chen. *Three-Way Trade-Off in Multi-Objective Learning: Optimization, Generalization and
        Conflict-Avoidance*. NeurIPS 2023. https://arxiv.org/abs/2305.20057, Alg. 1. Authors' code:
        https://github.com/heshandevaka/Trade-Off-MOL.
    """

    def __init__(self, gamma: float = 0.1, rho: float = 0.1, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if not gamma > 0:
            raise ValueError(f"MoDo: gamma must be positive, got {gamma}.")
        if not rho >= 0:
            raise ValueError(f"MoDo: rho must not be negative, got {rho}.")
        self.gamma = gamma
        self.rho = rho

    def next_weights(self, products: Tensor, weights: Tensor, rows: list[int]) -> Tensor:
        """Return the projected step."""
        return modo(products, weights, self.gamma, self.rho)
