"""How much noise there is at every timestep, and one step back from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_mtl.nn.recorded import Recorded

_CLIP = 1e-8  # distance of the signal share from 0 and 1 for a finite logarithm
_LARGEST_BETA = 0.999


class NoiseSchedule(nn.Module, Recorded):
    r"""The variances of a diffusion process in discrete time (Ho et al., NeurIPS 2020).

    With :math:`\bar\alpha_t = \prod_{s \le t} (1 - \beta_s)`, the *signal share*, a sample at timestep t is

    .. math:: x_t = \sqrt{\bar\alpha_t}\, x_0 + \sqrt{1 - \bar\alpha_t}\, \epsilon, \qquad \epsilon \sim N(0, I), \qquad
        \mathrm{SNR}(t) = \frac{\bar\alpha_t}{1 - \bar\alpha_t}

    Timesteps go from 0 (least noise) to T - 1.

    Args:
        num_steps: Number T of timesteps.
        kind: How :math:`\beta` grows: ``"linear"`` from ``beta_start`` to ``beta_end``, or ``"cosine"``, where the
            signal share follows a squared cosine.
        beta_start: First variance of the linear schedule.
        beta_end: Last variance of the linear schedule. The customary values are for T = 1000.
        betas: All variances; stands in place of everything else.

    Raises:
        ValueError: If there is no timestep, ``kind`` is unknown or a variance is not between 0 and 1.

    Example:
        >>> schedule = NoiseSchedule(num_steps=100, beta_end=0.06)
        >>> schedule.snr[[0, 50, 99]]
        tensor([9.9990e+03, 8.3926e-01, 4.8819e-02], dtype=torch.float64)

    References:
        Ho, Jain, Abbeel. *Denoising Diffusion Probabilistic Models*. NeurIPS 2020. https://arxiv.org/abs/2006.11239

        Nichol, Dhariwal. *Improved Denoising Diffusion Probabilistic Models*. ICML 2021, Eq. 17.
        https://arxiv.org/abs/2102.09672
    """

    signal_scale: Tensor
    noise_scale: Tensor

    def __init__(
        self,
        num_steps: int = 1000,
        kind: Literal["linear", "cosine"] = "linear",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        betas: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if betas is not None:
            variances = torch.tensor([float(beta) for beta in betas], dtype=torch.float64)
        elif num_steps < 1:
            raise ValueError(f"NoiseSchedule: num_steps must be at least 1, got {num_steps}.")
        elif kind == "linear":
            variances = torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)
        elif kind == "cosine":
            variances = _cosine_betas(num_steps)
        else:
            raise ValueError(f"NoiseSchedule: kind must be 'linear' or 'cosine', got {kind!r}.")
        if not len(variances) or not ((variances > 0) & (variances < 1)).all():
            raise ValueError(
                f"NoiseSchedule: betas must be at least one number, all between 0 and 1, got {variances.tolist()}."
            )
        self.num_steps = len(variances)
        # plain tensors: what is computed from them once a step of sampling needs no device, but all digits
        self.betas = variances
        self.alphas_cumprod = (1 - variances).cumprod(0)
        self.register_buffer("signal_scale", self.alphas_cumprod.sqrt().float(), persistent=False)
        self.register_buffer("noise_scale", (1 - self.alphas_cumprod).sqrt().float(), persistent=False)

    @classmethod
    def from_diffusers(cls, scheduler: Any) -> NoiseSchedule:
        """Return the schedule of a scheduler from ``diffusers``, such as ``DDPMScheduler``.

        Args:
            scheduler: Has the variances as ``betas``.

        Raises:
            ValueError: If it was set to predict something else than the noise.
        """
        prediction = getattr(scheduler.config, "prediction_type", "epsilon")
        if prediction != "epsilon":
            raise ValueError(
                f"NoiseSchedule: {type(scheduler).__name__} must have prediction_type='epsilon', got {prediction!r}; "
                "networks are trained to predict the noise here."
            )
        return cls(betas=scheduler.betas.double().tolist())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NoiseSchedule:
        """Move the tables, but leave them in float32 when a model is turned to half precision."""
        super()._apply(lambda tensor: fn(tensor).to(torch.float32), recurse)  # type: ignore[no-untyped-call]
        tables = {"signal_scale": self.alphas_cumprod.sqrt(), "noise_scale": (1 - self.alphas_cumprod).sqrt()}
        for name, table in tables.items():
            setattr(self, name, table.to(getattr(self, name)))
        return self

    @property
    def snr(self) -> Tensor:
        """Signal-to-noise ratio of every timestep, ``(T,)`` float64."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    @property
    def log_snr(self) -> Tensor:
        """Logarithm of :attr:`snr`, of signal shares clipped to 1e-8 from 0 and 1, hence finite."""
        return self.alphas_cumprod.clamp(_CLIP, 1 - _CLIP).logit()

    def add_noise(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the samples at these timesteps.

        Args:
            clean: Samples without noise.
            noise: Standard normal numbers.
            timesteps: One for each sample.

        Shape:
            - clean and noise: ``(B, ...)``; timesteps: ``(B,)`` int64; returns ``(B, ...)``.
        """
        shape = (-1, *[1] * (clean.ndim - 1))
        signal, share = self.signal_scale[timesteps].view(shape), self.noise_scale[timesteps].view(shape)
        return (signal * clean + share * noise).to(clean.dtype)

    def sampling_timesteps(self, num_steps: int | None = None) -> list[int]:
        """Return the timesteps that sampling visits, from the noisiest to 0, evenly spread.

        Args:
            num_steps: How many; None visits all.

        Raises:
            ValueError: If it is not between 1 and the number of timesteps.
        """
        count = self.num_steps if num_steps is None else num_steps
        if not 1 <= count <= self.num_steps:
            raise ValueError(f"NoiseSchedule: num_steps must be between 1 and {self.num_steps}, got {num_steps}.")
        if count == 1:
            return [self.num_steps - 1]
        return [round(i * (self.num_steps - 1) / (count - 1)) for i in range(count - 1, -1, -1)]

    def step_back(
        self,
        sample: Tensor,
        noise: Tensor,
        timestep: int,
        previous: int,
        eta: float = 1.0,
        clip: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Return samples of a less noisy timestep, given the predicted noise.

        .. math:: x_s = \sqrt{\bar\alpha_s}\, \hat x_0 + \sqrt{1 - \bar\alpha_s - \sigma^2}\, \hat\epsilon + \sigma z,
            \qquad \sigma^2 = \eta^2 \frac{1 - \bar\alpha_s}{1 - \bar\alpha_t}
            \left(1 - \frac{\bar\alpha_t}{\bar\alpha_s}\right)

        Args:
            sample: Samples at ``timestep``.
            noise: Noise that the network sees in them.
            timestep: Their timestep t.
            previous: Timestep s to go to, smaller than t; -1 for the clean sample.
            eta: 1 for ancestral sampling (DDPM), 0 for deterministic steps (DDIM).
            clip: Largest absolute value of the clean sample estimated on the way; None does not clip.
            generator: Draws z; None takes torch's global one.

        References:
            Song, Meng, Ermon. *Denoising Diffusion Implicit Models*. ICLR 2021, Eq. 12 and 16.
            https://arxiv.org/abs/2010.02502
        """
        here = float(self.alphas_cumprod[timestep])
        there = float(self.alphas_cumprod[previous]) if previous >= 0 else 1.0
        clean = (sample - math.sqrt(1 - here) * noise) / math.sqrt(here)
        if clip is not None:
            clean = clean.clamp(-clip, clip)
            noise = (sample - math.sqrt(here) * clean) / math.sqrt(1 - here)
        variance = eta**2 * (1 - there) / (1 - here) * (1 - here / there)
        result = math.sqrt(there) * clean + math.sqrt(max(1 - there - variance, 0.0)) * noise
        if variance > 0:
            drawn = torch.randn(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            result = result + math.sqrt(variance) * drawn
        return result


def _cosine_betas(num_steps: int) -> Tensor:
    time = torch.arange(num_steps + 1, dtype=torch.float64) / num_steps
    share = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
    return (1 - share[1:] / share[:-1]).clamp(max=_LARGEST_BETA)
