"""Orders of samples: one data set, or several tasks of which each step trains one or a mixture."""

from lightning_mtl.data.samplers.sampling import (
    AnnealedSampling,
    DynamicSampling,
    FixedRatios,
    ProportionalSampling,
    RoundRobinSampling,
    TaskSampling,
    TemperatureSampling,
    UniformSampling,
)
from lightning_mtl.data.samplers.seeded import SampleIndex, SeededSampler, mix_seed, sample_generator
from lightning_mtl.data.samplers.task_sampler import SequentialTaskSampler, TaskSampler

__all__ = [
    "AnnealedSampling",
    "DynamicSampling",
    "FixedRatios",
    "ProportionalSampling",
    "RoundRobinSampling",
    "SampleIndex",
    "SeededSampler",
    "SequentialTaskSampler",
    "TaskSampler",
    "TaskSampling",
    "TemperatureSampling",
    "UniformSampling",
    "mix_seed",
    "sample_generator",
]
