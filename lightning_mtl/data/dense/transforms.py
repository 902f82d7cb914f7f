"""Joint transforms of an image and its dense targets.

A sample is a dict. The key of a target is its *kind*, or ``kind/name`` where there are several of one kind:

- ``image`` ``(3, H, W)`` uint8;
- ``segmentation`` ``(H, W)``, 255 is void;
- ``depth`` ``(1, H, W)``, metres along the optical axis, 0 is unknown; ``disparity`` ``(1, H, W)``, proportional to the
  inverse of depth, 0 is unknown;
- ``normals`` ``(3, H, W)``, unit vectors (x right, y up, z towards the viewer), the zero vector is unknown;
- ``edges`` and ``saliency`` ``(1, H, W)``, 0 or 1, 255 is void;
- ``regression`` ``(C, H, W)``, numbers that do not change with the camera, NaN is unknown;
- ``boxes`` as in :mod:`lightning_mtl.data.boxes`.

Other keys pass through untouched. Every random choice comes from the generator that is handed in.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from lightning_mtl.data.boxes import MIN_VISIBLE, mirror_boxes, window_boxes

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

IGNORE_VALUES: dict[str, float] = {
    "segmentation": 255,
    "depth": 0.0,
    "disparity": 0.0,
    "normals": 0.0,
    "edges": 255.0,
    "saliency": 255.0,
    "regression": math.nan,
}
"""Kind of dense target -> value that means "no label"."""

_PADDING = {**IGNORE_VALUES, "image": 0.0}


def kind_of(key: str) -> str:
    """Return the kind of the target under a key of a sample.

    Example:
        >>> kind_of("segmentation/parts"), kind_of("depth")
        ('segmentation', 'depth')
    """
    return key.partition("/")[0]


def _is_dense(key: str) -> bool:
    return kind_of(key) in _PADDING


class JointTransform(ABC):
    """Maps a sample to a sample; the input is left as it was."""

    @abstractmethod
    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the transformed sample.

        Args:
            sample: Image and targets, see the module's docstring.
            generator: Source of all randomness.
        """


class Compose(JointTransform):
    """Apply transforms one after the other.

    Args:
        transforms: The transforms, first to last.
    """

    def __init__(self, transforms: Sequence[JointTransform]) -> None:
        self.transforms = list(transforms)

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the sample after all transforms."""
        for transform in self.transforms:
            sample = transform(sample, generator)
        return sample


def mirror(sample: dict[str, Tensor]) -> dict[str, Tensor]:
    """Mirror left and right, as a mirrored camera sees it: the normals' x changes its sign.

    Example:
        >>> mirror({"normals": torch.tensor([[[0.6, 0.0]], [[0.0, 0.0]], [[0.8, 1.0]]])})["normals"][0].tolist()
        [[0.0, -0.6000000238418579]]
    """
    out = {key: value.flip(-1) if _is_dense(key) else value for key, value in sample.items()}
    out.update(mirror_boxes(sample))
    for key in out:
        if kind_of(key) == "normals":
            x = out[key][0]  # a copy already
            torch.sub(0.0, x, out=x)  # not -x: an invalid normal stays +0
    return out


def nearer(sample: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """Divide depth by a zoom factor and multiply disparity by it: the scene as seen by an unchanged camera.

    Example:
        >>> {key: value.item() for key, value in nearer({"depth": torch.tensor(3.0)}, 1.5).items()}
        {'depth': 2.0}
    """
    out = dict(sample)
    if scale != 1:
        for key, value in sample.items():
            if kind_of(key) == "depth":
                out[key] = value / scale
            elif kind_of(key) == "disparity":
                out[key] = value * scale
    return out


def tilt(normals: Tensor, scale: float) -> Tensor:
    """Return the normals of a surface whose depth has been divided by a factor, its lateral size kept.

    Example:
        >>> tilt(torch.tensor([0.6, 0.0, 0.8]).view(3, 1, 1), 1.5).flatten().tolist()
        [0.4472135901451111, 0.0, 0.8944271802902222]
    """
    x, y, z = normals.unbind()
    tilted = torch.stack([x, y, z * scale])
    return tilted * (x * x + y * y + tilted[2] * tilted[2]).clamp_min(1e-12).rsqrt()


def window(
    sample: dict[str, Tensor],
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    min_visible: float = MIN_VISIBLE,
) -> dict[str, Tensor]:
    """Cut a window out and resize it: the image bilinear, targets to the nearest pixel so that no label is invented.

    Depth is not scaled here: see :class:`RandomScaleCrop`. For boxes see :func:`lightning_mtl.data.boxes.window_boxes`.

    Args:
        sample: Image and targets.
        box: Top, left, height and width of the window.
        size: Height and width of the result.
        min_visible: Share of a box's area that must be left for its object to count.
    """
    top, left, height, width = box
    out = {**sample, **window_boxes(sample, box, size, min_visible)}
    for key in sample:
        if not _is_dense(key):
            continue
        cut = sample[key][..., top : top + height, left : left + width]
        if (height, width) != size:
            flat = cut[None] if cut.ndim == 2 else cut
            mode = InterpolationMode.BILINEAR if key == "image" else InterpolationMode.NEAREST_EXACT
            cut = TF.resize(flat, list(size), mode, antialias=True).reshape(*cut.shape[:-2], *size)
        out[key] = cut
    return out


class RandomHorizontalFlip(JointTransform):
    """Mirror the sample with a probability; the normals' x changes its sign.

    Args:
        p: Probability.

    Raises:
        ValueError: If ``p`` is not in [0, 1].
    """

    def __init__(self, p: float = 0.5) -> None:
        if not 0 <= p <= 1:
            raise ValueError(f"RandomHorizontalFlip: p must be in [0, 1], got {p}.")
        self.p = p

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the sample, mirrored or not."""
        return mirror(sample) if torch.rand((), generator=generator) < self.p else sample


