"""ControllableModule: a multi-task network that is trained at many widths at once."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Generator, Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchmetrics import MetricCollection

from lightning_mtl.balancers.base import Balancer
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.functional.modes import modes_kept
from lightning_mtl.losses.distillation.configuration_invariant import ci_kd_loss
from lightning_mtl.module import MultiTaskModule, _Losses, _Piece
from lightning_mtl.nn.slimmable import SlimmableBatchNorm2d, SlimmableEncoder, SlimmableHead
from lightning_mtl.tasks.base import Task

_COUNT_KEY = "lightning_mtl_sandwich_steps"


@dataclass(frozen=True)
class WidthConfig:
    """Widths of a controllable network.

    Args:
        encoder: Width of all stages of the encoder, or one for each.
        decoders: Task -> width of its decoder; tasks that are not named have width 1.
    """

    encoder: float | tuple[float, ...]
    decoders: Mapping[str, float]


class _Output(NamedTuple):
    """What a task's loss was computed from."""

    task: str
    prediction: Any
    target: Any


class ControllableModule(MultiTaskModule):
    r"""Train one network whose encoder and decoders can be narrowed afterwards, each by itself.

    Every step evaluates the batch at full width, at the smallest, and at ``random_configs`` random widths (encoder and
    every decoder drawn independently), and gives the balancer the sum over these passes of each task's loss. So the
    scalar that it returns has the summed gradient, and everything else is as in
    :class:`~lightning_mtl.MultiTaskModule`, which evaluates, tests and predicts at the widths chosen last: all of them
    full at first, others within ``with module.at(config)``.

    Args:
        encoder: The encoder.
        tasks: Task name -> task, with slimmable heads: ``head=SlimmableMLPHead``.
        balancer: Turns the losses into one update; not at the features, of which there are several sets.
        optimizer: Callable from parameter groups to an optimizer.
        lr_scheduler: Callable from an optimizer to a scheduler; None keeps the learning rate.
        lr_interval: Whether the scheduler steps once an ``"epoch"`` or once a ``"step"``.
        lr_multipliers: Factor on the learning rate for ``encoder``, ``heads`` or ``balancer``; 1 where not given.
        baselines: Task -> metric -> value of single-task models.
        on_nonfinite: What a NaN or infinite task loss does.
        random_configs: Number of random configurations of a step.
        distillation: What the narrow networks learn from the full one besides the labels: ``"slice"`` or ``"gram"``,
            its encoder features (:func:`~lightning_mtl.losses.ci_kd_loss`); ``"logits"``, its predictions, by the
            divergence of the softmax where targets are classes and by the squared error elsewhere; None, nothing.
        distillation_weight: Factor of that loss, not negative.
        distillation_ramp: Number of training batches over which the factor grows from 0, as the full network is
            random at first; half the training is a good choice.
        seed: Seed of the random configurations, which are the same on all processes.

    Raises:
        ValueError: If a number is out of range or the balancer works at the features.
        TypeError: If the encoder or a head is not slimmable.

    Note:
        The passes of a step are kept in memory until the step's backward. With several processes the distillation is
        the mean over each process's samples. The default is without distillation: at the size that was tried it did
        not help (see the page of the method).

    Example:
        >>> import torch
        >>> from lightning_mtl.nn import SlimmableMLP, SlimmableMLPHead
        >>> from lightning_mtl.tasks import MulticlassClassification
        >>> tasks = {name: MulticlassClassification(num_classes=3, head=SlimmableMLPHead) for name in ("a", "b")}
        >>> module = ControllableModule(SlimmableMLP(16, [32, 32]), tasks)
        >>> config = WidthConfig(encoder=0.25, decoders={"a": 1.0, "b": 0.25})
        >>> module.flops(config, (16,))
        {'encoder': 384, 'a': 1408, 'b': 352}
        >>> sorted(module.export(config)(torch.zeros(2, 16)))
        ['a', 'b']

    References:
        Aich, Schulter, Roy-Chowdhury, Chandraker, Suh. *Efficient Controllable Multi-Task Architectures*. ICCV 2023.
        https://arxiv.org/abs/2308.11744.
        Yu, Huang. *Universally Slimmable Networks and Improved Training Techniques*. ICCV 2019 (the sandwich rule).
        https://arxiv.org/abs/1903.05134.
    """

    def __init__(
        self,
        encoder: SlimmableEncoder,
        tasks: dict[str, Task],
        balancer: Balancer | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        lr_multipliers: dict[str, float] | None = None,
        baselines: dict[str, dict[str, float]] | None = None,
        on_nonfinite: Literal["raise", "skip"] = "raise",
        random_configs: int = 1,
        distillation: Literal["slice", "gram", "logits"] | None = None,
        distillation_weight: float = 0.2,
        distillation_ramp: int = 1000,
        seed: int = 0,
    ) -> None:
        if not isinstance(encoder, SlimmableEncoder):
            raise TypeError(
                f"ControllableModule: encoder must be slimmable, got {type(encoder).__name__}; take SlimmableMLP or "
                "SlimmableResNet."
            )
        if distillation not in (None, "slice", "gram", "logits"):
            raise ValueError(
                f"ControllableModule: distillation must be 'slice', 'gram', 'logits' or None, got {distillation!r}."
            )
        if min(random_configs, distillation_weight, distillation_ramp) < 0:
            raise ValueError(
                "ControllableModule: random_configs, distillation_weight and distillation_ramp must not be negative, "
                f"got {random_configs}, {distillation_weight} and {distillation_ramp}."
            )
        if getattr(balancer, "at", None) == "features":
            raise ValueError(
                f"ControllableModule: {type(balancer).__name__}: at must be 'parameters', as a step has features of "
                "several widths, got 'features'."
            )
        base: dict[str, Any] = {
            "encoder": encoder,
            "tasks": tasks,
            "balancer": balancer,
            "optimizer": optimizer,
            "lr_scheduler": lr_scheduler,
            "lr_interval": lr_interval,
            "lr_multipliers": lr_multipliers,
            "baselines": baselines,
            "on_nonfinite": on_nonfinite,
        }
        super().__init__(**base)
        super()._save_configuration(
            **base,
            random_configs=random_configs,
            distillation=distillation,
            distillation_weight=distillation_weight,
            distillation_ramp=distillation_ramp,
            seed=seed,
        )
        for name in self.tasks:
            self.decoder(name)
        self.random_configs = random_configs
        self.distillation = distillation
        self.distillation_weight = distillation_weight
        self.distillation_ramp = distillation_ramp
        self.seed = seed
        self._steps = 0
        self._sandwich: list[WidthConfig] = []
        self._passes: list[WidthConfig] = []  # empty outside of a training step
        self._pass = 0
        self._outputs: list[_Output] = []
        self._distilled: Tensor | None = None

    def _save_configuration(self, **arguments: Any) -> None:
        """Leave out what the base class was given: the constructor's own arguments are stored."""

    # ------------------------------------------------------------------ configurations
    @property
    def slimmable_encoder(self) -> SlimmableEncoder:
        """The encoder."""
        return cast(SlimmableEncoder, self.encoder)

    def decoder(self, task: str) -> SlimmableHead:
        """Return the decoder of a task.

        Raises:
            TypeError: If it is not slimmable.
            ValueError: If the task is unknown.
        """
        self._check_tasks([task])
        head = cast(Task, self.tasks[task]).head
        if not isinstance(head, SlimmableHead):
            raise TypeError(
                f"ControllableModule: the head of {task!r} must be slimmable, got {type(head).__name__}; give the "
                "task head=SlimmableMLPHead or head=SlimmableConvHead."
            )
        return head

    @property
    def full(self) -> WidthConfig:
        """The configuration with everything active."""
        return WidthConfig(1.0, dict.fromkeys(self.tasks, 1.0))

    @property
    def smallest(self) -> WidthConfig:
        """The configuration with the smallest width everywhere."""
        return WidthConfig(
            self.slimmable_encoder.widths[0], {task: self.decoder(task).widths[0] for task in self.tasks}
        )

    @property
    def config(self) -> WidthConfig:
        """The configuration in use."""
        return WidthConfig(self.slimmable_encoder.stage_widths, {task: self.decoder(task).width for task in self.tasks})

    def configure(self, config: WidthConfig) -> None:
        """Choose the widths that are active from now on.

        Raises:
            ValueError: If a task or a width is unknown; the message lists the allowed ones.
        """
        self._check_tasks(config.decoders)
        self.slimmable_encoder.set_widths(config.encoder)
        features = self.slimmable_encoder.active_features()
        for task in self.tasks:
            self.decoder(task).set_width(config.decoders.get(task, 1.0), features)

    @contextmanager
    def at(self, config: WidthConfig) -> Iterator[None]:
        """Use these widths within a ``with`` block."""
        before = self.config
        try:
            self.configure(config)
            yield
        finally:
            self.configure(before)

    def draw_configs(self, step: int) -> list[WidthConfig]:
        """Return the configurations of a training step: full, smallest, and the random ones.

        Args:
            step: Number of training batches before; with the seed it decides what is drawn.
        """
        stream = Generator().manual_seed(mix_seed(self.seed, step))

        def draw(widths: Sequence[float]) -> float:
            return widths[int(torch.randint(len(widths), (), generator=stream))]

        found = [self.full, self.smallest]
        for _ in range(self.random_configs):
            width = draw(self.slimmable_encoder.widths)
            found.append(WidthConfig(width, {task: draw(self.decoder(task).widths) for task in self.tasks}))
        return found

    # ------------------------------------------------------------------ training
    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Return a scalar whose gradient is the sum over the configurations of this step."""
        self._sandwich = self.draw_configs(self._steps)
        with self._in_all_passes():
            total = super().training_step(batch, batch_idx)
        distilled, self._distilled = self._distilled, None
        ramp = min(1.0, self._steps / self.distillation_ramp) if self.distillation_ramp else 1.0
        self._steps += 1
        if distilled is None:
            return total
        trainer = cast(Any, self._trainer)
        if trainer is not None and (trainer.global_step + 1) % max(trainer.log_every_n_steps, 1) == 0:
            self.log("train/distillation", distilled.detach(), on_step=True, on_epoch=False, batch_size=1)
        return total + ramp * self.distillation_weight * distilled

    @contextmanager
    def _in_all_passes(self) -> Iterator[None]:
        self._passes = self._sandwich
        try:
            yield
        finally:
            self._passes, self._pass = [], 0

    def _second_pass(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        with self._in_all_passes():
            return super()._second_pass(*args, **kwargs)

    def _losses(self, batch: Any, only: Iterable[str] | None = None) -> _Losses:
        if not self._passes:
            return super()._losses(batch, only)
        wanted = None if only is None else list(only)
        sums: dict[str, Tensor] = {}
        parent: _Losses | None = None
        parent_outputs: list[_Output] = []
        terms = []
        for number, config in enumerate(self._passes):
            self._pass, self._outputs = number, []
            with self.at(config):
                found = super()._losses(batch, wanted)
            for task, loss in found.losses.items():
                sums[task] = sums[task] + loss if task in sums else loss
            if parent is None:
                parent, parent_outputs = found, self._outputs
            elif self.distillation is not None and wanted is None:
                terms.append(self._distance(parent.features, found.features, parent_outputs, self._outputs))
        self._outputs = []
        if terms:
            self._distilled = cast(Tensor, sum(terms))
        full = cast(_Losses, parent)
        return _Losses(sums, full.features, full.parts, full.labels)

    def _distance(self, parent: Any, child: Any, wide: list[_Output], narrow: list[_Output]) -> Tensor:
        """Return the distillation loss of one narrow network."""
        terms: list[Tensor] = []
        if self.distillation == "logits":
            for teacher, student in zip(wide, narrow, strict=True):
                terms.append(_output_distance(teacher.prediction, student.prediction, student.target))
        else:
            mode: Literal["slice", "gram"] = "slice" if self.distillation == "slice" else "gram"
            pairs = zip(_tensors(parent), _tensors(child), strict=True)
            terms = [ci_kd_loss(before, after, mode) for before, after in pairs]
        return cast(Tensor, sum(terms))

    def _loss_of(self, name: str, prediction: Any, target: Any, *more: Any, **named: Any) -> _Piece:
        if self._passes and self.distillation == "logits":
            self._outputs.append(_Output(name, prediction, target))
        return super()._loss_of(name, prediction, target, *more, **named)

    def _mark(self, *place: str) -> None:
        super()._mark(str(self._pass), *place)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the number of steps, which decides what is drawn next."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[_COUNT_KEY] = self._steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take up the number of steps."""
        super().on_load_checkpoint(checkpoint)
        self._steps = checkpoint.get(_COUNT_KEY, 0)

    # ------------------------------------------------------------------ after training
    def recalibrate(self, config: WidthConfig, inputs: Iterable[Any]) -> None:
        """Replace the running statistics that a configuration uses by the averages over some batches.

        Statistics are kept for every width of a layer, so configurations that share one share them: export a
        configuration before the next one is recalibrated.

        Args:
            config: The configuration.
            inputs: Training inputs, one batch each.
        """
        norms = [module for module in self.modules() if isinstance(module, SlimmableBatchNorm2d)]
        with self.at(config), modes_kept(self):
            own = [norm.active_statistics() for norm in norms]
            momenta = [norm.momentum for norm in own]
            try:
                self.eval()
                for norm in own:
                    norm.reset_running_stats()
                    norm.momentum = None  # the cumulative average
                    norm.train()
                with torch.no_grad():
                    for batch in inputs:
                        self(batch)
            finally:
                for norm, momentum in zip(own, momenta, strict=True):
                    norm.momentum = momentum

    def evaluate(self, config: WidthConfig, batches: Iterable[Any]) -> dict[str, dict[str, float]]:
        """Return task -> metric -> value of a configuration.

        Args:
            config: The configuration.
            batches: Pairs of inputs and targets, on the module's device.
        """
        own = {name: cast(Task, task).metrics.clone() for name, task in self.tasks.items()}
        for metrics in own.values():
            metrics.reset()
        with modes_kept(self), torch.no_grad():
            self.eval()
            for inputs, targets in batches:
                self.update_metrics_at(config, inputs, targets, own)
        return {
            name: {metric: float(value) for metric, value in metrics.compute().items()} for name, metrics in own.items()
        }

    def update_metrics_at(
        self, config: WidthConfig, inputs: Any, targets: Mapping[str, Any], metrics: Mapping[str, MetricCollection]
    ) -> None:
        """Add a batch, predicted at a configuration, to metrics; those of a validation under way stay as they are.

        Args:
            config: The configuration.
            inputs: Inputs of the batch.
            targets: Its targets.
            metrics: Task -> metrics to which the batch is added.
        """
        with self.at(config):
            for name, prediction in self(inputs, tasks=list(targets)).items():
                task = cast(Task, self.tasks[name])
                before, task.metrics = task.metrics, metrics[name]
                try:
                    task.update_metrics(prediction, targets[name])
                finally:
                    task.metrics = before

    def export(self, config: WidthConfig) -> MultiTaskModule:
        """Return a plain, physically small network that gives what this one gives at a configuration.

        It is a :class:`~lightning_mtl.MultiTaskModule` without slimmable parts and with a copy of the weights: for
        testing, further training and ``export_onnx``. Its checkpoints are loaded with its encoder and tasks given.

        Args:
            config: The configuration.
        """
        with self.at(config):
            encoder = self.slimmable_encoder.export()
            tasks = {}
            for name, task in self.tasks.items():
                # the head is replaced; what builds one may hold the whole command line, with its running Trainer
                kept = {id(part): part for part in (task.head, cast(Task, task)._make_head)}
                tasks[name] = cast(Task, copy.deepcopy(task, kept))
                tasks[name].head = self.decoder(name).export()
        return MultiTaskModule(encoder, tasks).train(self.training)

    def flops(self, config: WidthConfig, input_size: Sequence[int]) -> dict[str, int]:
        """Return the floating point operations of one sample, of the encoder and of every decoder.

        A multiplication and an addition count as two; matrix products and convolutions are counted.

        Args:
            config: The configuration.
            input_size: Shape of one sample.
        """
        plain = self.export(config).to("meta").eval()
        counts = {}
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                features = plain.encoder(torch.empty((1, *input_size), device="meta"))
            counts["encoder"] = int(counter.get_total_flops())
            for name, task in plain.tasks.items():
                with FlopCounterMode(display=False) as counter:
                    cast(nn.Module, cast(Task, task).head)(features)
                counts[name] = int(counter.get_total_flops())
        return counts


def _tensors(features: Any) -> list[Tensor]:
    """Return the tensors of features: one, a list, or those of several data sets."""
    if isinstance(features, Tensor):
        return [features]
    parts = features.values() if isinstance(features, Mapping) else features
    return [tensor for part in parts for tensor in _tensors(part)]


def _output_distance(teacher: Tensor, student: Tensor, target: Tensor) -> Tensor:
    """Return the divergence of class probabilities, or the squared error where targets are no classes."""
    teacher = teacher.detach()
    if target.is_floating_point() or target.ndim != student.ndim - 1:
        return F.mse_loss(student, teacher)
    gap = F.kl_div(F.log_softmax(student, 1), F.log_softmax(teacher, 1), reduction="none", log_target=True)
    return gap.sum(dim=1).mean()
