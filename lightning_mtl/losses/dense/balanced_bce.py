"""Sigmoid cross entropy for maps with few positive pixels."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_mtl.losses.base import Reduction
from lightning_mtl.losses.classification.binary_cross_entropy import BinaryCrossEntropy


class BalancedBCE(BinaryCrossEntropy):
    r"""Class-balanced sigmoid cross entropy of a binary map (Xie and Tu, ICCV 2015).

    .. math:: L = -\frac{1}{N} \sum_i \beta\, y_i \log \sigma(z_i) + (1 - \beta) (1 - y_i) \log(1 - \sigma(z_i))

    with logits :math:`z`, labels :math:`y` and the sum over the :math:`N` labelled pixels. With ``balance="image"``,
    :math:`\beta = |Y_-| / |Y|` is the share of negative pixels among the labelled ones of the same image (Eq. 2 of the
    paper); a number is the same for all images: 0.95 for edges is usual on PASCAL-Context and NYUD-v2.

    Args:
        balance: ``"image"``, or the weight of positive pixels in ``(0, 1)``; negatives get one minus it.
        ignore_index: Value of unlabelled pixels; NaN marks them as well.
        reduction: ``"mean"`` or ``"none"``.

    Shape:
        - prediction: logits ``(B, 1, H, W)``.
        - target: 0, 1 or ``ignore_index``, ``(B, 1, H, W)``.

    Raises:
        ValueError: If ``balance`` is out of range, the shapes differ or a label is neither 0, 1 nor ignored.

    Note:
        The paper sums over the pixels of an image, this is the mean. Multi-task codes balance over the batch, which
        makes the loss of an image depend on its neighbours. An image without positives has weight zero, by the
        equation.

    Example:
        >>> target = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
        >>> BalancedBCE("image", reduction="none")(torch.zeros(1, 1, 1, 4), target)
        tensor([[[[0.5199, 0.1733, 0.1733, 0.1733]]]])

    References:
        Saining Xie, Zhuowen Tu. *Holistically-Nested Edge Detection*. ICCV, 2015.
        https://arxiv.org/abs/1504.06375, Eq. 2.
        Kevis-Kokitsi Maninis, Ilija Radosavovic, Iasonas Kokkinos. *Attentive Single-Tasking of Multiple Tasks*. CVPR,
        2019. https://arxiv.org/abs/1904.08918: the fixed weight 0.95 for edges.
    """

    def __init__(
        self,
        balance: float | Literal["image"] = "image",
        ignore_index: int = 255,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(ignore_index=ignore_index, reduction=reduction)
        if balance != "image" and not (isinstance(balance, (int, float)) and 0 < balance < 1):
            raise ValueError(f"{type(self).__name__}: balance must be 'image' or in (0, 1), got {balance!r}.")
        self.balance = balance

    def check_shapes(self, prediction: Tensor, target: Tensor) -> None:
        """Raise ValueError unless both are ``(B, 1, H, W)``."""
        self._check_same_shape(prediction, target)
        if target.ndim != 4:
            raise ValueError(f"{type(self).__name__}: target must be (B, 1, H, W), got {tuple(target.shape)}.")

    def units(self, prediction: Tensor, target: Tensor, labelled: Tensor) -> Tensor:
        """Return the weighted cross entropy of every pixel."""
        positive = labelled & (target == 1)
        if isinstance(self.balance, str):
            count = labelled.sum((1, 2, 3), keepdim=True).clamp(min=1)
            weight = 1 - positive.sum((1, 2, 3), keepdim=True).to(prediction.dtype) / count
        else:
            weight = torch.full((), self.balance, dtype=prediction.dtype, device=prediction.device)
        values = F.binary_cross_entropy_with_logits(
            torch.where(labelled, prediction, torch.zeros_like(prediction)),
            positive.to(prediction.dtype),
            reduction="none",
        )
        return torch.where(positive, weight, 1 - weight) * values
