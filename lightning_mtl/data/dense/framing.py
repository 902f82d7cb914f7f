"""Joint transforms that bring images of different sizes to one size."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from lightning_mtl.data.dense.transforms import IGNORE_VALUES, IMAGENET_MEAN, JointTransform, kind_of, nearer, window


def pad(sample: dict[str, Tensor], size: tuple[int, int]) -> dict[str, Tensor]:
    """Extend a sample to the right and below until it has at least this size.

    The image gets the colour that is zero after normalisation with the ImageNet statistics, a target gets its value for
    "no label".

    Args:
        sample: Image and targets.
        size: Least height and width of the result.

    Example:
        >>> pad({"image": torch.zeros(3, 1, 1), "depth": torch.ones(1, 1, 1)}, (1, 2))["depth"].tolist()
        [[[1.0, 0.0]]]
    """
    height, width = sample["image"].shape[-2:]
    tall, wide = max(height, size[0]), max(width, size[1])
    if (tall, wide) == (height, width):
        return sample
    out = dict(sample)
    for key, value in sample.items():
        kind = kind_of(key)
        if kind == "image":
            fill = torch.tensor([round(255 * mean) for mean in IMAGENET_MEAN], dtype=value.dtype).view(3, 1, 1)
            padded = fill.expand(3, tall, wide).clone()
        elif kind in IGNORE_VALUES:
            padded = value.new_full((*value.shape[:-2], tall, wide), IGNORE_VALUES[kind])
        else:
            continue
        padded[..., :height, :width] = value
        out[key] = padded
    return out


class Letterbox(JointTransform):
    """Shrink a sample that is too large, keep its aspect ratio, and pad it to a fixed size.

    Samples that fit are not enlarged. Depth keeps its metres, as the whole view is kept.

    Args:
        size: Height and width.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the sample in its frame."""
        height, width = sample["image"].shape[-2:]
        share = min(self.size[0] / height, self.size[1] / width)
        if share < 1:
            inner = (max(1, round(height * share)), max(1, round(width * share)))
            sample = window(sample, (0, 0, height, width), inner)
        return pad(sample, self.size)


class RandomRescale(JointTransform):
    """Enlarge or shrink the whole sample by a random factor s; depth is divided by s, disparity multiplied.

    Args:
        low: Smallest factor, positive.
        high: Largest factor; all factors between are equally likely.

    Raises:
        ValueError: If the factors are not positive and in order.

    References:
        Ye, Xu. *InvPT: Inverted Pyramid Multi-task Transformer for Dense Scene Understanding*. ECCV 2022.
        https://arxiv.org/abs/2203.07997: factors 0.5 to 2 before a crop, on NYUD-v2 and PASCAL-Context.
    """

    def __init__(self, low: float = 0.5, high: float = 2.0) -> None:
        if not 0 < low <= high:
            raise ValueError(f"RandomRescale: low and high must be positive and in order, got {low} and {high}.")
        self.low = low
        self.high = high

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the sample in another size."""
        scale = self.low + (self.high - self.low) * float(torch.rand((), generator=generator))
        height, width = sample["image"].shape[-2:]
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        return nearer(window(sample, (0, 0, height, width), size), scale)


class RandomCrop(JointTransform):
    """Cut a random window of a fixed size out; a sample that is too small is padded first.

    Args:
        size: Height and width.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the window."""
        sample = pad(sample, self.size)
        height, width = sample["image"].shape[-2:]
        top = int(torch.randint(height - self.size[0] + 1, (), generator=generator))
        left = int(torch.randint(width - self.size[1] + 1, (), generator=generator))
        return window(sample, (top, left, *self.size), self.size)
