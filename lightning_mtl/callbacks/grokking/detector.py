"""The callback that watches for delayed generalization."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_mtl.callbacks.figures import publish_figure
from lightning_mtl.callbacks.grokking.curves import Curves
from lightning_mtl.callbacks.grokking.detection import GrokkingTimes, Threshold, detect_grokking
from lightning_mtl.callbacks.grokking.figure import draw
from lightning_mtl.callbacks.grokking.probe import (
    MAX_SAMPLES,
    ForwardFn,
    KernelProbe,
    check_patterns,
    default_forward,
)
from lightning_mtl.callbacks.grokking.readings import MetricPair, logger_step, steps_done
from lightning_mtl.callbacks.grokking.report import GrokkingReport, make_report, values_to_log
from lightning_mtl.callbacks.grokking.tracking import KernelTracker

_ALL = "all"


class GrokkingDetector(Callback):
    r"""Watch a run for delayed generalization, and tell whether the network is still lazy (Kumar et al., ICLR 2024).

    After every validation it reads a training and a validation metric, one pair a task, and finds when each of them has
    fallen: memorization and generalization. If the second comes ``min_ratio`` times later than the first, the task has
    grokked. On a few samples of the first training batch it measures the tangent kernel
    :math:`K(x, x') = \sum_c \langle \nabla_\theta f_c(x), \nabla_\theta f_c(x') \rangle`, at initialization and from
    time to time: how far it has moved from initialization, and how well it fits the targets. A task that is memorised
    while the kernel has hardly moved is flagged as still lazy.

    It works with any LightningModule, in ``lightning`` and ``pytorch_lightning`` Trainers, with automatic and manual
    optimization. Weights, gradients, buffers, modes and random states stay as they are. Everything it remembers is in
    the checkpoint.

    Logged below ``grokking/<task>/`` (``grokking/`` where the metrics have no ``{task}``) and kept in
    ``trainer.callback_metrics``: ``state`` (0 fitting, 1 memorised, 2 generalised, 3 grokked), ``gap`` (validation over
    training value, or training minus validation for ``mode="max"``), ``memorised_at``, ``generalised_at``, ``lag``,
    and where the kernel is known ``kernel_distance``, ``alignment``, ``centred_alignment``, ``difficulty`` and ``lazy``
    (0 or 1); and ``grokking/weight_norm`` and ``grokking/parameter_distance`` (relative to the initial norm). At the
    end a figure ``grokking`` goes to the loggers that take figures and to ``grokking.png`` in the run's folder.

    Args:
        train_metric: Name of the training metric; ``{task}`` stands for the name of each task.
        val_metric: Name of the validation metric.
        tasks: Tasks to watch; None takes those of the module, if it has ``tasks``.
        mode: ``"min"`` for metrics that fall (losses), ``"max"`` for metrics that rise (accuracies). Prefer losses: a
            threshold on an accuracy exaggerates how sudden the change is.
        train_threshold: When the task counts as memorised: a number, ``"change_point"`` or ``"auto"``; see
            :func:`detect_grokking`.
        val_threshold: When the task counts as generalised.
        relative: Whether numeric thresholds are relative to the first value of the metric; None: for ``"min"`` they
            are, for ``"max"`` not. The first validation value is that of the sanity check, where there is one.
        patience: Checks in a row that must be beyond the threshold.
        min_ratio: How many times later than memorization generalization must come to be called grokking.
        smoothing: Use the median of this many last checks, against noise.
        kernel: Whether to measure the kernel. None does so if possible, and says once why not.
        kernel_samples: How many samples of the first training batch to measure it on, 4 to 256.
        kernel_outputs: Largest number of backward passes for each sample and task. With more outputs than that, random
            combinations of outputs are used: an unbiased estimate.
        kernel_parameters: Parameters or modules whose gradients make up the kernel, by name or pattern
            (``"encoder"``, ``"*.bias"``); None takes all trained ones.
        kernel_every_n_checks: Measure after every n-th validation. None measures when the measurements so far took less
            than 2 % of the time since training began; whenever a task changes its state a measurement is made anyway.
        kernel_forward: Callable from module and batch to outputs and targets (tensors, or mappings by task); None
            understands batches ``(inputs, targets)`` and modules called with the inputs.
        kernel_batch: Batch to take the samples from instead of the first training batch.
        lazy_distance: A kernel that has moved less than this, as one minus the cosine with the initial one, is lazy.
        stop_when_generalised: Stop training when all tasks have generalised.
        figure: Draw the figure at the end.
        seed: Seed of random combinations of outputs and of the sketch of long gradients. The Trainer's random state is
            not touched.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: If a metric is never logged, there is no validation, a task or parameter name is
            unknown, or the kernel is wanted but cannot be measured.

    Note:
        The resolution of the times is the validation interval. A training metric that is logged per epoch is read at
        the end of its epoch; validations within an epoch see the value of the epoch before.

        Gradients longer than 65 521 numbers are projected to that length with random signs, which keeps inner products
        to about 0.4 % of the product of the norms; checkpoints grow by the samples, the small kernels, and this vector
        rather than by a copy of the network.

        The kernel is that of single samples in ``eval`` mode without autocast. With several processes it is measured on
        the first one, with sharded parameters not at all.

        Several detectors in one Trainer need different metrics.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> detector = GrokkingDetector(train_metric="train_loss", val_metric="val_loss")
        >>> trainer = Trainer(callbacks=[detector], accelerator="cpu", logger=False)
        >>> detector.report()
        {}

    References:
        Kumar, Bordelon, Gershman, Pehlevan. *Grokking as the Transition from Lazy to Rich Training Dynamics*. ICLR
        2024. https://arxiv.org/abs/2310.06110
    """

    def __init__(
        self,
        train_metric: str = "train/{task}/loss",
        val_metric: str = "val/{task}/loss",
        tasks: Sequence[str] | None = None,
        mode: Literal["min", "max"] = "min",
        train_threshold: Threshold = 0.1,
        val_threshold: Threshold = 0.1,
        relative: bool | None = None,
        patience: int = 2,
        min_ratio: float = 2.5,
        smoothing: int = 1,
        kernel: bool | None = None,
        kernel_samples: int = 32,
        kernel_outputs: int = 4,
        kernel_parameters: Sequence[str] | None = None,
        kernel_every_n_checks: int | None = None,
        kernel_forward: ForwardFn | None = None,
        kernel_batch: Any = None,
        lazy_distance: float = 0.1,
        stop_when_generalised: bool = False,
        figure: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if ("{task}" in train_metric) != ("{task}" in val_metric):
            raise ValueError(
                f"GrokkingDetector: both metrics or none must hold '{{task}}', got {train_metric!r} and {val_metric!r}."
            )
        if tasks is not None and "{task}" not in train_metric:
            raise ValueError("GrokkingDetector: tasks must be None unless the metrics hold '{task}'; leave it out.")
        if mode not in ("min", "max"):
            raise ValueError(f"GrokkingDetector: mode must be 'min' or 'max', got {mode!r}.")
        if mode == "max" and relative:
            raise ValueError("GrokkingDetector: relative must be False for mode='max'; give thresholds as they are.")
        for argument, threshold in (("train_threshold", train_threshold), ("val_threshold", val_threshold)):
            if isinstance(threshold, str) and threshold not in ("auto", "change_point"):
                raise ValueError(
                    f"GrokkingDetector: {argument} must be a number, 'auto' or 'change_point', got {threshold!r}."
                )
        counts = {"patience": patience, "smoothing": smoothing, "kernel_outputs": kernel_outputs}
        counts |= {} if kernel_every_n_checks is None else {"kernel_every_n_checks": kernel_every_n_checks}
        for argument, value in counts.items():
            if value < 1:
                raise ValueError(f"GrokkingDetector: {argument} must be at least 1, got {value}.")
        if not 4 <= kernel_samples <= MAX_SAMPLES:
            raise ValueError(f"GrokkingDetector: kernel_samples must be 4 to {MAX_SAMPLES}, got {kernel_samples}.")
        if min_ratio < 1:
            raise ValueError(f"GrokkingDetector: min_ratio must be at least 1, got {min_ratio}.")
        if not 0 < lazy_distance < 1:
            raise ValueError(f"GrokkingDetector: lazy_distance must be between 0 and 1, got {lazy_distance}.")
        self.train_metric = train_metric
        self.val_metric = val_metric
        self.metrics = MetricPair(train_metric, val_metric)
        self.tasks = tasks
        self.mode = mode
        self.train_threshold = train_threshold
        self.val_threshold = val_threshold
        self.relative = mode == "min" if relative is None else relative
        self.patience = patience
        self.min_ratio = min_ratio
        self.smoothing = smoothing
        self.kernel = kernel
        self.kernel_samples = kernel_samples
        self.kernel_outputs = kernel_outputs
        self.kernel_parameters = kernel_parameters
        self.kernel_every_n_checks = kernel_every_n_checks
        self.kernel_forward = kernel_forward
        self.kernel_batch = kernel_batch
        self.lazy_distance = lazy_distance
        self.stop_when_generalised = stop_when_generalised
        self.figure = figure
        self.seed = seed
        self._names: list[str] = []
        self._forget()

    def _forget(self) -> None:
        self._curves = {task: Curves() for task in self._names}
        self._times: dict[str, GrokkingTimes] = {}
        self._tracker = self._make_tracker()
        self._checks = 0
        self._warned_of_early_stopping = False
        self._unlogged: tuple[int, dict[str, float]] | None = None

    def _make_tracker(self) -> KernelTracker:
        probe = KernelProbe(
            forward=self.kernel_forward or default_forward,
            tasks=self._names if self.metrics.per_task else None,
            max_samples=self.kernel_samples,
            max_directions=self.kernel_outputs,
            patterns=self.kernel_parameters,
            seed=self.seed,
        )
        return KernelTracker(probe, self.kernel, self.kernel_every_n_checks)

    @property
    def state_key(self) -> str:
        """Identifier of this detector's state in a checkpoint."""
        return self._generate_state_key(train_metric=self.train_metric, val_metric=self.val_metric)

    # ------------------------------------------------------------------ what is known
    @property
    def curves(self) -> Mapping[str, Curves]:
        """Task -> the curves as they were read, and the measures of the kernel."""
        return self._curves

    def report(self) -> dict[str, GrokkingReport]:
        """Return task -> what is known about it; ``all`` is the task where the metrics have no ``{task}``."""
        return {
            task: make_report(self._detect(curves), curves, self.lazy_distance) for task, curves in self._curves.items()
        }

    def _detect(self, curves: Curves) -> GrokkingTimes:
        # without its reference a curve is NaN throughout, and scaling it means nothing
        train_scale, val_scale = (
            1.0 if not self.relative or math.isnan(reference) else reference
            for reference in (curves.train_reference, curves.val_reference)
        )
        return detect_grokking(
            curves.steps,
            [value / train_scale for value in curves.train],
            [value / val_scale for value in curves.val],
            self.train_threshold,
            self.val_threshold,
            self.patience,
            self.min_ratio,
            self.mode,
            self.smoothing,
        )

    # ------------------------------------------------------------------ set-up
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the tasks; start anew, unless the same Trainer goes on."""
        if stage != "fit":
            return
        check_patterns(pl_module, self.kernel_parameters)
        names = self._task_names(pl_module)
        step = steps_done(trainer, pl_module)
        seen = max((curves.steps[-1] for curves in self._curves.values() if curves.steps), default=0)
        if step == 0 or step < seen or names != self._names:
            self._names = names
            self._forget()

    def _task_names(self, module: pl.LightningModule) -> list[str]:
        if not self.metrics.per_task:
            return [_ALL]
        if self.tasks is not None:
            return list(self.tasks)
        known = getattr(module, "tasks", None)
        names = list(known.keys()) if isinstance(known, Mapping | nn.ModuleDict) else []
        if not names:
            raise MisconfigurationException(
                f"GrokkingDetector: train_metric is {self.train_metric!r}, but {type(module).__name__} has no tasks; "
                "give the names that it logs, for example train_metric='train_loss', val_metric='val_loss', or name "
                "the tasks with tasks=[...]."
            )
        return names

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there will be validations."""
        if not trainer.enable_validation:
            raise MisconfigurationException(
                "GrokkingDetector: there is no validation, so generalization cannot be seen; give the Trainer a "
                "validation loader, define validation_step, and leave limit_val_batches above 0."
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look whether the kernel can be measured."""
        self._tracker.prepare(pl_module, trainer.strategy.model)

    # ------------------------------------------------------------------ training
    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Record where parameters and kernels are before the first step."""
        step = steps_done(trainer, pl_module, in_batch=False)
        samples = batch if self.kernel_batch is None else trainer.precision_plugin.convert_input(self.kernel_batch)
        for task, found in self._tracker.begin(trainer, pl_module, samples, step).items():
            self._curves[task].add_measures(step, found)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the first value of training metrics as soon as they are logged."""
        if self.relative and not self._checks:
            self.metrics.first_train(trainer, self._curves)

    # ------------------------------------------------------------------ checks
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read the metrics, and measure the kernel if it is time."""
        if trainer.state.fn != "fit":
            return
        if trainer.sanity_checking:
            self.metrics.untrained_val(trainer, self._curves)
            return
        self._flush(trainer)
        if not self._checks:
            self.metrics.require(trainer, list(self._curves), "val_metric")
        self._checks += 1
        self.metrics.record(trainer, self._curves, steps_done(trainer, pl_module))
        self._judge(trainer, pl_module, logger_step(trainer), due=self._tracker.due(self._checks))
        if not trainer.is_last_batch:
            self._flush(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read training metrics that are logged per epoch, if a validation ended the epoch."""
        interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._checks and trainer.global_step >= interval:  # metrics of steps have had their chance, too
            self.metrics.require(trainer, list(self._curves), "train_metric")
        if self._unlogged is None:
            return
        if self.metrics.correct_train(trainer, self._curves):
            self._judge(trainer, pl_module, self._unlogged[0], due=False)
        self._flush(trainer)

    def _judge(self, trainer: pl.Trainer, module: pl.LightningModule, step: int, due: bool) -> None:
        """Find the states, measure what is due, and keep what is to be logged."""
        if self.relative:
            self.metrics.check_references(self._curves)
        before, self._times = self._times, {task: self._detect(curves) for task, curves in self._curves.items()}
        changed = [
            task
            for task, times in self._times.items()
            if times.state != (before[task].state if task in before else "fitting")
        ]
        numbers, measures = self._tracker.measure(trainer, module, due or bool(changed))
        for task, found in measures.items():
            self._curves[task].add_measures(self._curves[task].steps[-1], found)
        logged = {f"grokking/{name}": value for name, value in numbers.items()}
        for task, curves in self._curves.items():
            report = make_report(self._times[task], curves, self.lazy_distance)
            prefix = f"grokking/{task}/" if self.metrics.per_task else "grokking/"
            values = values_to_log(report, curves, as_ratio=self.mode == "min")
            logged |= {f"{prefix}{name}": value for name, value in values.items()}
            if task in changed:
                _announce(task, report)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in logged.items()})
        self._unlogged = (step, logged)
        self._warn_of_early_stopping(trainer)
        if self.stop_when_generalised and all(t.state in ("generalised", "grokked") for t in self._times.values()):
            trainer.should_stop = True

    def _warn_of_early_stopping(self, trainer: pl.Trainer) -> None:
        others: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        waiting = [task for task, times in self._times.items() if times.state == "memorised"]
        stopping = any(hasattr(other, "wait_count") and hasattr(other, "patience") for other in others)
        if waiting and stopping and not self._warned_of_early_stopping:
            self._warned_of_early_stopping = True
            rank_zero_warn(
                f"GrokkingDetector: {waiting} are memorised but have not generalised, and EarlyStopping is active; it "
                "may stop the run before they generalise. Remove it, or raise its patience."
            )

    # ------------------------------------------------------------------ output
    def _flush(self, trainer: pl.Trainer) -> None:
        if self._unlogged is not None:
            step, values = self._unlogged
            self._unlogged = None
            for logger in trainer.loggers:
                logger.log_metrics(values, step=step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the figure."""
        self._flush(trainer)
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not self._checks:
            rank_zero_warn(
                f"GrokkingDetector: training ended after {steps_done(trainer, pl_module)} steps without a validation; "
                "lower val_check_interval or check_val_every_n_epoch."
            )
            return
        for task, curves in self._curves.items():
            if all(math.isnan(value) for value in curves.train):
                rank_zero_warn(
                    f"GrokkingDetector: train_metric {self.train_metric.format(task=task)!r} was never logged; log it "
                    "at least once between validations, for example with a lower log_every_n_steps."
                )
        if self.figure:
            times = {task: self._detect(curves) for task, curves in self._curves.items()}
            publish_figure(trainer, "grokking", draw(self._curves, times, (self.train_metric, self.val_metric)))

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return everything that is remembered."""
        return {
            "curves": {task: curves.state_dict() for task, curves in self._curves.items()},
            "tracker": self._tracker.state_dict(),
            "checks": self._checks,
            "warned_of_early_stopping": self._warned_of_early_stopping,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state.

        Raises:
            MisconfigurationException: If its kernels were measured with other settings.
        """
        self._forget()
        known = {task: Curves.from_state(state) for task, state in state_dict["curves"].items()}
        self._curves = {task: known.get(task, Curves()) for task in self._names or known}
        self._times = {task: self._detect(curves) for task, curves in self._curves.items() if curves.steps}
        self._tracker.load_state_dict(state_dict["tracker"])
        self._checks = state_dict["checks"]
        self._warned_of_early_stopping = state_dict["warned_of_early_stopping"]


def _announce(task: str, report: GrokkingReport) -> None:
    """Tell that a task has come to another state."""
    what = f"GrokkingDetector: {task!r} {report.state}"
    if report.lag is not None:
        what += f", memorised at step {report.memorised_at}, generalised at step {report.generalised_at}"
    outlook = " The network is still lazy: expect delayed generalization." if report.still_lazy else ""
    rank_zero_info(f"{what}; {report.evidence}.{outlook}")
