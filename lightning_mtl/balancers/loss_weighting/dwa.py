"""Dynamic weight average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_mtl.balancers.base import put, take
from lightning_mtl.balancers.loss_weighting.base import LossWeighting


class DWA(LossWeighting):
    r"""Weight each task by how slowly its loss fell over the last two epochs (Liu et al., CVPR 2019).

    .. math::
        w_k(t) = \frac{K \exp(r_k(t-1) / T)}{\sum_j \exp(r_j(t-1) / T)}, \qquad
        r_k(t-1) = \frac{L_k(t-1)}{L_k(t-2)}

    with :math:`L_k(t)` the mean loss of task k over epoch t and T the temperature. Until two epochs of a task are
    known, and where the older mean is zero, its rate :math:`r_k` is 1; the first two epochs so have equal weights.

    Epochs end with :meth:`end_epoch`. ``MultiTaskModule`` calls it; in an own training loop call it yourself, in a
    ``LightningModule`` from ``on_train_epoch_end``. State: the running mean of the epoch under way and the means of the
    two epochs before it. A task that is absent from a call takes no part in the softmax, the weights of the k present
    tasks sum to k; one that is absent from a whole epoch keeps its last two means.

    Args:
        tasks: Task names; None binds them at the first call.
        temperature: Softmax temperature T, positive; larger gives more equal weights. The paper uses 2.0.

    Shape:
        - losses: ``(K,)``; returns weights ``(K,)`` that sum to K.

    Raises:
        ValueError: If ``temperature`` is not positive.

    Note:
        The paper and the public codes agree. LibMTL counts epochs in its trainer, TorchJD in ``step()``.

    Example:
        >>> import torch
        >>> balancer = DWA(tasks=["a", "b"])
        >>> for a, b in [(4.0, 4.0), (1.0, 4.0)]:  # two epochs of one step
        ...     _ = balancer({"a": torch.tensor(a), "b": torch.tensor(b)})
        ...     balancer.end_epoch()
        >>> _ = balancer({"a": torch.tensor(1.0), "b": torch.tensor(4.0)})
        >>> balancer.weights["a"], balancer.weights["b"]
        (tensor(0.8147), tensor(1.1853))

    References:
        Liu, Johns, Davison. *End-to-End Multi-Task Learning with Attention*. CVPR 2019.
        https://arxiv.org/abs/1803.10704, Eq. 7. Authors' code: https://github.com/lorenmt/mtan
    """

    running_mean: Tensor
    count: Tensor
    epoch_means: Tensor

    def __init__(self, tasks: Sequence[str] | None = None, temperature: float = 2.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"DWA: temperature must be positive, got {temperature}.")
        self.temperature = temperature
        self.bind(tasks)

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("running_mean", torch.zeros(num_tasks))
        self.register_buffer("count", torch.zeros(num_tasks))
        self.register_buffer("epoch_means", torch.zeros(2, num_tasks))  # the epoch before the last one, the last one

    def compute_weights(self, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the weights of this epoch, and add the losses to its mean."""
        older, newer = take(self.epoch_means[0], rows), take(self.epoch_means[1], rows)
        rates = torch.where(older == 0, 1.0, newer / torch.where(older == 0, 1.0, older))
        limit = torch.finfo(rates.dtype).max
        weights = len(rows) * torch.softmax(rates.clamp(-limit, limit) / self.temperature, dim=0)
        mean, count = take(self.running_mean, rows), take(self.count, rows)
        finite = losses.isfinite()
        count = count + finite
        mean = mean + torch.where(finite, losses - mean, 0.0) / count.clamp(min=1)
        put(self.running_mean, rows, mean)
        put(self.count, rows, count)
        return weights

    def end_epoch(self) -> None:
        """Turn the losses since the last call into the mean of an epoch."""
        super().end_epoch()
        if not self.task_names:
            return
        seen = self.count > 0
        self.epoch_means.copy_(
            torch.where(seen, torch.stack([self.epoch_means[1], self.running_mean]), self.epoch_means)
        )
        self.running_mean.zero_()
        self.count.zero_()
