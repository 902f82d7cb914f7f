"""Penalty-based boundary intersection."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_mtl.balancers.base import take
from lightning_mtl.balancers.loss_weighting.preference_weighting import PreferenceWeighting


class PBI(PreferenceWeighting):
    r"""Minimise the losses along a direction and their distance from it (PBI; Zhang, Li, 2007).

    .. math::
        S = d_1 + \theta d_2, \quad d_1 = \hat p^\top (L - z), \quad d_2 = \lVert L - z - d_1 \hat p \rVert, \qquad
        w = \frac{\partial S}{\partial L} = \hat p + \theta\, \frac{L - z - d_1 \hat p}{d_2}

    with the direction :math:`\hat p = p / \lVert p \rVert` of the preferences and the ideal point z. Where the losses
    lie on the direction, to rounding, the second term is dropped. State: the preferences. Only the present tasks'
    entries count, and p is normalised over them.

    Args:
        preferences: Task name -> preference p, not negative and not all zero. Its keys are the tasks.
        penalty: :math:`\theta`, not negative. The paper uses 5.
        ideal: Task name -> ideal value z of the loss; None is 0 for all.

    Shape:
        - losses: ``(K,)``; returns weights ``(K,)``. One is negative where the task is ahead of its preference.

    Raises:
        ValueError: If ``penalty`` or a preference is negative, all preferences are zero, or a mapping misses a task.

    Note:
        The paper maximises and treats the distance in an evolutionary search; this is the form for gradients, as in
        TorchJD, which adds 1e-12 below the root of :math:`d_2`. Nothing is added here: the penalty does not fade when
        the losses are small.

    Example:
        >>> import torch
        >>> balancer = PBI({"a": 3.0, "b": 4.0}, penalty=1.0)
        >>> _ = balancer({"a": torch.tensor(3.0), "b": torch.tensor(4.0)})  # on the direction
        >>> balancer.weights["a"], balancer.weights["b"]
        (tensor(0.6000), tensor(0.8000))

    References:
        Zhang, Li. *MOEA/D: A Multiobjective Evolutionary Algorithm Based on Decomposition*. IEEE Transactions on
        Evolutionary Computation 11(6), 2007. https://doi.org/10.1109/TEVC.2007.892759, Sec. II-C.
    """

    ideal_point: Tensor

    def __init__(
        self, preferences: dict[str, float], penalty: float = 5.0, ideal: dict[str, float] | None = None
    ) -> None:
        super().__init__()
        if not penalty >= 0:
            raise ValueError(f"PBI: penalty must not be negative, got {penalty}.")
        self.given_preferences = preferences
        self.penalty = penalty
        self.ideal = ideal
        self.bind(tuple(preferences))

    def _create_state(self, num_tasks: int) -> None:
        self._register_preferences(self.given_preferences)
        self.register_buffer("ideal_point", self._per_task("ideal", self.ideal, 0.0), persistent=False)

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the partial derivatives."""
        preferences = take(self.preferences, rows).to(losses.dtype)
        size = torch.linalg.vector_norm(preferences)
        wanted = preferences / torch.where(size > 0, size, 1.0)
        shifted = losses - take(self.ideal_point, rows)
        scale = shifted.abs().max()  # squares of the scaled losses neither overflow nor vanish
        scaled = shifted / torch.where(scale > 0, scale, 1.0)
        off = scaled - (scaled @ wanted) * wanted
        distance = torch.linalg.vector_norm(off)
        rounding = 8 * len(rows) * torch.finfo(off.dtype).eps
        away = torch.where(distance > rounding, off / torch.where(distance > 0, distance, 1.0), 0.0)
        return wanted + self.penalty * away