class RandomScaleCrop(JointTransform):
    r"""Zoom into a random window: cut out 1/s of each side, enlarge it to the full size, divide depth by s.

    Disparity, the inverse of depth, is multiplied by s.

    A pixel at focal-length offset :math:`u` from the principal point shows a point at :math:`X = u z / f`. Zooming by
    :math:`s` moves it to :math:`s u`; with depth :math:`z / s` the same camera puts it at
    :math:`s u \cdot (z / s) / f`, the same :math:`X`: the scene has come nearer, its lateral size is kept. Normals keep
    their direction.

    Args:
        scales: Zoom factors, each at least 1, drawn with equal probability.
        size: Height and width of the result; None keeps the input's.
        tilt_normals: Whether normals are turned to agree with the gradient of the new depth. The multi-task benchmarks
            leave them as they are.

    Raises:
        ValueError: If ``scales`` is empty or holds a factor below 1.

    Note:
        Relief *within* the window is compressed by s as well, so that unchanged normals agree with the gradient of the
        new depth only for surfaces that face the camera. That is the published procedure, and the default for
        comparison with published numbers; ``tilt_normals=True`` multiplies z by s and restores the length, which
        is exact for every surface. Some codes divide the inverse depth of Cityscapes by s as well; that is the depth
        multiplied, and is not done here. Departs from the authors' code in that targets are taken from the nearest
        pixel; there, normals are interpolated and lose their unit length.

    References:
        Liu, Johns, Davison. *End-to-End Multi-Task Learning with Attention*. CVPR 2019.
        https://arxiv.org/abs/1803.10704. Authors' code: https://github.com/lorenmt/mtan, MIT.
    """

    def __init__(
        self,
        scales: Sequence[float] = (1.0, 1.2, 1.5),
        size: tuple[int, int] | None = None,
        tilt_normals: bool = False,
    ) -> None:
        if not scales or min(scales) < 1:
            raise ValueError(f"RandomScaleCrop: scales must hold factors of at least 1, got {tuple(scales)}.")
        self.scales = tuple(scales)
        self.size = size
        self.tilt_normals = tilt_normals

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the zoomed sample."""
        scale = self.scales[int(torch.randint(len(self.scales), (), generator=generator))]
        full_height, full_width = sample["image"].shape[-2:]
        height, width = round(full_height / scale), round(full_width / scale)
        top = int(torch.randint(full_height - height + 1, (), generator=generator))
        left = int(torch.randint(full_width - width + 1, (), generator=generator))
        out = window(sample, (top, left, height, width), self.size or (full_height, full_width))
        if self.tilt_normals and scale != 1:
            out.update({key: tilt(value, scale) for key, value in out.items() if kind_of(key) == "normals"})
        return nearer(out, scale)


class Resize(JointTransform):
    """Resize to a fixed size; depth keeps its metres, as the whole view is kept.

    Args:
        size: Height and width.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the resized sample."""
        height, width = sample["image"].shape[-2:]
        return sample if (height, width) == self.size else window(sample, (0, 0, height, width), self.size)


class PhotometricJitter(JointTransform):
    """Change brightness, contrast and saturation of the image by factors from [1 - x, 1 + x].

    Args:
        brightness: x of the brightness factor.
        contrast: x of the contrast factor.
        saturation: x of the saturation factor.

    Raises:
        ValueError: If one of them is not in [0, 1].
    """

    def __init__(self, brightness: float = 0.2, contrast: float = 0.2, saturation: float = 0.2) -> None:
        self.strengths = (brightness, contrast, saturation)
        for name, strength in zip(("brightness", "contrast", "saturation"), self.strengths, strict=True):
            if not 0 <= strength <= 1:
                raise ValueError(f"PhotometricJitter: {name} must be in [0, 1], got {strength}.")

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the sample with another image."""
        draws = (2 * torch.rand(3, generator=generator) - 1).tolist()
        image = sample["image"]
        for adjust, strength, draw in zip(
            (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation), self.strengths, draws, strict=True
        ):
            if strength:
                image = adjust(image, 1 + strength * draw)
        return {**sample, "image": image}


class Normalize(JointTransform):
    """Turn an 8-bit image into float32 with the given mean and standard deviation (of values in 0..1).

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel.
    """

    def __init__(
        self,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        self.mean = mean
        self.std = std
        self._scale = (1 / (255 * torch.tensor(std)))[:, None, None]
        self._shift = (torch.tensor(mean) / torch.tensor(std))[:, None, None]

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the sample with a float32 image."""
        return {**sample, "image": self.normalized(sample["image"])}

    def normalized(self, image: Tensor) -> Tensor:
        """Return the image alone, normalised."""
        return image.mul(self._scale).sub_(self._shift)
