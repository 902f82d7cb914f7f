"""The callback."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from lightning_mtl.balancers.base import is_distributed
from lightning_mtl.callbacks.figures import publish_figure
from lightning_mtl.callbacks.instability.alarms import ALARM_KINDS, Alarm, AlarmKind, InstabilityError, LossSpikes
from lightning_mtl.callbacks.instability.blocks import find_blocks, group_parameters, match
from lightning_mtl.callbacks.instability.history import AlarmLog, History
from lightning_mtl.callbacks.instability.judge import Limits, judge_forecast
from lightning_mtl.callbacks.instability.losses import LossWatch, diagnose
from lightning_mtl.callbacks.instability.mitigation import ACTIONS, Action, drop_gradients, react
from lightning_mtl.callbacks.instability.probe import ForwardProbe
from lightning_mtl.callbacks.instability.quantities import QUANTITIES, Quantity, require_found
from lightning_mtl.callbacks.instability.readings import Readings, collect, merge
from lightning_mtl.callbacks.instability.run_facts import (
    accumulated_batches,
    loss_of_batch,
    loss_scale,
    num_trained_parameters,
    peak_learning_rate,
)
from lightning_mtl.callbacks.instability.statistics import ParameterStatistics
from lightning_mtl.callbacks.instability.training_step import AroundTrainingStep
from lightning_mtl.module import NonFiniteLossError
from lightning_mtl.scaling.attention_forecast import AttentionLogitForecast

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class _Batch:
    """The batch under way, and the optimizer step that it belongs to."""

    full: bool = False
    stepped: bool = True
    skip: bool = False
    steps_before: int = 0
    losses: list[Tensor] = field(default_factory=list)
    alarms: list[Alarm] = field(default_factory=list)


class InstabilityMonitor(Callback):
    r"""Watch a run for the instabilities that end large ones, and say where they start.

    It works with any LightningModule as it is, in ``lightning.pytorch`` and ``pytorch_lightning`` Trainers, with
    automatic and manual optimization, accumulation, mixed precision, several processes and ``torch.compile``. Weights
    and random states are bit for bit those of a run without it. It sees what the Trainer's own training steps run, not
    validation or what other callbacks run in between.

    In every step it looks at the loss: a value that is not finite is traced to the first block, and on a CPU to the
    first layer, whose output is not finite; a loss that stands out from those before it is a spike. Every
    ``every_n_steps`` optimizer steps, and at the first one, it measures

    - ``attention``: the largest attention logit and the mean entropy of the weights of every attention that runs
      through ``F.scaled_dot_product_attention``, ``nn.MultiheadAttention`` (its fused path too), or a softmax between
      two matrix products, which covers timm and transformers models with fused or eager attention;
    - ``log_z``: the mean log-partition :math:`\log Z` of the output logits and its drift from the first value;
    - ``activations``, ``gradients``, ``parameters``, ``updates``: root mean squares of every block; updates are what
      the learning rate multiplies (:math:`\Delta` of Adam).

    Everything is logged as ``instability/<quantity>/<module>`` to the Trainer's loggers, and is in
    ``trainer.callback_metrics`` for other callbacks. ``summary()`` tells what is tracked and when alarms were raised,
    ``plot()`` draws the history, which also goes to the loggers at the end.

    Args:
        every_n_steps: Optimizer steps between two measurements.
        track: Which quantities to measure; None measures all that the model has. One that is named must be found.
        blocks: Names of the modules to report for, with shell wildcards; None takes the members of the model's lists of
            layers and the layers beside them.
        attention: Names of the attention modules, with wildcards; None takes all that are seen.
        logits: ``"auto"`` takes what enters a cross entropy or ``log_softmax``; else names of modules whose outputs are
            logits (classes last in 2 and 3 dimensions, second in 4), or a function from what ``training_step`` returned
            to logits or ``{name: logits}``; None takes none.
        attention_warn: Attention logit from which on to warn.
        attention_critical: Attention logit that is critical: every run of the paper above 1e4 diverged.
        log_z_warn: Absolute mean log Z from which on to warn; None does not.
        epsilon_ratio: Warn when a block's gradient RMS is below this many times Adam's epsilon.
        spike_threshold: Robust standard deviations above the median that make a spike.
        spike_window: Number of losses that a new one is compared with.
        forecast: Forecast from smaller runs; says before the first step whether the attention logits of this run will
            become critical.
        num_params: Size of this model, counted as in the forecast's runs; None counts what is trained outside of
            embeddings.
        critical: Kinds of alarm that call for the action.
        on_critical: The action: ``"warn"``, ``"raise"`` an :class:`InstabilityError`, ``"stop"`` the Trainer,
            ``"skip"`` the update of a batch whose loss or gradients are not finite (or whose loss is a spike, if
            ``critical`` holds ``"loss_spike"``; it then looks in every step), or ``"lower_lr"``. Where a loss that is
            not finite is noticed in time, its update is dropped under every action but ``"warn"``.
        lr_factor: Factor on all learning rates when ``on_critical="lower_lr"``; schedules go on from there.
        max_queries: Number of evenly spaced queries of each sequence whose logits are examined; None examines all.
        check_every_n_steps: Optimizer steps between two looks at the losses. None looks in every step on the CPU in one
            process, where it costs nothing, and else with the measurements; every step is judged in either case.
        log_modules: Log a value per module; otherwise only the values over all of them.

    Raises:
        ValueError: If an argument is out of range.
        MisconfigurationException: If a pattern matches nothing, or a quantity named in ``track`` is not found.

    Note:
        Attention inside other fused kernels (flash-attn, xformers, ``flex_attention``) is not seen. A network compiled
        with ``torch.compile(network)`` or ``network.compile()`` runs as it is and, in measured steps, a second time
        uncompiled without gradients; of a compiled LightningModule, only losses, gradients, parameters and updates are
        seen. With several processes, logits are maxima and all else means over them, and alarms are raised at checks.
        In 16-bit mixed precision, gradients that are not finite are the scaler's business and raise no alarm.
        The paper's ``log_z`` has no threshold; a log Z that leaves the log of the number of classes behind is a drift.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[InstabilityMonitor(on_critical="stop")], accelerator="cpu", logger=False)

    References:
        Wortsman, Liu, Xiao, Everett, Alemi, Adlam, Co-Reyes, Gur, Kumar, Novak, Pennington, Sohl-Dickstein, Xu, Lee,
        Gilmer, Kornblith. *Small-scale proxies for large-scale Transformer training instabilities*. ICLR 2024.
        https://arxiv.org/abs/2309.14322. Code of the authors' group: https://github.com/google-deepmind/nanodo,
        Apache-2.0.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        track: Sequence[Quantity] | None = None,
        blocks: Sequence[str] | None = None,
        attention: Sequence[str] | None = None,
        logits: Literal["auto"] | Sequence[str] | Callable[[Any], Any] | None = "auto",
        attention_warn: float = 1e3,
        attention_critical: float = 1e4,
        log_z_warn: float | None = None,
        epsilon_ratio: float = 10.0,
        spike_threshold: float = 6.0,
        spike_window: int = 100,
        forecast: AttentionLogitForecast | None = None,
        num_params: float | None = None,
        critical: Sequence[AlarmKind] = ("attention", "nonfinite"),
        on_critical: Action = "warn",
        lr_factor: float = 0.5,
        max_queries: int | None = 64,
        check_every_n_steps: int | None = None,
        log_modules: bool = True,
    ) -> None:
        super().__init__()
        _check_positive(
            every_n_steps=every_n_steps,
            attention_warn=attention_warn,
            spike_threshold=spike_threshold,
            max_queries=max_queries,
            check_every_n_steps=check_every_n_steps,
            log_z_warn=log_z_warn,
            num_params=num_params,
        )
        _check_known("track", track or (), QUANTITIES)
        _check_known("critical", critical, ALARM_KINDS)
        _check_known("on_critical", [on_critical], ACTIONS)
        if attention_critical < attention_warn:
            raise ValueError(
                f"InstabilityMonitor: attention_critical must be at least attention_warn={attention_warn}, got "
                f"{attention_critical}."
            )
        if spike_window < 10:
            raise ValueError(f"InstabilityMonitor: spike_window must be at least 10, got {spike_window}.")
        if not 0 < lr_factor < 1:
            raise ValueError(f"InstabilityMonitor: lr_factor must be in (0, 1), got {lr_factor}.")
        self.every_n_steps = every_n_steps
        self.track = None if track is None else tuple(track)
        self.blocks = blocks
        self.attention = attention
        self.logits = logits
        self.limits = Limits(attention_warn, attention_critical, log_z_warn, epsilon_ratio)
        self.forecast = forecast
        self.num_params = num_params
        self.critical = frozenset(critical)
        self.on_critical = on_critical
        self.lr_factor = lr_factor
        self.max_queries = max_queries
        self.check_every_n_steps = check_every_n_steps
        self.log_modules = log_modules
        self.history = History()
        self.spikes = LossSpikes(spike_threshold, spike_window)
        self.step = 0
        """Number of optimizer steps seen, over all resumptions."""
        self._alarms = AlarmLog(self.history, critical)
        self._losses = LossWatch(self.history, self.spikes, self._alarms)
        self._probe: ForwardProbe | None = None
        self._sizes: ParameterStatistics | None = None
        self._around: AroundTrainingStep | None = None
        self._check_every = 1
        self._batch = _Batch()

    # ------------------------------------------------------------------ hooks
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find what can be watched, and forecast."""
        quantities = QUANTITIES if self.track is None else self.track
        blocks = find_blocks(pl_module, self.blocks)
        on_cpu = trainer.strategy.root_device.type == "cpu"
        self._check_every = self.check_every_n_steps or (1 if on_cpu and not is_distributed() else self.every_n_steps)
        self._losses.prompt = on_cpu and not is_distributed() and self._check_every == 1
        names = [name for name, _ in pl_module.named_modules() if name]
        watched = None if callable(self.logits) or "log_z" not in quantities else self.logits
        self._probe = ForwardProbe(
            pl_module,
            blocks,
            activations="activations" in quantities,
            attention=list(self.attention or []) if "attention" in quantities else None,
            logits=watched if isinstance(watched, str | None) else match("logits", watched, names),
            max_queries=self.max_queries,
            keep_inputs=self._losses.prompt,
        )
        self._sizes = ParameterStatistics(group_parameters(pl_module, blocks), quantities)
        self._batch = _Batch()
        self._losses.clear()
        self._around = AroundTrainingStep(trainer.strategy, self._start_watch, self._probe.stop)
        if self._probe.whole_is_compiled:
            self._alarms.warn(
                "the LightningModule is compiled as a whole, so activations, attention and logits are not seen; "
                "compile the network in it instead: self.network = torch.compile(self.network)."
            )
        if self.forecast is not None and self.step == 0:
            size = self.num_params or num_trained_parameters(pl_module)
            found = judge_forecast(self.forecast.predict(size, peak_learning_rate(trainer)))
            alarms = [] if found is None else [self._alarms.record(found)]
            react(trainer, alarms, self.on_critical, self.lr_factor)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin with a batch, and with a new step of the optimizer if the last one is done."""
        if self._probe is None or self._sizes is None:
            return
        if self._batch.stepped:  # else it belongs to the same step as the one before
            self._probe.clear()
            self._sizes.clear()
            self._batch = _Batch(full=self.step == 0 or (self.step + 1) % self.every_n_steps == 0)
        self._batch.stepped = False
        self._batch.steps_before = trainer.global_step
        self._batch.losses = []

    def _start_watch(self) -> None:
        cast(ForwardProbe, self._probe).start(self._batch.full)

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Look at the loss if that is free or the batch may have to be skipped."""
        if self._probe is None:
            return
        self._probe.begin_backward()
        self._batch.losses.append(loss.detach())
        if self._losses.prompt or self.on_critical == "skip":
            value = float(loss.detach()) * accumulated_batches(trainer, pl_module) / loss_scale(trainer)
            if not math.isfinite(value):
                self._batch.skip = self.on_critical != "warn" and "nonfinite" in self.critical
                probe, watch = self._probe, self._losses
                found = watch.nonfinite(self.step, value, lambda: diagnose(probe)) if watch.prompt else None
                if found is not None:
                    self._batch.alarms.append(found)
                    if self.on_critical == "raise":
                        react(trainer, [found], self.on_critical, self.lr_factor)
            elif self.on_critical == "skip" and "loss_spike" in self.critical and self.spikes.stands_out(value):
                self._batch.skip = True
        self._probe.forget_inputs()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Be ready for another forward pass, in manual optimization."""
        if self._probe is not None:
            self._probe.end_backward()

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        """Measure the gradients, before they are clipped, and drop them if that was asked for."""
        if self._probe is None or self._sizes is None:
            return
        self._probe.watcher.pause()
        if self._batch.full:
            self._sizes.before_step(optimizer)
        if self.on_critical == "skip" or self._batch.skip:
            drop_gradients(optimizer, self._batch.skip, gradients="nonfinite" in self.critical)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss; after an optimizer step, judge and log."""
        if self._probe is None or self._sizes is None:
            return
        loss = loss_of_batch(trainer, pl_module, outputs, self._batch.losses)
        self._losses.add(self.step, loss, self._probe.outputs)
        self._probe.outputs = []
        self._probe.forget_inputs()
        if self._batch.full and callable(self.logits) and "log_z" in (self.track or QUANTITIES):
            self._probe.add_logits(self.logits(outputs))
        if trainer.global_step == self._batch.steps_before:
            return
        if self._batch.full:
            self._sizes.after_step()
        if self._batch.full or (self.step + 1) % self._check_every == 0:
            self._check(trainer, full=self._batch.full)
        self.step += 1
        self._batch.stepped = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Judge what was not judged yet, and draw the history."""
        if self._probe is not None and (self._losses.losses or is_distributed()):
            self._check(trainer, full=False)
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if trainer.loggers and self.history.curves and not dry:
            publish_figure(trainer, "instability", self.plot())

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Remove all hooks; if numbers were the reason, say where they first went wrong."""
        if self._probe is None:
            return
        numeric = isinstance(exception, ArithmeticError | NonFiniteLossError)
        if numeric and not isinstance(exception, InstabilityError) and self._probe.outputs:
            where, why = diagnose(self._probe)
            message = f"training failed at step {self.step}, and {why}."
            self._alarms.record(Alarm("nonfinite", self.step, where, math.nan, False, message))
        self._let_go()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let go of the model."""
        self._let_go()

    def _let_go(self) -> None:
        if self._around is not None:
            self._around.remove()
        self._probe = self._sizes = self._around = None

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps seen, the history, the alarms and the losses that spikes are judged by."""
        return {
            "step": self.step,
            "history": self.history.state_dict(),
            "losses": list(self.spikes.losses),
            "held": self.spikes.held,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the statistics of a checkpoint."""
        self.step = int(state_dict["step"])
        self.history.load_state_dict(state_dict["history"])
        self.spikes.losses = [float(loss) for loss in state_dict["losses"]]
        self.spikes.held = state_dict["held"]

    # ------------------------------------------------------------------ results
    def summary(self) -> dict[str, Any]:
        """Return what is tracked, the first step of every kind of alarm, all alarms, and the counts.

        Returns:
            ``tracked``: quantity -> names; ``first_alarm``: kind -> step, with ``"attention (critical)"`` beside
            ``"attention"``; ``alarms``: their fields; ``loss_spikes``, ``nonfinite_steps``, ``steps``.
        """
        return {"steps": self.step, **self.history.summary()}

    def plot(self) -> Figure:
        """Draw the measured quantities over the steps, with the alarms."""
        return self.history.plot(self.limits.attention_critical)

    # ------------------------------------------------------------------ judging
    def _check(self, trainer: pl.Trainer, full: bool) -> None:
        """Read what was collected, on all processes alike, and judge it."""
        probe, sizes = cast(ForwardProbe, self._probe), cast(ParameterStatistics, self._sizes)
        local = collect(self._losses.losses, self._losses.finite, probe if full else None, sizes if full else None)
        self._losses.clear()
        parts: list[Readings | None] = [local]
        if is_distributed():
            parts = [None] * dist.get_world_size()
            dist.all_gather_object(parts, local)
        readings = merge([part for part in parts if part is not None])
        alarms, self._batch.alarms = self._batch.alarms, []
        alarms += self._losses.judge(readings)
        if full:
            if self.step == 0 and not probe.whole_is_compiled:
                require_found(readings, self.track, self.attention, self.logits)
            self.history.add(self.step, readings)
            scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
            gradients = not scaled and not self.history.nonfinite_before
            for alarm in self.limits.judge(self.step, readings, self.history, gradients):
                alarms.append(self._alarms.record(alarm))
            self._log(trainer)
        react(trainer, alarms, self.on_critical, self.lr_factor)

    def _log(self, trainer: pl.Trainer) -> None:
        metrics = self.history.metrics(self.log_modules)
        step = trainer.fit_loop.epoch_loop._batches_that_stepped  # the step that Lightning logs by
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})


def _check_positive(**values: float | None) -> None:
    for argument, value in values.items():
        if value is not None and not value > 0:
            raise ValueError(f"InstabilityMonitor: {argument} must be positive, got {value}.")


def _check_known(argument: str, given: Iterable[str], known: Sequence[str]) -> None:
    if isinstance(given, str):
        raise ValueError(f"InstabilityMonitor: {argument} must be a list, got {given!r}; write [{given!r}].")
    for value in given:
        if value not in known:
            raise ValueError(f"InstabilityMonitor: {argument} must be among {list(known)}, got {value!r}.")
