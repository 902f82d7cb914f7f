"""Intervals of timesteps that are trained as tasks."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

import torch

from lightning_mtl.functional.interval_clustering import interval_clustering
from lightning_mtl.nn.diffusion import NoiseSchedule

Clusters = Literal["log_snr", "timestep", "uniform"] | Sequence[Sequence[int]]


def make_clusters(clusters: Clusters, num_clusters: int, schedule: NoiseSchedule) -> list[tuple[int, int]]:
    """Return first and last timestep of every cluster.

    Args:
        clusters: See :class:`DiffusionTaskModule`.
        num_clusters: Number of clusters, unless they are given.
        schedule: The noise schedule.

    Raises:
        ValueError: If the clusters cannot be made, or those given are not ascending within the schedule.
    """
    steps = schedule.num_steps
    if not isinstance(clusters, str):
        intervals = [(int(first), int(last)) for first, last in clusters]
        ends = [-1, *(end for interval in intervals for end in interval), steps]
        ordered = all(first <= last for first, last in intervals)
        apart = all(last < first for last, first in zip(ends[0::2], ends[1::2], strict=True))
        if not intervals or not ordered or not apart:
            raise ValueError(
                f"DiffusionTaskModule: clusters must be ascending [first, last] pairs between 0 and {steps - 1} "
                f"that do not overlap, got {intervals}."
            )
        return intervals
    if clusters == "log_snr":
        return interval_clustering(schedule.log_snr, k=num_clusters)
    if clusters == "timestep":
        return interval_clustering(torch.arange(steps), k=num_clusters)
    if clusters != "uniform":
        raise ValueError(
            f"DiffusionTaskModule: clusters must be 'log_snr', 'timestep', 'uniform' or a list, got {clusters!r}."
        )
    if not 1 <= num_clusters <= steps:
        raise ValueError(f"DiffusionTaskModule: num_clusters must be between 1 and {steps}, got {num_clusters}.")
    bounds = [round(index * steps / num_clusters) for index in range(num_clusters + 1)]
    return [(first, after - 1) for first, after in itertools.pairwise(bounds)]
