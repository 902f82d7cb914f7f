"""MoCo: multi-objective gradient correction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import put
from lightning_mtl.balancers.gradient_weighting.base import GradientAggregation, GradientOptions
from lightning_mtl.balancers.gradient_weighting.gradient_memory import GradientMemory, simplex_part
from lightning_mtl.functional.gradients import combine_rows, gramian
from lightning_mtl.functional.gramian import project_to_simplex


class MoCo(GradientAggregation):
    r"""Track the gradients by moving averages and descend towards their min-norm weights (Fernando et al., ICLR 2023).

    .. math:: y_k \leftarrow y_k + \beta_t (h_k - y_k), \qquad
        \lambda \leftarrow \Pi_\Delta\big( \lambda - \gamma_t (Y Y^\top + \rho I) \lambda \big), \qquad
        \hat g = Y^\top \lambda, \qquad \beta_t = \beta / t^{\sigma_\beta}, \; \gamma_t = \gamma / t^{\sigma_\gamma}

    with the rows :math:`y_k` of Y and the gradients :math:`h_k`. Averaging removes the bias that noisy gradients give
    to the weights of MGDA.

    State: the averages, which start at zero, K × P in at least float32 and in every checkpoint, :math:`\lambda`, 1/K
    each at the start, and the number of steps of every task. Absent tasks keep theirs; the present ones share their
    part of the simplex. Heads receive the gradient of their own loss.

    Args:
        beta: Step :math:`\beta` of the averages, in (0, 1]; 0.5 as in the authors' code.
        beta_decay: Its decay :math:`\sigma_\beta`, not negative; 0.5 as there.
        gamma: Step size of :math:`\lambda`, positive; 0.1 as there.
        gamma_decay: Its decay :math:`\sigma_\gamma`, not negative; 0.5 as there.
        rho: Strength of the l2 regularization of :math:`\lambda`, not negative; 0 as there.
        normalization: ``"none"`` tracks the gradients, as the paper's algorithm; ``"loss"`` their directions times the
            losses, :math:`h_k = L_k g_k / \|g_k\|`, as the authors' code.
        projection: How :math:`\lambda` comes back to the simplex: the Euclidean projection (``"simplex"``, the paper's
            algorithm) or a softmax (``"softmax"``, the authors' code).
        options: See :class:`GradientOptions`.

    Shape:
        - Gradients ``(K, P)``; returns the update ``(P,)``.

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        The defaults are the paper's Alg. 1 with the step sizes of the authors' code, which LibMTL took over; that code
        is ``normalization="loss", projection="softmax"``. The projection of the averages to a ball, which the
        paper's proof needs, is left out as there. As there, the new averages and the new :math:`\lambda` make the
        update. A zero gradient has no direction: its :math:`h_k` is zero.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = MoCo(beta=1.0, gamma=0.2)
        >>> total = balancer({"a": x[0], "b": 2 * x[1]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]
        tensor([0.6500, 0.7000])

    References:
        Fernando, Shen, Liu, Chaudhury, Murugesan, Chen. *Mitigating Gradient Bias in Multi-objective Learning: A
        Provably Convergent Approach*. ICLR 2023. https://openreview.net/forum?id=dLAYGdKTi2, Alg. 1.
    """

    memory: GradientMemory
    multipliers: Tensor

    def __init__(
        self,
        beta: float = 0.5,
        beta_decay: float = 0.5,
        gamma: float = 0.1,
        gamma_decay: float = 0.5,
        rho: float = 0.0,
        normalization: Literal["none", "loss"] = "none",
        projection: Literal["simplex", "softmax"] = "simplex",
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(**options)
        if not 0 < beta <= 1:
            raise ValueError(f"MoCo: beta must be above 0 and at most 1, got {beta}.")
        if not gamma > 0:
            raise ValueError(f"MoCo: gamma must be positive, got {gamma}.")
        for argument, value in (("beta_decay", beta_decay), ("gamma_decay", gamma_decay), ("rho", rho)):
            if not value >= 0:
                raise ValueError(f"MoCo: {argument} must not be negative, got {value}.")
        if normalization not in ("none", "loss"):
            raise ValueError(f"MoCo: normalization must be 'none' or 'loss', got {normalization!r}.")
        if projection not in ("simplex", "softmax"):
            raise ValueError(f"MoCo: projection must be 'simplex' or 'softmax', got {projection!r}.")
        self.beta = beta
        self.beta_decay = beta_decay
        self.gamma = gamma
        self.gamma_decay = gamma_decay
        self.rho = rho
        self.normalization = normalization
        self.projection = projection

    def _create_state(self, num_tasks: int) -> None:
        self.memory = GradientMemory(num_tasks)
        self.register_buffer("multipliers", torch.full((num_tasks,), 1 / num_tasks))

    def _looks_at_once(self, device: torch.device) -> bool:
        return True  # the state is too large to be kept twice until the gradients are known to be finite

    def aggregate(self, matrix: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the combination of the averages, after all moved."""
        memory = self.memory
        memory.fit(matrix)
        count = memory.step(rows)
        if self.normalization == "loss":
            norms = gramian(matrix).diagonal().clamp(min=0).sqrt()
            factors = torch.where(norms > 0, losses / torch.where(norms > 0, norms, 1), 0)
            matrix = matrix * factors.to(matrix.dtype).unsqueeze(-1)
        memory.move(rows, matrix, self.beta / count**self.beta_decay)
        tracked = memory.rows(rows)
        multipliers, total = simplex_part(self.multipliers, rows)
        multipliers = multipliers.to(tracked.dtype)
        slope = gramian(tracked) @ multipliers + self.rho * multipliers
        moved = multipliers - self.gamma / count.to(tracked.dtype) ** self.gamma_decay * slope
        moved = project_to_simplex(moved) if self.projection == "simplex" else torch.softmax(moved, dim=0)
        put(self.multipliers, rows, total * moved)
        return combine_rows(moved, tracked)
