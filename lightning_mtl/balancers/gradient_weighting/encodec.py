"""The balancer of EnCodec."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from typing_extensions import Unpack

from lightning_mtl.balancers.base import put, take
from lightning_mtl.balancers.gradient_weighting.base import GradientOptions, GradientWeighting
from lightning_mtl.balancers.gradient_weighting.preference import check_preference


class EncodecBalancer(GradientWeighting):
    r"""Give every loss a fixed share of the gradient at the features (Défossez et al., TMLR 2023).

    .. math:: w_k = R \, \frac{\lambda_k}{\sum_j \lambda_j} \, \frac{1}{\langle \|g_k\| \rangle_\beta}

    where :math:`\langle \cdot \rangle_\beta` is a moving average over the steps, corrected for its start: the numbers
    :math:`\lambda_k` are then shares of the update, whatever the scale of the losses. It costs one backward pass of the
    heads for each loss and one of the shared part.

    State: the sums of the moving averages. Absent tasks keep theirs; shares are among the present ones.

    Args:
        shares: Loss name -> :math:`\lambda_k`, not negative; None is equal.
        total_norm: :math:`R`, positive: norm to which the shares add up; 1.0 as in the authors' code.
        ema_decay: :math:`\beta`, in [0, 1]; 0.999 as there, 1 is the mean over all steps.
        options: See :class:`GradientOptions`, except that ``at`` is ``"features"`` by default: the features are what
            the losses are computed from, in EnCodec the output of the decoder.

    Shape:
        - Gramian ``(K, K)``; weights ``(K,)``, not negative.

    Raises:
        ValueError: If an argument is out of its range.

    Note:
        The norm is that of the whole gradient, on the joined batch of all processes (``per_batch_item=False`` in the
        authors' code). Their default averages the norms of the samples' gradients, which makes the update longer with
        larger batches. Nothing is added to the norms, where theirs have 1e-12. A loss whose gradient has always
        been zero has weight 0. The size of the update is set by ``total_norm``, not by the losses: choose the learning
        rate accordingly.

    Example:
        >>> import torch
        >>> x = torch.ones(2, requires_grad=True)
        >>> features = 2 * x
        >>> balancer = EncodecBalancer({"a": 3.0, "b": 1.0})
        >>> total = balancer({"a": features[0], "b": 100 * features[1]}, features=features)
        >>> torch.autograd.grad(total, features)[0]
        tensor([0.7500, 0.2500])

    References:
        Défossez, Copet, Synnaeve, Adi. *High Fidelity Neural Audio Compression*. TMLR 2023.
        https://arxiv.org/abs/2210.13438, Sec. 3.4. Authors' code: https://github.com/facebookresearch/encodec, MIT.
    """

    share_values: Tensor
    norm_sums: Tensor
    counts: Tensor

    def __init__(
        self,
        shares: dict[str, float] | None = None,
        total_norm: float = 1.0,
        ema_decay: float = 0.999,
        **options: Unpack[GradientOptions],
    ) -> None:
        super().__init__(**cast(GradientOptions, {"at": "features", **options}))
        check_preference("EncodecBalancer", "shares", shares)
        if not total_norm > 0:
            raise ValueError(f"EncodecBalancer: total_norm must be positive, got {total_norm}.")
        if not 0 <= ema_decay <= 1:
            raise ValueError(f"EncodecBalancer: ema_decay must be between 0 and 1, got {ema_decay}.")
        self.shares = shares
        self.total_norm = total_norm
        self.ema_decay = ema_decay
        self.weight_degree = -1

    def _create_state(self, num_tasks: int) -> None:
        self.register_buffer("share_values", self._per_task("shares", self.shares, 1.0), persistent=False)
        self.register_buffer("norm_sums", torch.zeros(num_tasks))
        self.register_buffer("counts", torch.zeros(num_tasks))

    def compute_weights(self, gramian: Tensor, losses: Tensor, rows: list[int]) -> Tensor:
        """Return the shares divided by the averaged norms."""
        norms = gramian.diagonal().clamp(min=0).sqrt()
        sums = self.ema_decay * take(self.norm_sums, rows) + norms.to(self.norm_sums.dtype)
        counts = self.ema_decay * take(self.counts, rows) + 1
        put(self.norm_sums, rows, sums)
        put(self.counts, rows, counts)
        shares = take(self.share_values, rows)
        total = shares.sum()
        shares = shares / torch.where(total > 0, total, 1)
        return torch.where(sums > 0, self.total_norm * shares * counts / torch.where(sums > 0, sums, 1), 0)
