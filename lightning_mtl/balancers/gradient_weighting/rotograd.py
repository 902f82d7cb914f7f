"""RotoGrad."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import Unpack

from lightning_mtl.balancers.base import Recompute, is_distributed, put, take
from lightning_mtl.balancers.engines import TaskGradients
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.functional.gradients import inject
from lightning_mtl.nn.encoders.rotated_features import RotatedFeatures


class RotoGrad(GradientWeighting):
    r"""Give the tasks' feature gradients one norm, and rotate the features of every task until they agree.

    With :math:`G_k` the gradient of task k at the unrotated features z of the batch, the features receive

    .. math::
        C \sum_k \frac{G_k}{\lVert G_k \rVert}, \qquad C = \sum_k \alpha_k \lVert G_k \rVert, \qquad
        \alpha_k = \frac{\lVert G_k \rVert / \lVert G_k^0 \rVert}{\sum_j \lVert G_j \rVert / \lVert G_j^0 \rVert}

    where :math:`G_k^0` is the gradient at the start, so that C follows the task that has converged least. The rotation
    :math:`R_k` of every task is trained in the same step on the alignment of its gradient with the mean direction,

    .. math:: -\Big\langle \frac{R_k^\top \tilde G_k}{\lVert \tilde G_k \rVert}, V \Big\rangle, \qquad
        V = \frac1K \sum_j \frac{G_j}{\lVert G_j \rVert}

    with :math:`\tilde G_k` the gradient at the rotated features and both taken as constants. The network's encoder is a
    :class:`~lightning_mtl.nn.RotatedFeatures`; ``MultiTaskModule`` introduces it, elsewhere call ``watch(encoder)``.
    The rotations are among the encoder's parameters: the paper wants them to learn slower than the network.

    Args:
        burn_in_steps: Step at which the start norms are taken a second time, since the first steps are unlike those
            that follow; 20, as in the authors' code. 0 keeps those of the first step.
        options: See :class:`GradientOptions`; ``at`` is ``"features"``.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, :math:`C / \lVert G_k \rVert`.

    Raises:
        ValueError: If ``burn_in_steps`` is negative, ``every_n_steps`` is not 1, or the encoder is no
            ``RotatedFeatures``.

    Note:
        The authors' code trains the rotations on the squared distance :math:`\lVert R_k V - \tilde G_k \rVert^2` of
        gradients that keep their norms; on orthogonal matrices its gradient is that of the inner product above up to a
        factor. As there, heads receive the gradient of their own loss.

    References:
        Javaloy, Valera. *RotoGrad: Gradient Homogenization in Multitask Learning*. ICLR 2022, Sec. 3.
        https://arxiv.org/abs/2103.02631. Authors' code: https://github.com/adrianjav/rotograd, MIT.
    """

    compares_at: ClassVar[tuple[str, ...]] = ("features",)
    needs_rotated_features: ClassVar[bool] = True

    initial_norms: Tensor

    def __init__(self, burn_in_steps: int = 20, **options: Unpack[GradientOptions]) -> None:
        super().__init__(**cast(GradientOptions, {"at": "features", **options}))
        if burn_in_steps < 0:
            raise ValueError(f"RotoGrad: burn_in_steps must not be negative, got {burn_in_steps}.")
        if self.every_n_steps != 1:
            raise ValueError(f"RotoGrad: rotates in every step, so every_n_steps must be 1, got {self.every_n_steps}.")
        self.burn_in_steps = burn_in_steps
        self._rotated: list[RotatedFeatures] = []  # in a list: the encoder is no part of the balancer
        self._turns: dict[str, Tensor] = {}

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("initial_norms", torch.zeros(num_tasks))

    def watch(self, encoder: nn.Module) -> None:
        """Meet the encoder; it must be a :class:`~lightning_mtl.nn.RotatedFeatures`."""
        super().watch(encoder)
        self._rotated = [encoder] if isinstance(encoder, RotatedFeatures) else []

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights that give all gradients the norm C."""
        norms = gramian.diagonal().clamp(min=0).sqrt()
        start = take(self.initial_norms, rows).to(norms.dtype)
        start = torch.where((start == 0) | (self.steps == self.burn_in_steps), norms, start)
        put(self.initial_norms, rows, start)
        ratios = torch.where(start > 0, norms / torch.where(start > 0, start, 1), 0)
        total = ratios.sum()
        common = (ratios / torch.where(total > 0, total, 1) * norms).sum()
        return torch.where(norms > 0, common / torch.where(norms > 0, norms, 1), 0)

    def _update(
        self, gradients: TaskGradients, gramian: Tensor, losses: Tensor, rows: list[int], scale: Tensor | None
    ) -> tuple[Tensor, list[Tensor]]:
        encoder = self._encoder()
        world = dist.get_world_size() if is_distributed() else 1
        matrix = gradients.matrix().float()
        norms = gramian.diagonal().clamp(min=0).sqrt().float() * world
        if scale is not None:
            norms = norms * scale.float()
        units = torch.where(norms[:, None] > 0, matrix / torch.where(norms > 0, norms, 1)[:, None], 0)
        width = encoder.rotation(self.task_names[0]).shape[0]
        units = units.view(len(rows), -1, width)  # (k, B, D), of norm one over all samples and processes
        mean = units.mean(0)
        for row, unit in zip(rows, units.unbind(), strict=True):
            task = self.task_names[row]
            rotation = encoder.rotation(task).detach().float()
            # the inner product's gradient in R: at the rotated features the gradient is R u
            self._turns[task] = -world * (unit @ rotation.T).T @ mean
        return super()._update(gradients, gramian, losses, rows, scale)

    def _combine(
        self,
        losses: dict[str, Tensor],
        shared: Iterable[nn.Parameter] | None,
        features: Any,
        recompute: Recompute | None,
    ) -> Tensor:
        encoder = self._encoder()
        if not encoder.unrotated:
            raise ValueError("RotoGrad: the encoder has made no training pass since the last call; run it first.")
        features, encoder.unrotated = encoder.unrotated, []
        self._turns = {}
        total = super()._combine(losses, shared, features, recompute)
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []
        for task in encoder.rotations:
            own = [p for p in encoder.rotations[task].parameters() if p.requires_grad]
            turn = self._turns.get(task)
            if turn is None:
                found = [torch.zeros_like(p) for p in own]
            else:
                with torch.enable_grad():
                    weight = encoder.rotation(task)
                found = list(torch.autograd.grad(weight, own, turn.to(weight.dtype)))
            parameters += own
            gradients += [gradient.nan_to_num(0.0, 0.0, 0.0) for gradient in found]
        return total + inject(total.new_zeros(()), parameters, gradients)

    def _encoder(self) -> RotatedFeatures:
        if not self._rotated:
            raise ValueError(
                "RotoGrad: the encoder must be a RotatedFeatures; wrap it as RotatedFeatures(encoder, tasks), and "
                "outside of MultiTaskModule call balancer.watch(encoder)."
            )
        return self._rotated[0]
