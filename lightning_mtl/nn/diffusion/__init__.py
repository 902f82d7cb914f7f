"""Noise schedules and denoising networks of diffusion models."""

from lightning_mtl.nn.diffusion.denoisers import DiffusersDenoiser, MLPDenoiser
from lightning_mtl.nn.diffusion.schedule import NoiseSchedule

__all__ = ["DiffusersDenoiser", "MLPDenoiser", "NoiseSchedule"]
