"""Every callback with small arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lightning.pytorch.callbacks import Callback

from lightning_mtl.callbacks import (
    ContinualMetrics,
    GradientConflict,
    GrokkingDetector,
    InstabilityMonitor,
    ModuleChangeMonitor,
    PredictionPanels,
    ResultsTable,
    TaskAffinity,
    TimestepAffinity,
)
from tests.callbacks.scenes import make_loader


@dataclass(frozen=True)
class Case:
    """A callback; a watcher changes nothing about the training."""

    id: str
    build: Callable[[], Callback]


def _grokking_detector() -> GrokkingDetector:
    # a run of the contract test is shorter than log_every_n_steps, so that only validation metrics are logged
    images = next(iter(make_loader(batch_size=8)))
    return GrokkingDetector("val/{task}/loss", kernel=True, kernel_batch=images, kernel_every_n_checks=1)


def _continual_metrics() -> ContinualMetrics:
    return ContinualMetrics([make_loader()], count_fn=lambda module, batch: (len(module(batch[0])), len(batch[0])))


def _timestep_affinity() -> TimestepAffinity:
    # any task's loss may stand for that of a timestep
    return TimestepAffinity(
        every_n_steps=2,
        spacing=1,
        num_timesteps=2,
        loss=lambda module, batch, timestep: list(module.task_losses(batch).values())[timestep],
    )


def _task_affinity() -> TaskAffinity:
    return TaskAffinity(every_n_steps=1, measures=["cosine", "lookahead", "mean_cosine"], per_layer=True)


# ValidationLosses steers a balancer; it is tested in test_validation_losses.py.

WATCHERS = [
    Case("continual_metrics", _continual_metrics),
    Case("gradient_conflict", lambda: GradientConflict(every_n_steps=2)),
    Case("grokking", _grokking_detector),
    Case("instability", lambda: InstabilityMonitor(every_n_steps=1)),
    Case("results_table", lambda: ResultsTable(show=False)),
    Case("module_change", ModuleChangeMonitor),
    Case("timestep_affinity", _timestep_affinity),
    Case("task_affinity", _task_affinity),
    Case("prediction_panels", lambda: PredictionPanels(num_samples=4)),
]

# AffinityTable is what read_affinity returns; tested in test_affinity.py.
# GrokkingReport and GrokkingTimes are what GrokkingDetector returns; tested in test_grokking.py.
# SharpnessMonitor needs a balancer that perturbs; tested in test_sharpness.py.
# ForgettingPrioritizedFinetuning, ExperienceReplay and DarkExperienceReplay steer; tested in test_fpf.py.
# InstabilityError and InstabilityWarning are what InstabilityMonitor raises; tested in test_instability.py.
# EnhancementPanel needs a network with an enhancement; tested in test_enhancement_panel.py.
# DynamicPruning needs dynamic convolutions and steers; tested in test_dynamic_pruning.py.
# ScoreAverage and GLUEAverage need the metrics of their benchmark; tested in test_score_average.py.
