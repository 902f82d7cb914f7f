"""Photographs as a camera would have taken them with less light."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from lightning_mtl.data.dense.transforms import JointTransform


def srgb_to_linear(image: Tensor) -> Tensor:
    """Return linear light of sRGB values, both in 0..1.

    Example:
        >>> srgb_to_linear(torch.tensor([0.0, 0.5, 1.0]))
        tensor([0.0000, 0.2140, 1.0000])

    References:
        IEC 61966-2-1:1999. *Default RGB colour space - sRGB*. https://webstore.iec.ch/en/publication/6169
    """
    return torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(light: Tensor) -> Tensor:
    """Return sRGB values of linear light, both in 0..1; the inverse of :func:`srgb_to_linear`."""
    return torch.where(light <= 0.0031308, light * 12.92, 1.055 * light.clamp_min(1e-8) ** (1 / 2.4) - 0.055)


@dataclass(frozen=True)
class LowLight(JointTransform):
    r"""Darken a photograph physically: fewer photons, their noise, and the camera's.

    The sRGB values become linear light :math:`x`, which is multiplied by the exposure :math:`e`, drawn for every image
    (each stop of its range equally likely), and by an illumination ramp :math:`i` of mean 1. A sensor whose pixels hold
    :math:`N` electrons counts them, adds its read noise :math:`\sigma`, and quantizes:

    .. math:: y = \operatorname{round}_b\left(\frac{\operatorname{Poisson}(N e\, i\, x) + \sigma\, n}{N}\right),
        \qquad n \sim N(0, 1),

    so that before rounding and clipping :math:`y` has the mean :math:`e\, i\, x` and the variance
    :math:`e\, i\, x / N + \sigma^2 / N^2`. The result is sRGB again. Targets stay as they are.

    Data modules take it as ``low_light`` and darken all splits; validation and test images are the same every time.

    Args:
        exposure: Smallest and largest factor on the light, positive; 0.5 is one stop down.
        ramp: Strength of the illumination ramp in a random direction: the light at its two ends is 1 - ramp and
            1 + ramp times that in the middle. 0 lights evenly.
        full_well: Number N of electrons of a white pixel at exposure 1; None leaves out all noise.
        read_noise: Standard deviation of the read noise, in electrons.
        bits: Number of bits of the linear values, which gives 2 ** bits levels; None does not quantize.

    Shape:
        - image: ``(..., H, W)``, uint8, or floating point in 0..1; returns the same.

    Raises:
        ValueError: If an argument is out of range, or an image is not in 0..1.

    Note:
        Values below black are clipped, as no black level is kept: very dark regions become a little brighter than the
        mean above. White balance and colour matrix of a camera are not modelled, nor the correlation that demosaicking
        gives the noise.

    Example:
        >>> image = torch.full((3, 4, 4), 188, dtype=torch.uint8)  # half of the light of white
        >>> LowLight(exposure=(0.5, 0.5), full_well=None)({"image": image}, Generator())["image"][0, 0, 0].item()
        137

    References:
        Foi, Trimeche, Katkovnik, Egiazarian. *Practical Poissonian-Gaussian Noise Modeling and Fitting for Single-Image
        Raw-Data*. IEEE Transactions on Image Processing 17(10), 2008. https://doi.org/10.1109/TIP.2008.2001399
    """

    exposure: tuple[float, float] = (0.02, 0.1)
    ramp: float = 0.0
    full_well: float | None = 5000.0
    read_noise: float = 3.0
    bits: int | None = 12

    def __post_init__(self) -> None:
        low, high = self.exposure
        if not 0 < low <= high or not math.isfinite(high):
            raise ValueError(f"LowLight: exposure must be two positive numbers in order, got {low} and {high}.")
        if not 0 <= self.ramp <= 1:
            raise ValueError(f"LowLight: ramp must be in [0, 1], got {self.ramp}.")
        if self.full_well is not None and self.full_well <= 0:
            raise ValueError(f"LowLight: full_well must be positive, or None for no noise, got {self.full_well}.")
        if self.read_noise < 0:
            raise ValueError(f"LowLight: read_noise must not be negative, got {self.read_noise}.")
        if self.bits is not None and not 1 <= self.bits <= 16:
            raise ValueError(f"LowLight: bits must be in 1..16, or None for no quantization, got {self.bits}.")

    def __call__(self, sample: dict[str, Tensor], generator: Generator) -> dict[str, Tensor]:
        """Return the sample with a dark image."""
        return {**sample, "image": self.darkened(sample["image"], generator)}

    def darkened(self, image: Tensor, generator: Generator) -> Tensor:
        """Return the image alone, darkened."""
        if image.dtype == torch.uint8:
            table = srgb_to_linear(torch.arange(256, dtype=torch.float32, device=image.device) / 255)
            return (255 * self._exposed(table[image.long()], generator)).round().to(torch.uint8)
        if not image.is_floating_point() or image.min() < 0 or image.max() > 1:
            raise ValueError(
                f"LowLight: image must be uint8, or floating point in 0..1, got {image.dtype} in "
                f"{image.min().item():.3g}..{image.max().item():.3g}; darken before normalising."
            )
        return self._exposed(srgb_to_linear(image), generator)

    def _exposed(self, light: Tensor, generator: Generator) -> Tensor:
        """Return sRGB values of linear light after the exposure."""
        share, turn = torch.rand(2, generator=generator).tolist()
        low, high = self.exposure
        light = light * (low * (high / low) ** share)
        if self.ramp:
            light = light * (1 + self.ramp * _ramp(light, 2 * math.pi * turn))
        if self.full_well is not None:
            electrons = torch.poisson(light * self.full_well, generator=generator)
            noise = torch.randn(light.shape, generator=generator, dtype=light.dtype, device=light.device)
            light = (electrons + self.read_noise * noise) / self.full_well
        light = light.clamp(0, 1)
        if self.bits is not None:
            steps = 2**self.bits - 1
            light = (light * steps).round() / steps
        return linear_to_srgb(light)


def _ramp(light: Tensor, angle: float) -> Tensor:
    """Return a ramp from -1 to 1 over the image, from corner to corner."""
    height, width = light.shape[-2:]
    down = torch.linspace(-1, 1, height, dtype=light.dtype, device=light.device) if height > 1 else light.new_zeros(1)
    right = torch.linspace(-1, 1, width, dtype=light.dtype, device=light.device) if width > 1 else light.new_zeros(1)
    cosine, sine = math.cos(angle), math.sin(angle)
    return (cosine * right + sine * down[:, None]) / (abs(cosine) + abs(sine))
