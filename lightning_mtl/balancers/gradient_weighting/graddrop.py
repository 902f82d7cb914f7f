"""Gradient sign dropout."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import is_distributed, take
from lightning_mtl.balancers.engines import TaskGradients
from lightning_mtl.balancers.gradient_weighting.base import GradientAggregation, GradientOptions
from lightning_mtl.functional.matrix import graddrop


class GradDrop(GradientAggregation):
    r"""Keep one sign at every place, drawn by its share of the gradients (Chen et al., NeurIPS 2020).

    .. math:: P = \frac12 \Big( 1 + \frac{\sum_k g_k}{\sum_k |g_k|} \Big), \qquad
        M_k = [P > U][g_k > 0] + [P < U][g_k < 0], \qquad \hat g = \sum_k (\ell_k + (1 - \ell_k) M_k) g_k

    with uniform draws U. With ``at="parameters"`` a place is a parameter; with ``at="features"``, the form of the
    paper, it is a feature: the purity P is then that of :math:`\sum_b \operatorname{sign}(z_b) g_{k,b}` over the batch,
    and a task that loses the draw is masked in the whole batch.

    The draws depend on ``seed`` and the number of the step alone: all processes draw the same, and a resumed run goes
    on with the same draws. Devices of different kinds draw different numbers. No state beside the number of the step.
    Heads receive the gradient of their own loss.

    Args:
        leak: Fraction :math:`\ell` of a task's gradient that is always let through, in [0, 1], for all tasks or by task
            name. 0 in the paper's main experiments.
        seed: Seed of the draws.
        options: See :class:`GradientOptions`.

    Shape:
        - Gradients ``(K, P)``; returns the update ``(P,)``.

    Raises:
        ValueError: If a leak is outside of [0, 1].

    Note:
        ``at="parameters"`` is TorchJD's form, ``at="features"`` that of LibMTL with ``rep_grad``; LibMTL's leak has
        the same meaning. With several processes and ``at="features"`` the purities are those of the joined batch, and
        features must have the same shape on all processes apart from the batch. Features have the batch in front.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> balancer = GradDrop()
        >>> total = balancer({"a": x[0] + x[1], "b": 2 * x[1]}, shared=[x])
        >>> torch.autograd.grad(total, x)[0]  # all signs agree
        tensor([1., 3.])

    References:
        Chen, Ngiam, Huang, Luong, Kretzschmar, Chai, Anguelov. *Just Pick a Sign: Optimizing Deep Multitask Models with
        Gradient Sign Dropout*. NeurIPS 2020. https://arxiv.org/abs/2010.06808, Eq. 1 and Alg. 1.
    """

    compares_at = ("parameters", "features")
    leaks: Tensor

    def __init__(self, leak: float | dict[str, float] = 0.0, seed: int = 0, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**options)
        for value in leak.values() if isinstance(leak, dict) else [leak]:
            if not 0 <= value <= 1:
                raise ValueError(f"GradDrop: leak must be between 0 and 1, got {leak}.")
        self.leak = leak
        self.seed = seed

    def _create_state(self, num_tasks: int) -> None:
        by_name = self.leak if isinstance(self.leak, dict) else None
        default = 0.0 if isinstance(self.leak, dict) else self.leak
        self.register_buffer("leaks", self._per_task("leak", by_name, default), persistent=False)

    def draw(self, place: int, shape: torch.Size, like: Tensor) -> Tensor:
        """Return uniform numbers of this shape on the device and in the precision of a tensor.

        Args:
            place: Number of the tensor of features, 0 for the parameters.
            shape: Shape of the numbers.
            like: A tensor with their device; half precision draws in float32.
        """
        dtype = torch.promote_types(like.dtype, torch.float32)
        if like.device.type == "meta":
            return torch.empty(shape, dtype=dtype, device=like.device)
        seed = self.generator().initial_seed() + place
        return torch.rand(
            shape, dtype=dtype, device=like.device, generator=torch.Generator(like.device).manual_seed(seed)
        )

    def aggregate(self, matrix: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the sum of the gradients with the drawn sign."""
        return graddrop(matrix, self.draw(0, matrix.shape[1:], matrix), take(self.leaks, rows))

    def _update(
        self, gradients: TaskGradients, gramian: Tensor, losses: Tensor, rows: list[int], unit: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        if self.at == "parameters":
            return super()._update(gradients, gramian, losses, rows, unit)
        features = gradients.targets
        leaks = take(self.leaks, rows)
        parts = torch.split(gradients.matrix(), [feature.numel() for feature in features], dim=1)
        update = [
            self._masked(place, feature, part.view(-1, *feature.shape), leaks)
            for place, (feature, part) in enumerate(zip(features, parts, strict=True))
        ]
        return torch.ones_like(losses), update

    def _masked(self, place: int, feature: Tensor, gradients: Tensor, leaks: Tensor) -> Tensor:
        multiplied = (feature.sign() * gradients).sum(1, dtype=torch.promote_types(gradients.dtype, torch.float32))
        if is_distributed():
            dist.all_reduce(multiplied)
        total = multiplied.abs().sum(0)
        purity = 0.5 * (1 + multiplied.sum(0) / torch.where(total == 0, 1, total))
        uniform = self.draw(place, multiplied.shape[1:], multiplied)
        kept = ((purity > uniform) & (multiplied > 0)) | ((purity < uniform) & (multiplied < 0))
        share = leaks.to(gradients.dtype).view(-1, *[1] * (gradients.ndim - 1))
        mask = share + (1 - share) * kept.unsqueeze(1).to(gradients.dtype)
        return (mask * gradients).sum(0)
