"""Smooth Tchebycheff scalarization, on losses and on their logarithms."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mtl.balancers.base import put, take
from lightning_mtl.balancers.loss_weighting.base import LossWeighting, log_magnitude
from lightning_mtl.balancers.loss_weighting.preference_weighting import PreferenceWeighting


class SmoothTchebycheff(PreferenceWeighting):
    r"""Minimise a smooth maximum of the weighted losses (STCH; Lin et al., ICML 2024).

    .. math::
        S = \mu \log \sum_k \exp\frac{p_k (L_k - z_k)}{\mu}, \qquad
        w_k = \frac{\partial S}{\partial L_k} = p_k \,\mathrm{softmax}\Big(\frac{p\,(L - z)}{\mu}\Big)_k

    with preferences p, ideal point z and smoothing :math:`\mu`: for :math:`\mu \to 0` the worst task alone is trained.
    State: the preferences. The softmax runs over the present tasks, with their preferences as they are.

    Args:
        tasks: Task names; None binds them at the first call.
        smoothing: :math:`\mu`, positive, in units of the losses. The paper tries 0.01, 0.1, 0.5 and 1.
        preferences: Task name -> preference p, not negative and not all zero; None is 1/K for all.
        ideal: Task name -> ideal value z of the loss; None is 0 for all.

    Shape:
        - losses: ``(K,)``; returns weights ``(K,)``, not negative, that sum to at most the largest preference.

    Raises:
        ValueError: If ``smoothing`` is not positive, a preference is negative, or a mapping misses a task.

    Note:
        Follows the paper and TorchJD. What LibMTL calls STCH is :class:`LogSmoothTchebycheff`.

    Example:
        >>> import torch
        >>> balancer = SmoothTchebycheff(smoothing=0.5)
        >>> _ = balancer({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
        >>> balancer.weights["a"], balancer.weights["b"]
        (tensor(0.1345), tensor(0.3655))

    References:
        Lin, Zhang, Yang, Liu, Wang, Zhang. *Smooth Tchebycheff Scalarization for Multi-Objective Optimization*. ICML
        2024. https://arxiv.org/abs/2402.19078. Authors' code: https://github.com/Xi-L/STCH, MIT.
    """

    ideal_point: Tensor

    def __init__(
        self,
        tasks: Sequence[str] | None = None,
        smoothing: float = 1.0,
        preferences: dict[str, float] | None = None,
        ideal: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not smoothing > 0:
            raise ValueError(f"SmoothTchebycheff: smoothing must be positive, got {smoothing}.")
        self.smoothing = smoothing
        self.given_preferences = preferences
        self.ideal = ideal
        self.bind(tasks)

    def _create_state(self, num_tasks: int) -> None:
        self._register_preferences(self.given_preferences)
        self.register_buffer("ideal_point", self._per_task("ideal", self.ideal, 0.0), persistent=False)

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the partial derivatives of the smooth maximum."""
        preferences = take(self.preferences, rows)
        distance = preferences * (losses - take(self.ideal_point, rows))
        # the maximum leaves before the division, which may overflow for a tiny smoothing
        return preferences * torch.softmax((distance - distance.max()) / self.smoothing, dim=0)


class LogSmoothTchebycheff(LossWeighting):
    r"""Minimise a smooth maximum of the log losses relative to a measured nadir (STCH in multi-task benchmarks).

    The authors' form for deep multi-task learning, with no ideal point and no dependence on the scale of the losses:

    .. math::
        S = K \mu \log \sum_k \exp\frac{\log (L_k / n_k)}{\mu}, \qquad
        w_k = \frac{\partial S}{\partial L_k} = \frac{K}{L_k}\,\mathrm{softmax}\Big(\frac{\log (L / n)}{\mu}\Big)_k

    For the first ``warmup_epochs + 1`` epochs the sum of the log losses is minimised, :math:`w_k = 1 / L_k`. The nadir
    :math:`n_k` is the mean loss of the last of them.

    Epochs end with :meth:`end_epoch`. ``MultiTaskModule`` calls it; in an own training loop call it yourself, in a
    ``LightningModule`` from ``on_train_epoch_end``, else the warm-up never ends. State: nadir and its number of
    steps. K and the softmax are those of the present tasks; a task that was absent from the whole epoch in which the
    nadir is measured takes the first loss that it has afterwards. A loss of exactly zero is treated as absent, with
    weight 0; a negative loss counts with its magnitude.

    Args:
        tasks: Task names; None binds them at the first call.
        smoothing: :math:`\mu`, positive. LibMTL and the authors' configuration use 1.0.
        warmup_epochs: Epochs before the one in which the nadir is measured. LibMTL uses 4.
        nadir: Task name -> nadir n, positive; there is then no warm-up.

    Shape:
        - losses: ``(K,)``, positive; returns weights ``(K,)``, not negative, with
          :math:`\sum_k w_k L_k = K`: the value of the returned scalar is the number of tasks.

    Raises:
        ValueError: If ``smoothing`` is not positive, ``warmup_epochs`` is negative, a value of the nadir is not
            positive, or the nadir misses a task.

    Note:
        Follows LibMTL, which follows the authors' code, and is not the form in the paper's text
        (:class:`SmoothTchebycheff`). Both add 1e-20 inside the logarithm; nothing is added here.

    Example:
        >>> import torch
        >>> balancer = LogSmoothTchebycheff(smoothing=0.5, nadir={"a": 1.0, "b": 1.0})
        >>> _ = balancer({"a": torch.tensor(1.0), "b": torch.tensor(2.0)})
        >>> balancer.weights["a"], balancer.weights["b"]
        (tensor(0.4000), tensor(0.8000))

    References:
        Lin, Zhang, Yang, Liu, Wang, Zhang. *Smooth Tchebycheff Scalarization for Multi-Objective Optimization*. ICML
        2024. https://arxiv.org/abs/2402.19078. Authors' code: https://github.com/Xi-L/STCH, MIT.
    """

    nadir_point: Tensor
    nadir_count: Tensor

    def __init__(
        self,
        tasks: Sequence[str] | None = None,
        smoothing: float = 1.0,
        warmup_epochs: int = 4,
        nadir: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        if not smoothing > 0:
            raise ValueError(f"LogSmoothTchebycheff: smoothing must be positive, got {smoothing}.")
        if not warmup_epochs >= 0:
            raise ValueError(f"LogSmoothTchebycheff: warmup_epochs must not be negative, got {warmup_epochs}.")
        if nadir is not None and any(not value > 0 for value in nadir.values()):
            raise ValueError(f"LogSmoothTchebycheff: nadir must be positive, got {nadir}.")
        self.smoothing = smoothing
        self.warmup_epochs = warmup_epochs
        self.nadir = nadir
        self.bind(tasks)

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("nadir_point", self._per_task("nadir", self.nadir, 0.0))
        self.register_buffer("nadir_count", torch.full((num_tasks,), 0.0 if self.nadir is None else 1.0))

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the partial derivatives, and measure the nadir when its epoch has come."""
        logs, exists = log_magnitude(losses)
        if self.nadir is None and self.epochs >= self.warmup_epochs:
            self._measure_nadir(losses, rows, exists)
        reciprocals = torch.where(exists, torch.exp(-logs), 0.0)
        if self.nadir is None and self.epochs <= self.warmup_epochs:
            return reciprocals
        nadir = take(self.nadir_point, rows)
        scores = (logs - torch.where(nadir > 0, nadir, 1.0).log()) / self.smoothing
        shares = torch.softmax(torch.where(exists, scores, -torch.inf), dim=0)
        return torch.where(exists, exists.sum() * shares * reciprocals, 0.0)

    def _measure_nadir(self, losses: Tensor, rows: list[int], exists: Tensor) -> None:
        mean, count = take(self.nadir_point, rows), take(self.nadir_count, rows)
        measure = exists if self.epochs == self.warmup_epochs else exists & (count == 0)
        count = count + measure
        put(self.nadir_point, rows, mean + torch.where(measure, losses.abs() - mean, 0.0) / count.clamp(min=1))
        put(self.nadir_count, rows, count)
