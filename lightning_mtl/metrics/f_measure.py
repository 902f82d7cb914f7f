"""F-measures of binary maps at the threshold that suits the data set best."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_mtl.metrics.base import ExactMetric, nan_unless


class MaxF(ExactMetric):
    r"""Largest F-measure over thresholds, as saliency is judged (Achanta et al., CVPR 2009).

    .. math:: F_\beta = \frac{(1 + \beta^2) P R}{\beta^2 P + R}

    with precision P and recall R of all labelled pixels of the data set together, at one threshold for all images; the
    maximum over the thresholds :math:`k/255, k = 1 \dots 255`.

    Args:
        beta_squared: The weight of recall; 0.3 is usual for saliency.
        ignore_index: Target of unlabelled pixels; NaN marks them as well.

    Shape:
        - prediction: probabilities, any shape; a pixel is predicted positive where it reaches the threshold.
        - target: 0, 1 or ``ignore_index``, the same shape.

    Note:
        Counts are pooled over the data set, as in the evaluation of dense multi-task codes (ASTMT and its successors,
        with fewer thresholds there). The saliency literature averages precision and recall over images first, which is
        undefined for images without a salient pixel. NaN if the data set has no positive pixel.

    Example:
        >>> metric = MaxF()
        >>> metric.update(torch.tensor([0.9, 0.6, 0.2]), torch.tensor([1.0, 1.0, 0.0]))
        >>> metric.compute()
        tensor(1.)

    References:
        Radhakrishna Achanta, Sheila Hemami, Francisco Estrada, Sabine Süsstrunk. *Frequency-tuned Salient Region
        Detection*. CVPR, 2009. https://doi.org/10.1109/CVPR.2009.5206596
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    positives: Tensor
    negatives: Tensor
    thresholds: Tensor

    def __init__(self, beta_squared: float = 0.3, ignore_index: int = 255) -> None:
        super().__init__()
        if beta_squared <= 0:
            raise ValueError(f"{type(self).__name__}: beta_squared must be positive, got {beta_squared}.")
        self.beta_squared = beta_squared
        self.ignore_index = ignore_index
        self.register_buffer("thresholds", torch.arange(1, 256) / 255, persistent=False)
        self.add_sum("positives", 256, dtype=torch.int64)
        self.add_sum("negatives", 256, dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        _check_same_shape(self, prediction, target)
        labelled = (target != self.ignore_index) & ~torch.isnan(target)
        reached = _thresholds_reached(prediction, self.thresholds)
        self.positives += torch.bincount(reached[labelled & (target == 1)], minlength=256)
        self.negatives += torch.bincount(reached[labelled & (target == 0)], minlength=256)

    def compute(self) -> Tensor:
        """Return the largest F-measure."""
        hits, false_alarms = _at_thresholds(self.positives), _at_thresholds(self.negatives)
        count = self.positives.sum()
        f = (1 + self.beta_squared) * hits / (self.beta_squared * count + hits + false_alarms)
        return nan_unless(count > 0, f.max())


class ODSF(ExactMetric):
    r"""F-measure of edges at the optimal data-set scale: one threshold for all images.

    A predicted edge pixel is right if a true one lies within the tolerance, a true one is found if a predicted one
    does. Precision P and recall R count all labelled pixels of the data set; the value is the largest
    :math:`2PR / (P + R)` over the thresholds :math:`k / (T + 1), k = 1 \dots T`.

    Args:
        tolerance: Largest distance of a match, as a share of the image diagonal. 0.0075 on BSDS500 and usual elsewhere;
            0.011 is usual on NYUD-v2.
        thin: Whether to thin the prediction by non-maximum suppression across the edge first.
        num_thresholds: Number of thresholds T.
        ignore_index: Target of unlabelled pixels; NaN marks them as well.

    Shape:
        - prediction: probabilities ``(B, 1, H, W)``.
        - target: 0, 1 or ``ignore_index``, ``(B, 1, H, W)``.

    Note:
        The BSDS and SEISM programs (MATLAB, C++), from which published numbers come, match each predicted pixel to at
        most one true pixel by a minimum-cost assignment. Here several pixels may match the same one, so the value is an
        upper bound of theirs for the same thinned maps, close to it when predictions are one pixel wide. They also thin
        the binary map again at every threshold. Do not compare the value with published tables; use it to compare
        models with each other. NaN if the data set has no edge pixel.

    Example:
        >>> edge = torch.zeros(1, 1, 32, 32)
        >>> edge[..., 16, :] = 1
        >>> metric = ODSF(tolerance=0.03)
        >>> metric.update(0.8 * edge.roll(1, dims=2), edge)  # one pixel off
        >>> metric.compute()
        tensor(1.)

    References:
        David R. Martin, Charless C. Fowlkes, Jitendra Malik. *Learning to detect natural image boundaries using local
        brightness, color, and texture cues*. TPAMI 26(5), 2004. https://doi.org/10.1109/TPAMI.2004.1273918
        Pablo Arbeláez, Michael Maire, Charless Fowlkes, Jitendra Malik. *Contour Detection and Hierarchical Image
        Segmentation*. TPAMI 33(5), 2011. https://doi.org/10.1109/TPAMI.2010.161, Sec. 2.3.
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    predicted: Tensor
    right: Tensor
    found: Tensor
    edges: Tensor
    thresholds: Tensor

    def __init__(
        self,
        tolerance: float = 0.0075,
        thin: bool = True,
        num_thresholds: int = 99,
        ignore_index: int = 255,
    ) -> None:
        super().__init__()
        if not 0 <= tolerance < 1:
            raise ValueError(f"{type(self).__name__}: tolerance must be in [0, 1), got {tolerance}.")
        if num_thresholds < 1:
            raise ValueError(f"{type(self).__name__}: num_thresholds must be at least 1, got {num_thresholds}.")
        self.tolerance = tolerance
        self.thin = thin
        self.ignore_index = ignore_index
        thresholds = torch.arange(1, num_thresholds + 1) / (num_thresholds + 1)
        self.register_buffer("thresholds", thresholds, persistent=False)
        for name in ("predicted", "right", "found"):
            self.add_sum(name, num_thresholds + 1, dtype=torch.int64)
        self.add_sum("edges", dtype=torch.int64)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch."""
        _check_same_shape(self, prediction, target)
        labelled = (target != self.ignore_index) & ~torch.isnan(target)
        edge = labelled & (target == 1)
        strength = prediction.detach().float()
        if self.thin:
            strength = thin_edges(strength)
        strength = torch.where(labelled, strength, torch.zeros_like(strength))
        radius = self.tolerance * math.hypot(*target.shape[-2:])
        near_edge = dilate(edge.float(), radius) > 0
        predicted = _thresholds_reached(strength, self.thresholds)
        found = _thresholds_reached(dilate(strength, radius), self.thresholds)
        size = len(self.predicted)
        self.predicted += torch.bincount(predicted[labelled], minlength=size)
        self.right += torch.bincount(predicted[labelled & near_edge], minlength=size)
        self.found += torch.bincount(found[edge], minlength=size)
        self.edges += edge.sum()

    def compute(self) -> Tensor:
        """Return the F-measure at the best threshold."""
        predicted, right, found = (_at_thresholds(counts) for counts in (self.predicted, self.right, self.found))
        precision = right / predicted.clamp(min=1)
        recall = found / self.edges
        f = 2 * precision * recall / (precision + recall)
        return nan_unless(self.edges > 0, f.nan_to_num(0.0).max())


def dilate(maps: Tensor, radius: float) -> Tensor:
    """Return the maximum over a disc around every pixel.

    Args:
        maps: Any non-negative maps.
        radius: Radius of the disc in pixels; less than 1 changes nothing.

    Shape:
        - maps: ``(B, C, H, W)``; returns the same shape.

    Example:
        >>> dilate(torch.tensor([[[[0.0, 0.0, 3.0, 0.0]]]]), radius=1.0)
        tensor([[[[0., 3., 3., 3.]]]])
    """
    height = maps.shape[-2]
    result = maps
    for row in range(min(int(radius), height - 1) + 1):
        half = int(math.sqrt(radius * radius - row * row))
        wide = F.max_pool2d(maps, (1, 2 * half + 1), stride=1, padding=(0, half))
        up = F.pad(wide[..., row:, :], (0, 0, 0, row))
        down = F.pad(wide[..., : height - row, :], (0, 0, row, 0))
        result = torch.maximum(result, torch.maximum(up, down))
    return result


def thin_edges(edges: Tensor) -> Tensor:
    """Keep the pixels that are largest across the edge, set the others to zero.

    The direction across the edge is that in which the map changes most around the pixel (the main axis of the structure
    tensor); a pixel stays if it is no smaller than the map, interpolated linearly, one pixel away on either side.

    Args:
        edges: Edge strength.

    Shape:
        - edges: ``(B, 1, H, W)``; returns the same shape.

    Example:
        >>> thin_edges(torch.tensor([0.0, 0.5, 0.9, 0.5, 0.0]).expand(1, 1, 5, 5))[0, 0, 2]
        tensor([0.0000, 0.0000, 0.9000, 0.0000, 0.0000])
    """
    around = F.pad(edges, (1, 1, 1, 1), mode="replicate")
    gradient_x = around[..., 1:-1, 2:] - around[..., 1:-1, :-2]
    gradient_y = around[..., 2:, 1:-1] - around[..., :-2, 1:-1]
    # The structure tensor: squares of the gradient, smoothed. Unlike the gradient it has a direction on the crest too.
    products = torch.cat([gradient_x.square(), gradient_y.square(), gradient_x * gradient_y], dim=1)
    triangle = torch.tensor([1.0, 2.0, 3.0, 2.0, 1.0], device=edges.device, dtype=edges.dtype) / 9
    kernel = (triangle.view(1, 5) * triangle.view(5, 1)).expand(3, 1, 5, 5)
    smooth = F.conv2d(F.pad(products, (2, 2, 2, 2), mode="replicate"), kernel, groups=3)
    xx, yy, xy = torch.split(smooth, 1, dim=1)
    angle = 0.5 * torch.atan2(2 * xy, xx - yy)
    step_x, step_y = angle.cos().squeeze(1), angle.sin().squeeze(1)
    height, width = edges.shape[-2:]
    y = torch.arange(height, device=edges.device, dtype=edges.dtype).view(1, -1, 1)
    x = torch.arange(width, device=edges.device, dtype=edges.dtype).view(1, 1, -1)
    keep = torch.ones_like(edges, dtype=torch.bool)
    for sign in (1, -1):
        grid_x = 2 * (x + sign * step_x) / max(width - 1, 1) - 1
        grid_y = 2 * (y + sign * step_y) / max(height - 1, 1) - 1
        grid = torch.stack([grid_x, grid_y], dim=-1)
        beside = F.grid_sample(edges, grid, mode="bilinear", padding_mode="border", align_corners=True)
        # Coordinates are rounded, so equal neighbours on a plateau may differ in the last digits.
        keep &= edges >= beside - 1e-5
    return torch.where(keep, edges, torch.zeros_like(edges))


def _check_same_shape(metric: ExactMetric, prediction: Tensor, target: Tensor) -> None:
    if prediction.shape != target.shape:
        raise ValueError(
            f"{type(metric).__name__}: prediction and target must have the same shape, got {tuple(prediction.shape)} "
            f"and {tuple(target.shape)}; resize the prediction to the target."
        )


def _thresholds_reached(values: Tensor, thresholds: Tensor) -> Tensor:
    """Return how many of the ascending thresholds each value reaches."""
    return torch.bucketize(values.detach().float(), thresholds.float(), right=True)


def _at_thresholds(histogram: Tensor) -> Tensor:
    """Turn counts of "reaches exactly k thresholds" into counts of "reaches threshold k", k from 1."""
    return histogram.flip(0).cumsum(0).flip(0)[1:]
