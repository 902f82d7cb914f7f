"""Joint transforms of an image, its boxes and its maps, beside those for dense targets."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torchvision.tv_tensors import Image, Mask

from lightning_mtl.data.boxes import MIN_VISIBLE, box_area, select_boxes
from lightning_mtl.data.dense.transforms import JointTransform, window


class FitInside(JointTransform):
    """Resize to the largest size of the same shape that fits inside a size: a letterbox without its bars.

    The bars come when samples are joined into a batch, as zeros on the right and below.

    Args:
        size: Height and width.

    Raises:
        ValueError: If ``size`` is not positive.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        if min(size) < 1:
            raise ValueError(f"FitInside: size must be positive, got {tuple(size)}.")
        self.size = (size[0], size[1])

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the resized sample."""
        height, width = sample["image"].shape[-2:]
        scale = min(self.size[0] / height, self.size[1] / width)
        size = tuple(min(max(1, round(n * scale)), limit) for n, limit in zip((height, width), self.size, strict=True))
        return sample if size == (height, width) else window(sample, (0, 0, height, width), (size[0], size[1]))


class RandomBoxCrop(JointTransform):
    """Cut out a random window of the image, with a probability.

    Boxes are clipped to the window. A box of which less than ``min_visible`` of the area is left is no object to be
    found any more, but no background either: it becomes a crowd box, which is neither trained on nor judged.

    Args:
        scale: Smallest and largest share of the image's area.
        ratio: Smallest and largest width / height of the window, relative to those of the image.
        min_visible: Share of a box's area that must be left.
        p: Probability.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        scale: tuple[float, float] = (0.3, 1.0),
        ratio: tuple[float, float] = (0.75, 4 / 3),
        min_visible: float = MIN_VISIBLE,
        p: float = 0.5,
    ) -> None:
        if not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"RandomBoxCrop: scale must be increasing and in (0, 1], got {tuple(scale)}.")
        if not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"RandomBoxCrop: ratio must be increasing and positive, got {tuple(ratio)}.")
        for name, value in (("min_visible", min_visible), ("p", p)):
            if not 0 <= value <= 1:
                raise ValueError(f"RandomBoxCrop: {name} must be in [0, 1], got {value}.")
        self.scale = scale
        self.ratio = ratio
        self.min_visible = min_visible
        self.p = p

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the sample, cropped or not."""
        applied, share, shape, down, right = torch.rand(5, generator=generator).tolist()
        if applied >= self.p:
            return sample
        full_height, full_width = sample["image"].shape[-2:]
        area = self.scale[0] + share * (self.scale[1] - self.scale[0])
        low, high = math.log(self.ratio[0]), math.log(self.ratio[1])
        stretch = math.exp((low + shape * (high - low)) / 2)
        side = math.sqrt(area)
        height = max(1, round(full_height * min(1.0, side / stretch)))
        width = max(1, round(full_width * min(1.0, side * stretch)))
        top, left = int(down * (full_height - height + 1)), int(right * (full_width - width + 1))
        return window(sample, (top, left, height, width), (height, width), self.min_visible)


class TorchvisionTransform(JointTransform):
    """Any transform of ``torchvision.transforms.v2``, with the random stream of the sample.

    The transform sees the image, the boxes, and the segmentation map as a mask. Boxes that it empties or removes are
    gone; dense targets other than ``segmentation`` are refused, as torchvision does not know them.

    Args:
        transform: The transform, such as ``RandomIoUCrop`` or ``RandomZoomOut``.

    Raises:
        ValueError: When a sample has depth, normals or edges.

    Note:
        Boxes that a torchvision crop removes while some of their object stays in the picture turn into background;
        :class:`RandomBoxCrop` ignores them instead.
    """

    def __init__(self, transform: nn.Module) -> None:
        self.transform = transform

    def __call__(self, sample: dict[str, Any], generator: Generator) -> dict[str, Any]:
        """Return the transformed sample; the global random state is left alone."""
        if dense := {"depth", "normals", "edges"} & set(sample):
            raise ValueError(
                f"TorchvisionTransform: sample must hold image, boxes and segmentation alone, got {sorted(dense)}; "
                "use the transforms of lightning_mtl.data."
            )
        given: dict[str, Any] = {"image": Image(sample["image"])}
        if "segmentation" in sample:
            given["segmentation"] = Mask(sample["segmentation"])
        if "boxes" in sample:
            given |= {"boxes": sample["boxes"], "labels": torch.arange(len(sample["boxes"]))}
        seed = int(torch.randint(2**63 - 1, (), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            got = self.transform(given)
        out = {**sample, "image": got["image"].as_subclass(Tensor)}
        if "segmentation" in sample:
            out["segmentation"] = got["segmentation"].as_subclass(Tensor)
        if "boxes" in sample:
            out |= {key: sample[key][got["labels"]] for key in ("rows", "crowd")}
            out["boxes"] = got["boxes"]
            out |= select_boxes(out, box_area(got["boxes"]) > 0)
        return out
