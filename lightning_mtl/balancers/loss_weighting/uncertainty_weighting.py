"""Uncertainty weighting."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lightning_mtl.balancers.base import Recompute, take
from lightning_mtl.balancers.loss_weighting.base import LossWeighting

Likelihood = Literal["gaussian", "laplace", "softmax"]
# likelihood -> (factor of exp(-s) L, factor of the regulariser s)
_FACTORS: dict[str, tuple[float, float]] = {"gaussian": (0.5, 0.5), "laplace": (1.0, 1.0), "softmax": (1.0, 0.5)}


class UncertaintyWeighting(LossWeighting):
    r"""Learn each task's weight as the inverse of its noise (Kendall et al., CVPR 2018).

    Each task has a learned number :math:`s_k`, a parameter that the optimizer of the model must hold. With
    :math:`\sigma^2 = e^s` the variance (Gaussian), :math:`b = e^s` the scale (Laplace) or :math:`\sigma^2 = e^s` the
    temperature (softmax) of the noise, the negative log-likelihood of the joint model is

    .. math::
        \sum_k c_k e^{-s_k} L_k + r_k s_k, \qquad w_k = c_k e^{-s_k}

    with :math:`(c, r) = (\tfrac12, \tfrac12)` for ``"gaussian"`` (squared error), :math:`(1, 1)` for ``"laplace"``
    (absolute error) and :math:`(1, \tfrac12)` for ``"softmax"`` (cross-entropy).

    The regulariser :math:`r_k s_k` gives its gradient only: the value of the returned scalar is
    :math:`\sum_k w_k L_k`. A task that is absent from a call leaves its :math:`s_k` without gradient; there is no
    normalisation over the tasks.

    Args:
        tasks: Task names. They must be known before the optimizer is built; ``MultiTaskModule`` gives them.
        likelihood: Noise model of all tasks, or task name -> noise model. ``"gaussian"`` for every task is what LibMTL
            and TorchJD compute, whatever the losses are.
        initial_log_variance: Start value of every :math:`s_k`. 0 in TorchJD, -0.5 in LibMTL; the paper finds the
            result robust to it.

    Shape:
        - losses: ``(K,)``; returns positive weights ``(K,)``.

    Raises:
        ValueError: If a noise model is unknown, misses a task, or if the first call comes before the tasks are known.

    Note:
        The form :math:`e^{-s} L + s` of some public codes is ``"laplace"``: twice the Gaussian one, so it differs by a
        factor of the learning rate. The paper's Eq. 10 has ``"gaussian"`` for regression and ``"softmax"`` for
        classification, where ``"softmax"`` rests on the paper's approximation of the normaliser. Learned numbers are
        updated by the optimizer of the model, so a loss that is not finite reaches them as it reaches the model. Weight
        decay pulls them to 0; give them a parameter group without it (``MultiTaskModule`` does).

    Example:
        >>> import torch
        >>> balancer = UncertaintyWeighting(tasks=["a", "b"])
        >>> balancer({"a": torch.tensor(1.0), "b": torch.tensor(3.0)}).detach()
        tensor(2.)

    References:
        Kendall, Gal, Cipolla. *Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and
        Semantics*. CVPR 2018. https://arxiv.org/abs/1705.07115, Eq. 5, 7 and 10.
    """

    reads_losses: ClassVar[bool] = False
    learns_parameters: ClassVar[bool] = True
    loss_factors: Tensor
    regulariser_factors: Tensor

    def __init__(
        self,
        tasks: Sequence[str] | None = None,
        likelihood: Likelihood | dict[str, Likelihood] = "gaussian",
        initial_log_variance: float = 0.0,
    ) -> None:
        super().__init__()
        named = likelihood.values() if isinstance(likelihood, Mapping) else [likelihood]
        if unknown := set(named) - set(_FACTORS):
            raise ValueError(
                f"UncertaintyWeighting: likelihood must be one of {list(_FACTORS)}, got {sorted(unknown)}."
            )
        self.likelihood = likelihood
        self.initial_log_variance = initial_log_variance
        self.bind(tasks)

    def _create_state(self, num_tasks: int) -> None:
        if isinstance(self.likelihood, Mapping):
            factors = {name: _FACTORS[kind] for name, kind in self.likelihood.items()}
        else:
            factors = dict.fromkeys(self.task_names, _FACTORS[self.likelihood])
        for index, buffer in enumerate(("loss_factors", "regulariser_factors")):
            values = self._per_task("likelihood", {name: pair[index] for name, pair in factors.items()}, 0.0)
            self.register_buffer(buffer, values, persistent=False)
        self.log_variances = nn.Parameter(torch.full((num_tasks,), float(self.initial_log_variance)))

    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        total = super()._combine(losses, shared, features, recompute)
        rows = self._index(losses)
        regulariser = (take(self.regulariser_factors, rows) * take(self.log_variances, rows)).sum()
        return total + regulariser - regulariser.detach()

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the learned weights; they carry the gradient of the learned numbers."""
        return take(self.loss_factors, rows) * torch.exp(-take(self.log_variances, rows))
