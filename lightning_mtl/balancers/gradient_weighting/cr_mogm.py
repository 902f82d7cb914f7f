"""CR-MOGM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import put, take
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gramian import cr_mogm


class CRMOGM(GradientWeighting):
    r"""Smooth the weights of another gradient method over the steps (CR-MOGM; Zhou et al., NeurIPS 2022).

    .. math:: \lambda_t = \alpha \lambda_{t-1} + (1 - \alpha) w_t

    This reduces the correlation between the weights and the noisy gradients that they multiply, which biases methods
    such as MGDA, PCGrad and CAGrad.

    State: the smoothed weights, and that of the wrapped method. Absent tasks keep theirs; the first weights of a task
    are taken as they are.

    Args:
        weighting: The wrapped method; its own options must be left at their defaults.
        alpha: Decay of the moving average, in [0, 1]; 0.9 as in TorchJD.
        options: See :class:`GradientOptions`; these count, for the wrapped method too.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``.

    Raises:
        TypeError: If ``weighting`` is no gradient method on the Gramian, or learns parameters.
        ValueError: If ``alpha`` is outside of [0, 1], or ``weighting`` has options of its own.

    Note:
        The paper lets :math:`\alpha` tend to 1 as the learning rate decays; as in TorchJD it is constant, and may be
        set between steps.

    Example:
        >>> import torch
        >>> from lightning_mtl.balancers import IMTLG
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = CRMOGM(IMTLG(), alpha=0.5)
        >>> for scale in (1.0, 3.0):
        ...     _ = balancer({"a": x[0], "b": scale * x[1]}, shared=[x])
        >>> balancer.weights["a"]  # the mean of 1/2 and 3/4
        tensor(0.6250)

    References:
        Zhou, Zhang, Jiang, Zhong, Gu, Zhu. *On the Convergence of Stochastic Multi-Objective Gradient Manipulation and
        Beyond*. NeurIPS 2022.
        https://papers.nips.cc/paper_files/paper/2022/hash/f91bd64a3620aad8e70a27ad9cb3ca57-Abstract-Conference.html,
        Alg. 1.
    """

    smoothed: Tensor
    started: Tensor

    def __init__(self, weighting: GradientWeighting, alpha: float = 0.9, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        if not isinstance(weighting, GradientWeighting) or weighting.learns_parameters:
            raise TypeError(
                "CRMOGM: weighting must be a gradient method on the Gramian without learned parameters, got "
                f"{type(weighting).__name__}."
            )
        if own := sorted(set(weighting._recorded_arguments) & set(GradientOptions.__annotations__)):
            raise ValueError(f"CRMOGM: weighting has the options {own} of its own; give them to CRMOGM instead.")
        if self.at not in weighting.compares_at:
            raise ValueError(f"CRMOGM: {type(weighting).__name__} cannot work with at={self.at!r}.")
        if not 0 <= alpha <= 1:
            raise ValueError(f"CRMOGM: alpha must be between 0 and 1, got {alpha}.")
        self.weighting = weighting
        self.alpha = alpha
        self.weight_degree = weighting.weight_degree

    def bind(self, tasks: Sequence[str] | None) -> None:
        """Fix the task names here and in the wrapped method."""
        super().bind(tasks)
        self.weighting.bind(tasks)

    def reset(self) -> None:
        """Forget everything, in the wrapped method too."""
        self.weighting.reset()
        super().reset()

    def end_epoch(self) -> None:
        """Be told that a training epoch ended, and tell the wrapped method."""
        super().end_epoch()
        self.weighting.end_epoch()

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("smoothed", torch.zeros(num_tasks))
        self.register_buffer("started", torch.zeros(num_tasks))

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the smoothed weights."""
        self.weighting.steps = self.steps
        weights = self.weighting.compute_weights(gramian, losses, rows)
        started = take(self.started, rows)
        smoothed = cr_mogm(weights, torch.where(started > 0, take(self.smoothed, rows), weights), self.alpha)
        put(self.smoothed, rows, smoothed)
        put(self.started, rows, torch.ones_like(started))
        return smoothed
