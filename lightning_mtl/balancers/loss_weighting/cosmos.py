"""Conditioned one-shot multi-objective search."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.balancers.base import take
from lightning_mtl.balancers.loss_weighting.preference_weighting import PreferenceWeighting


class COSMOS(PreferenceWeighting):
    r"""Minimise a linear scalarization and the angle between the losses and the preferences (Ruchte, Grabocka, 2021).

    .. math::
        S = p^\top L - \lambda \cos(p, L), \qquad
        w = \frac{\partial S}{\partial L} = p - \frac{\lambda}{\lVert L \rVert} (\hat p - \cos(p, L)\, \hat L)

    with preferences p, and a hat for unit length. State: the preferences. Only the present tasks' entries of p and L
    count; preferences are not normalised. At :math:`L = 0` the angle is dropped.

    The full method draws p from a Dirichlet distribution before every step and gives it to the network as an input: see
    :meth:`set_preferences`.

    Args:
        preferences: Task name -> preference p, not negative and not all zero. Its keys are the tasks.
        penalty: :math:`\lambda`, not negative. The paper uses 0.01 to 8, depending on the data set.

    Shape:
        - losses: ``(K,)``; returns weights ``(K,)``. One is negative where the angle asks for a larger loss.

    Raises:
        ValueError: If ``penalty`` or a preference is negative, or all preferences are zero.

    Note:
        Agrees with the paper and TorchJD. The angle's part grows as the losses shrink, so the penalty has the unit of a
        loss.

    Example:
        >>> import torch
        >>> balancer = COSMOS({"a": 0.5, "b": 0.5}, penalty=1.0)
        >>> _ = balancer({"a": torch.tensor(3.0), "b": torch.tensor(4.0)})
        >>> balancer.weights["a"], balancer.weights["b"]
        (tensor(0.4774), tensor(0.5170))

    References:
        Ruchte, Grabocka. *Scalable Pareto Front Approximation for Deep Multi-Objective Learning*. ICDM 2021.
        https://arxiv.org/abs/2103.13392. Authors' code: https://github.com/ruchtem/cosmos
    """

    def __init__(self, preferences: dict[str, float], penalty: float) -> None:
        super().__init__()
        if not penalty >= 0:
            raise ValueError(f"COSMOS: penalty must not be negative, got {penalty}.")
        self.given_preferences = preferences
        self.penalty = penalty
        self.bind(tuple(preferences))

    def _create_state(self, num_tasks: int) -> None:
        self._register_preferences(self.given_preferences)

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the partial derivatives."""
        preferences = take(self.preferences, rows).to(losses.dtype)
        scale = losses.abs().max()  # squares of the scaled losses neither overflow nor vanish
        scaled = losses / torch.where(scale > 0, scale, 1.0)
        length = torch.linalg.vector_norm(scaled)
        direction = scaled / torch.where(length > 0, length, 1.0)
        size = torch.linalg.vector_norm(preferences)
        wanted = preferences / torch.where(size > 0, size, 1.0)
        off = wanted - (wanted @ direction) * direction
        return preferences - torch.where(scale > 0, self.penalty * off / (length * scale), 0.0)
