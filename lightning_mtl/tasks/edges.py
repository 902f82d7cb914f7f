"""Binary maps: edges and saliency."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from lightning_mtl.losses.dense import BalancedBCE
from lightning_mtl.metrics import ODSF, MaxF, TaskMetrics
from lightning_mtl.tasks.base import HeadCallable
from lightning_mtl.tasks.supervised import DenseTask, in_float32


class BinaryMap(DenseTask):
    """What edges and saliency share: a class-balanced loss, probabilities, grey pictures.

    Args:
        balance: ``"image"`` balances the classes in every image, a number is the weight of positive pixels.
        ignore_index: Label of unlabelled pixels; NaN marks them as well.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.
    """

    out_channels = 1

    def __init__(
        self,
        balance: float | Literal["image"],
        ignore_index: int,
        head: nn.Module | HeadCallable | None,
        loss_weight: float,
    ) -> None:
        super().__init__(head, loss_weight)
        self.criterion = BalancedBCE(balance, ignore_index)

    def predict(self, prediction: Tensor) -> Tensor:
        """Return probabilities ``(B, 1, H, W)``."""
        return in_float32(prediction).sigmoid()

    def render(self, value: Tensor) -> Tensor:
        """Draw probabilities or labels ``(B, 1, H, W)``: 0 is black, 1 is white, unlabelled pixels are blue.

        Returns:
            Images ``(B, 3, H, W)``, uint8.
        """
        value = value.detach().float()
        known = (value >= 0) & (value <= 1)
        grey = (255 * value.nan_to_num().clamp(0, 1)).round().to(torch.uint8).expand(-1, 3, -1, -1)
        blue = torch.tensor([0, 0, 128], dtype=torch.uint8, device=value.device).view(1, 3, 1, 1)
        return torch.where(known, grey, blue)


class Edges(BinaryMap):
    """Find the pixels on the boundaries of objects or surfaces.

    Class-balanced sigmoid cross entropy; metric ``ods_f``, the F-measure at the threshold that is best for the data
    set. ``predict`` gives probabilities.

    Args:
        balance: Weight of edge pixels in the loss, the others get one minus it; or ``"image"`` for the share of other
            pixels in the image (HED). 0.95 is usual in multi-task work on PASCAL-Context and NYUD-v2.
        tolerance: Largest distance of a match in ``ods_f``, as a share of the image diagonal; 0.011 is usual on
        NYUD-v2.
        thin: Whether ``ods_f`` thins the prediction first.
        ignore_index: Label of unlabelled pixels; NaN marks them as well.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, 1, H, W)``.
        - target: 0 or 1, ``(B, 1, H, W)``.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        ``ods_f`` is not comparable with published numbers, which come from another matching; see
        :class:`~lightning_mtl.metrics.ODSF`.

    Example:
        >>> task = Edges()
        >>> task.num_labelled(torch.tensor([[[[0.0, 1.0, 255.0]]]]))
        tensor(2)

    References:
        Saining Xie, Zhuowen Tu. *Holistically-Nested Edge Detection*. ICCV, 2015. https://arxiv.org/abs/1504.06375
        Kevis-Kokitsi Maninis, Ilija Radosavovic, Iasonas Kokkinos. *Attentive Single-Tasking of Multiple Tasks*. CVPR,
        2019. https://arxiv.org/abs/1904.08918
    """

    def __init__(
        self,
        balance: float | Literal["image"] = 0.95,
        tolerance: float = 0.0075,
        thin: bool = True,
        ignore_index: int = 255,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(balance, ignore_index, head, loss_weight)
        self.metrics = TaskMetrics({"ods_f": ODSF(tolerance, thin, ignore_index=ignore_index)})


class Saliency(BinaryMap):
    """Find the pixels of the objects that catch the eye.

    Class-balanced sigmoid cross entropy; metric ``max_f``, the largest F-measure over thresholds with a squared beta of
    0.3. ``predict`` gives probabilities.

    Args:
        balance: ``"image"`` weights salient pixels by the share of the others in the image; a number is the weight of
            salient pixels, the others get one minus it.
        ignore_index: Label of unlabelled pixels; NaN marks them as well.
        head: A head, or a callable that builds one from the encoder's features; None takes the default.
        loss_weight: Constant factor of this task's loss.

    Shape:
        - prediction: logits ``(B, 1, H, W)``.
        - target: 0 or 1, ``(B, 1, H, W)``.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> task = Saliency()
        >>> task.predict(torch.zeros(1, 1, 1, 2))
        tensor([[[[0.5000, 0.5000]]]])

    References:
        Radhakrishna Achanta, Sheila Hemami, Francisco Estrada, Sabine Süsstrunk. *Frequency-tuned Salient Region
        Detection*. CVPR, 2009. https://doi.org/10.1109/CVPR.2009.5206596
        Kevis-Kokitsi Maninis, Ilija Radosavovic, Iasonas Kokkinos. *Attentive Single-Tasking of Multiple Tasks*. CVPR,
        2019. https://arxiv.org/abs/1904.08918
    """

    def __init__(
        self,
        balance: float | Literal["image"] = "image",
        ignore_index: int = 255,
        head: nn.Module | HeadCallable | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(balance, ignore_index, head, loss_weight)
        self.metrics = TaskMetrics({"max_f": MaxF(ignore_index=ignore_index)})
