"""Diffusion models whose tasks are intervals of timesteps."""

from lightning_mtl.diffusion.denoising import NoisePrediction, NoisySamples
from lightning_mtl.diffusion.module import DiffusionTaskModule

__all__ = ["DiffusionTaskModule", "NoisePrediction", "NoisySamples"]
