"""MultiTaskModule: one encoder, several tasks, one balancer, in an ordinary Lightning Trainer."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.seed import _collect_rng_states, _set_rng_states
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lightning_mtl.balancers.base import Balancer, is_distributed
from lightning_mtl.balancers.loss_weighting.fixed import EqualWeighting
from lightning_mtl.functional.delta_m import delta_m
from lightning_mtl.functional.gradients import alias_features
from lightning_mtl.functional.second_pass import RandomMarks, RandomState, second_pass
from lightning_mtl.metrics import directions
from lightning_mtl.nn.recorded import NotRecordedError, describe
from lightning_mtl.nn.spec import FeatureSpec
from lightning_mtl.nn.task_aware import SupervisedFeatures
from lightning_mtl.optim.base import TaskAwareOptimizer
from lightning_mtl.tasks.base import Task

_RNG_KEY = "lightning_mtl_random_states"


class NonFiniteLossError(RuntimeError):
    """A task's loss became NaN or infinite."""


class _Piece(NamedTuple):
    """A task's loss on one data set's share of a batch."""

    loss: Tensor
    labels: Tensor
    parts: dict[str, Tensor]


class _Losses(NamedTuple):
    """Losses of a batch, the features that they are of, and the parts of the losses that have some.

    ``labels`` holds the number of labels of every loss, on all processes together.
    """

    losses: dict[str, Tensor]
    features: Any
    parts: dict[str, Tensor]
    labels: dict[str, float]


class MultiTaskModule(pl.LightningModule):
    r"""Train one encoder on several tasks under a balancer.

    Every training step runs the encoder once, gives its features to the heads of the tasks that carry labels in this
    batch, and returns the balancer's scalar to Lightning, which does with it what it does with any loss.

    A batch is ``(inputs, targets)`` with ``targets`` a mapping task name -> target, or, from a ``CombinedLoader``,
    ``{name: (inputs, target)}`` where ``name`` is a task, or a data set whose target is itself such a mapping. A task
    without a key is not supervised in this batch. With several processes the gradient of a task is that of its mean
    loss over the joined batch, however its labels are spread.

    Args:
        encoder: Network from inputs to features: a tensor, a list of maps, or ``{task: features}``. It declares their
            shape as ``feature_spec`` (a :class:`~lightning_mtl.nn.FeatureSpec`, or one per task) if heads are to be
            built for it, may have ``shared_parameters()`` when not all of its parameters are shared, and
            ``auxiliary_loss()``, which is added to the balancer's scalar, ``parameter_groups()`` for parameters with
            settings of their own in the optimizer, and ``generate(inputs, max_new_tokens)`` for tasks that write text.
            Features with initial predictions (:class:`~lightning_mtl.nn.SupervisedFeatures`) train these by the loss
            of their task.
        tasks: Task name -> task. The order is that of tables and weights.
        balancer: Turns the losses into one update; equal weights by default.
        optimizer: Callable from parameter groups to an optimizer; Adam with its own defaults by default.
        lr_scheduler: Callable from an optimizer to a scheduler; None keeps the learning rate.
        lr_interval: Whether the scheduler steps once an ``"epoch"`` or once a ``"step"``.
        lr_multipliers: Factor on the learning rate for ``encoder``, ``heads`` or ``balancer``; 1 where not given.
        baselines: Task -> metric -> value of single-task models, in the same units; gives ``val/delta_m``.
        on_nonfinite: What a NaN or infinite task loss does: ``"raise"`` stops and names the task, ``"skip"`` leaves
            the task out of this step.

    Raises:
        ValueError: If there is no task, a name cannot be used, or a name in ``baselines`` or ``lr_multipliers`` is
            unknown.

    Example:
        >>> import torch
        >>> from lightning_mtl.nn import MLPEncoder
        >>> from lightning_mtl.tasks import MulticlassClassification, Regression
        >>> tasks = {"kind": MulticlassClassification(num_classes=3), "size": Regression()}
        >>> module = MultiTaskModule(MLPEncoder(8, [16]), tasks)
        >>> {name: tuple(value.shape) for name, value in module(torch.zeros(2, 8)).items()}
        {'kind': (2, 3), 'size': (2, 1)}

    References:
        Caruana. *Multitask Learning*. Machine Learning 28, 1997. https://doi.org/10.1023/A:1007379606734
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: dict[str, Task],
        balancer: Balancer | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        lr_interval: Literal["epoch", "step"] = "epoch",
        lr_multipliers: dict[str, float] | None = None,
        baselines: dict[str, dict[str, float]] | None = None,
        on_nonfinite: Literal["raise", "skip"] = "raise",
    ) -> None:
        super().__init__()
        self._save_configuration(
            encoder=encoder,
            tasks=tasks,
            balancer=balancer,
            optimizer=optimizer,
            lr_scheduler=lr_scheduler,
            lr_interval=lr_interval,
            lr_multipliers=lr_multipliers,
            baselines=baselines,
            on_nonfinite=on_nonfinite,
        )
        _check_names("tasks", tasks)
        _check_known("baselines", baselines or {}, tasks)
        _check_known("lr_multipliers", lr_multipliers or {}, ("encoder", "heads", "balancer"))
        self.encoder = encoder
        for name, task in tasks.items():
            task.build_head(_spec_for(encoder, name))
        self.tasks = nn.ModuleDict(tasks)
        self.balancer = EqualWeighting() if balancer is None else balancer
        self.balancer.bind(tuple(tasks))
        self.balancer.watch(encoder)
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.lr_interval = lr_interval
        self.lr_multipliers = dict(lr_multipliers or {})
        self.baselines = {task: dict(values) for task, values in (baselines or {}).items()}
        self.on_nonfinite = on_nonfinite
        self._eval_losses = nn.ModuleDict({name: MeanMetric(nan_strategy="ignore") for name in tasks})
        self._recompute: Callable[..., dict[str, Tensor]] | None = None
        self._marks: RandomMarks | None = None
        self._restored_random_states: list[dict[str, Any]] | None = None

    def _save_configuration(self, **arguments: Any) -> None:
        """Store the constructor's arguments as plain data, in the form in which recipes write them."""
        from lightning.pytorch.core.mixins.hparams_mixin import _given_hyperparameters

        if _given_hyperparameters.get() is not None:  # built by LightningCLI, which knows the recipe
            self.save_hyperparameters(logger=False)
            return
        try:
            config = describe(arguments)
        except NotRecordedError:  # somebody's own encoder: load_from_checkpoint is then given the arguments
            return
        config["_class_path"] = f"{type(self).__module__}.{type(self).__qualname__}"
        config["_instantiator"] = "lightning.pytorch.cli.instantiate_module"
        self.save_hyperparameters(config, logger=False)

    # ------------------------------------------------------------------ forward
    def forward(self, inputs: Any, tasks: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the raw prediction of every task.

        Args:
            inputs: What the encoder reads.
            tasks: Names of the tasks to evaluate; None evaluates all.

        Returns:
            Task name -> raw prediction (logits); ``task.predict`` makes it readable.

        Raises:
            ValueError: If a name is unknown.
        """
        names = list(self.tasks) if tasks is None else list(tasks)
        self._check_tasks(names)
        return self._heads(self.encoder(inputs), names, _image_size(inputs))

    def _heads(
        self, features: Any, names: Iterable[str], size: tuple[int, int] | None, source: str = "batch"
    ) -> dict[str, Any]:
        predictions: dict[str, Any] = {}
        # heads that have nothing in common can be differentiated at their features in one pass
        separate = self.training and getattr(self.balancer, "at", None) == "features"
        for name in names:
            self._mark(source, name)
            own = self._features_of(features, name)
            if separate:
                own = alias_features(own)
            predictions[name] = self.tasks[name](own, size)
        return predictions

    def _mark(self, *place: str) -> None:
        if self._marks is not None:
            self._marks.mark(place)

    def _features_of(self, features: Any, name: str) -> Any:
        if isinstance(features, Mapping) and name not in features:
            raise ValueError(
                f"{type(self.encoder).__name__}: gave features for the tasks {list(features)}, not for {name!r}."
            )
        return _head_features(features, name)

    def _initial_predictions(self, features: Any, name: str, size: tuple[int, int] | None) -> tuple[list[Any], float]:
        """Return the predictions that the encoder made for a task on the way to its features, and their weight."""
        own = features.get(name) if isinstance(features, Mapping) else features
        if not isinstance(own, SupervisedFeatures):
            return [], 0.0
        try:
            return [cast(Task, self.tasks[name]).from_map(raw, size) for raw in own.initial], own.weight
        except TypeError as error:
            raise TypeError(f"task {name!r}: {error}") from error

    def _idle_parameters(self, names: Sequence[str]) -> Iterable[nn.Parameter]:
        """Return the parameters that may get no gradient where these tasks have no label."""
        idle = getattr(self.encoder, "idle_parameters", None)
        heads = [parameter for name in names for parameter in self.tasks[name].parameters()]
        return [*heads, *(idle() if callable(idle) else ())]

    def _check_tasks(self, names: Iterable[str]) -> None:
        unknown = [name for name in names if name not in self.tasks]
        if unknown:
            raise ValueError(
                f"{type(self).__name__}: unknown tasks {unknown}; the known tasks are {list(self.tasks)}. Name the "
                "targets of the data module as the tasks are named."
            )

    def shared_parameters(self) -> list[nn.Parameter]:
        """Return the encoder's parameters that all tasks share and that are trained."""
        declared = getattr(self.encoder, "shared_parameters", self.encoder.parameters)
        return [parameter for parameter in declared() if parameter.requires_grad]

    # ------------------------------------------------------------------ losses
    def task_losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the loss of every task that has labels in this batch, scalars with their graph.

        With several processes a loss is scaled such that its mean over the processes is the mean over the joined
        batch; it is then called on all of them together.

        Raises:
            ValueError: If the batch has another form, an unknown task, or no label at all.
        """
        return self._losses(batch).losses

    def _losses(self, batch: Any, only: Iterable[str] | None = None) -> _Losses:
        wanted = None if only is None else set(only)
        pieces: dict[str, list[_Piece]] = {}
        features: dict[str, Any] = {}
        sources = list(_sources(batch))
        for source, inputs, targets in sources:
            self._check_tasks(targets)
            names = [name for name in targets if wanted is None or name in wanted]
            if not names:
                continue
            self._mark(source)
            found = self.encoder(inputs)
            features[source] = found
            size = _image_size(inputs)
            for name, prediction in self._heads(found, names, size, source).items():
                self._mark(source, name, "loss")
                initial = self._initial_predictions(found, name, size)
                pieces.setdefault(name, []).append(self._loss_of(name, prediction, targets[name], *initial))
        losses, parts, labels = self._join(pieces, only)
        return _Losses(losses, next(iter(features.values())) if len(features) == 1 else features, parts, labels)

    def _loss_of(
        self, name: str, prediction: Any, target: Any, initial: Sequence[Any] = (), initial_weight: float = 0.0
    ) -> _Piece:
        """Return a task's loss, the number of labels that it is the mean over, and its parts.

        Initial predictions are scored against the same target, so that they count the same labels.
        """
        task = cast(Task, self.tasks[name])
        try:
            parts = task.loss_parts(prediction, target)
            loss = cast(Tensor, sum(parts.values())) if parts else task.loss(prediction, target)
            if initial:
                extra = initial_weight * cast(Tensor, sum(task.loss(made, target) for made in initial))
                loss, parts = loss + extra, {**parts, "initial": extra}
        except (ValueError, TypeError) as error:
            raise type(error)(f"task {name!r}: {error}") from error
        if task.loss_weight != 1.0:
            loss = loss * task.loss_weight
        detached = {part: value.detach() * task.loss_weight for part, value in parts.items()}
        return _Piece(loss, task.num_labelled(target), detached)

    def _join(
        self, pieces: dict[str, list[_Piece]], only: Iterable[str] | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
        """Turn the means over each piece of the labels into the mean over all of them, on all processes.

        Returns:
            Task -> loss, ``"task/part"`` -> value for the losses that have parts, and task -> number of labels.
        """
        zero = torch.zeros((), device=self.device)
        names = [name for name in self.tasks if only is None or name in only]
        local = {name: sum((piece.labels for piece in pieces.get(name, [])), zero) for name in names}
        finite = {name: all_finite([piece.loss for piece in pieces.get(name, [])], zero) for name in names}
        # one exchange and one read by the host: how many labels, and whether the losses are numbers
        table = torch.stack([torch.stack([local[name].double(), finite[name].double()]) for name in names])
        world = 1
        if is_distributed():
            world = dist.get_world_size()
            table[:, 1] = 1 - table[:, 1]
            dist.all_reduce(table)
            table[:, 1] = (table[:, 1] == 0).double()
        rows = dict(zip(names, table.tolist(), strict=True))
        bad = [name for name, (total, ok) in rows.items() if total > 0 and not ok]
        if bad and self.on_nonfinite == "raise" and self.training:
            values = {name: [piece.loss.item() for piece in pieces.get(name, [])] for name in bad}
            raise NonFiniteLossError(
                f"{type(self).__name__}: the loss of {', '.join(map(repr, bad))} is not finite at step "
                f"{self.global_step} ({values}). Lower the learning rate, look at that task's targets, or set "
                "on_nonfinite='skip' to leave such a task out of the step."
            )
        present = [name for name in names if rows[name][0] > 0 and name not in bad]
        if not present:
            reason = "no finite loss" if bad else "no label"
            raise ValueError(
                f"{type(self).__name__}: {reason} for any of the tasks {names} in this batch; the targets held "
                f"{sorted(pieces)}. Check the ignore values of the targets, or raise the batch size."
            )
        losses: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        for name in present:
            mine = pieces.get(name, [])
            if world == 1 and len(mine) == 1:
                losses[name] = mine[0].loss
                parts |= {f"{name}/{part}": value for part, value in mine[0].parts.items()}
                continue
            share = world / rows[name][0]
            terms = [piece.loss * (piece.labels * share).to(piece.loss.dtype) for piece in mine]
            losses[name] = cast(Tensor, sum(terms)) if terms else touch(self._idle_parameters([name]))
            for piece in mine:
                for part, value in piece.parts.items():
                    key, term = f"{name}/{part}", value * (piece.labels * share).to(value.dtype)
                    parts[key] = parts[key] + term if key in parts else term
        return losses, parts, {name: rows[name][0] for name in present}

    # ------------------------------------------------------------------ training
    def setup(self, stage: str) -> None:
        """Introduce the tasks to the data module and the balancer to the Trainer."""
        for task in self.tasks.values():
            cast(Task, task).attach(getattr(self.trainer, "datamodule", None))
        if stage == "fit":
            self.balancer.attach(self.trainer)

    def on_train_start(self) -> None:
        """Introduce optimizers that want to know the tasks of a step to the Trainer."""
        for optimizer in self._task_aware_optimizers():
            optimizer.attach(self.trainer)

    def _task_aware_optimizers(self) -> list[TaskAwareOptimizer]:
        optimizers = [] if self._trainer is None else self._trainer.optimizers
        return [optimizer for optimizer in optimizers if isinstance(optimizer, TaskAwareOptimizer)]

    def training_step(self, batch: Any, batch_idx: int = 0) -> Tensor:
        """Return the balancer's scalar for this batch, and log the losses and weights."""
        recompute = None
        if self.balancer.needs == "second_pass" or self.balancer.needs_losses_after_step:
            marks = self._marks = RandomMarks()
            recompute = self._recompute = functools.partial(self._second_pass, batch, RandomState.now(), marks)
        try:
            losses, features, parts, labels = self._losses(batch)
        finally:
            self._marks = None
        for optimizer in self._task_aware_optimizers():
            optimizer.observe_tasks(list(losses), begins=batch_idx % self.trainer.accumulate_grad_batches == 0)
        self.balancer.observe_labels(labels)
        total = self.balancer(losses, shared=self.shared_parameters(), features=features, recompute=recompute)
        idle = [name for name in self.tasks if name not in losses]
        if idle:  # what takes no part this time gets a zero gradient, so that plain ddp goes on
            total = total + touch(self._idle_parameters(idle))
        auxiliary = getattr(self.encoder, "auxiliary_loss", None)
        if callable(auxiliary):
            extra = auxiliary()
            parts = {**parts, "auxiliary_loss": extra.detach()}
            total = total + extra
        self._log_training(losses, parts, total)
        return cast(Tensor, total)

    def _second_pass(
        self, batch: Any, state: RandomState, marks: RandomMarks, tasks: Iterable[str] | None = None
    ) -> dict[str, Tensor]:
        with second_pass(self, state):
            self._marks = marks
            try:
                return self._losses(batch, tasks).losses
            finally:
                self._marks = None

    def _log_training(self, losses: Mapping[str, Tensor], parts: Mapping[str, Tensor], total: Tensor) -> None:
        trainer = cast(Any, self._trainer)
        if trainer is None or (trainer.global_step + 1) % max(trainer.log_every_n_steps, 1):
            return
        values: dict[str, Any] = {f"train/{name}/loss": loss.detach() for name, loss in losses.items()}
        values |= {f"train/{name}": part for name, part in parts.items()}
        values |= {f"balancer/{name}/weight": weight for name, weight in self.balancer.weights.items()}
        for optimizer in self._task_aware_optimizers():
            values |= optimizer.values_to_log()
        self.log_dict(values, on_step=True, on_epoch=False, batch_size=1)
        self.log("train/loss", total.detach(), on_step=True, on_epoch=False, prog_bar=True, batch_size=1)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Take back the random state of a checkpoint, once everything else has been set up."""
        if self._restored_random_states is not None:
            states, self._restored_random_states = self._restored_random_states, None
            if len(states) == self.trainer.world_size:
                _set_random_state(states[self.global_rank])

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Make the optimizer's step, then give the balancer the losses after it if it asked for them.

        This is the earliest moment after the step, before any callback writes a checkpoint.
        """
        super().optimizer_step(*args, **kwargs)
        recompute, self._recompute = self._recompute, None
        if self.balancer.needs_losses_after_step and recompute is not None:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                self.balancer.after_step(recompute())

    def on_train_epoch_end(self) -> None:
        """Tell the balancer that the epoch ended."""
        self.balancer.end_epoch()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimizer's parameter groups: encoder, heads, balancer, and those that the encoder sets apart."""
        members = {"encoder": self.encoder, "heads": self.tasks, "balancer": self.balancer}
        groups: list[dict[str, Any]] = []
        declared = getattr(self.encoder, "parameter_groups", None)
        separate = declared() if callable(declared) else []
        elsewhere = {id(parameter) for group in separate for parameter in group["params"]}
        for name, member in members.items():
            parameters = [parameter for parameter in member.parameters() if parameter.requires_grad]
            parameters = [parameter for parameter in parameters if id(parameter) not in elsewhere]
            if parameters:
                groups.append({"params": parameters, "name": name})
                if name == "balancer":
                    groups[-1]["weight_decay"] = 0.0  # decay would pull learned loss weights to their start values
        return groups + [group for group in separate if group["params"]]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer on the parameter groups, and the scheduler."""
        optimizer = self.optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * self.lr_multipliers.get(group["name"], 1.0)
        if self.lr_scheduler is None:
            return optimizer
        scheduler = self.lr_scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": self.lr_interval}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = scheduler.monitor
        return cast(OptimizerLRScheduler, {"optimizer": optimizer, "lr_scheduler": config})

    # ------------------------------------------------------------------ evaluation
    def validation_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics."""
        self._evaluate(batch)

    def test_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> None:
        """Add a batch to the metrics."""
        self._evaluate(batch)

    def _evaluate(self, batch: Any) -> None:
        for _, inputs, targets in _sources(batch):
            for name, prediction in self(inputs, tasks=list(targets)).items():
                loss, count, _ = self._loss_of(name, prediction, targets[name])
                cast(MeanMetric, self._eval_losses[name]).update(loss.float(), count.float())
                cast(Task, self.tasks[name]).update_metrics(prediction, targets[name])
            for name, tokens in self._generated(inputs, targets).items():
                cast(Task, self.tasks[name]).update_generated(tokens, targets[name])

    def _generated(self, inputs: Any, names: Iterable[str]) -> dict[str, Tensor]:
        """Return what the encoder writes for those of the tasks that want text; equal lengths are written once."""
        wanted = {name: cast(Task, self.tasks[name]).max_new_tokens for name in names}
        lengths = {name: length for name, length in wanted.items() if length is not None}
        if not lengths:
            return {}
        generate = getattr(self.encoder, "generate", None)
        if not callable(generate):
            raise TypeError(
                f"{type(self).__name__}: the tasks {list(lengths)} have max_new_tokens, but "
                f"{type(self.encoder).__name__} has no generate(inputs, max_new_tokens); take an encoder that writes "
                "text, or set max_new_tokens=None."
            )
        written = {length: generate(inputs, length) for length in dict.fromkeys(lengths.values())}
        return {name: written[length] for name, length in lengths.items()}

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the epoch."""
        self._log_metrics("val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of the epoch."""
        self._log_metrics("test")

    def _log_metrics(self, stage: str) -> None:
        logged: dict[str, Any] = {}
        values: dict[str, dict[str, Tensor]] = {}
        total = torch.zeros((), device=self.device)
        for name, task in self.evaluated_tasks():
            loss = cast(MeanMetric, self._eval_losses[name])
            with warnings.catch_warnings():  # a rank without labels for a task still joins in the exchange
                warnings.filterwarnings("ignore", message=".*compute.*method of metric.*before.*update.*")
                logged[f"{stage}/{name}/loss"] = loss.compute()
                values[name] = cast(dict[str, Tensor], task.metrics.compute())
            total = total + logged[f"{stage}/{name}/loss"]
            logged |= {f"{stage}/{name}/{metric}": value for metric, value in values[name].items()}
            loss.reset()
            task.metrics.reset()
        if not values:
            return
        logged[f"{stage}/loss"] = total
        numbers = {task: {metric: float(value) for metric, value in found.items()} for task, found in values.items()}
        score = delta_m(numbers, self.baselines, self.higher_is_better()) if self.baselines else None
        if score is not None:
            logged[f"{stage}/delta_m"] = score
        self.log_dict(logged, on_step=False, on_epoch=True, sync_dist=is_distributed(), batch_size=1)
        sampler = getattr(getattr(self._trainer, "train_dataloader", None), "sampler", None)
        observe = getattr(getattr(sampler, "sampling", None), "observe", None)
        if stage == "val" and callable(observe) and not self.trainer.sanity_checking:
            losses = {task: {"loss": float(logged[f"val/{task}/loss"])} for task in numbers}
            observe({task: losses[task] | found for task, found in numbers.items()})

    def evaluated_tasks(self) -> list[tuple[str, Task]]:
        """Return the tasks that had a batch in the evaluation under way, on any process."""
        seen = torch.tensor(
            [float(cast(MeanMetric, self._eval_losses[name]).update_called) for name in self.tasks], device=self.device
        )
        if is_distributed():
            dist.all_reduce(seen)
        flags = seen.tolist()
        return [(name, cast(Task, self.tasks[name])) for name, flag in zip(self.tasks, flags, strict=True) if flag]

    def higher_is_better(self) -> dict[str, dict[str, bool]]:
        """Return task -> metric -> whether a higher value is better."""
        return {name: directions(cast(Task, task).metrics) for name, task in self.tasks.items()}

    def predict_step(self, batch: Any, batch_idx: int = 0, dataloader_idx: int = 0) -> dict[str, Any]:
        """Return task name -> readable prediction for a batch of inputs, with or without targets.

        Of several data sets in a batch, ``{name: (inputs, {task: target})}``, each is predicted by its own tasks.
        """
        parts: list[tuple[Any, list[str]]]
        if _is_of_several(batch):
            parts = [(inputs, list(targets)) for _, inputs, targets in _sources(batch)]
        else:
            inputs = batch[0] if isinstance(batch, tuple | list) and len(batch) == 2 else batch
            parts = [(inputs, list(self.tasks))]
        found: dict[str, Any] = {}
        for inputs, names in parts:
            written = self._generated(inputs, names)
            found |= {name: cast(Task, self.tasks[name]).read_generated(x) for name, x in written.items()}
            others = [name for name in names if name not in written]
            if others:
                predictions = self(inputs, others)
                found |= {name: cast(Task, self.tasks[name]).predict(value) for name, value in predictions.items()}
        return {name: found[name] for name in self.tasks if name in found}

    # ------------------------------------------------------------------ checkpoints and export
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the state of the random generators of every process, so that a resumed run draws the same."""
        states: list[Any] = [_random_state()]
        if is_distributed():
            states = [None] * dist.get_world_size()
            dist.all_gather_object(states, _random_state())
        checkpoint[_RNG_KEY] = states

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the state of the random generators until the first training batch."""
        self._restored_random_states = checkpoint.get(_RNG_KEY)

    def export_onnx(self, path: str | Path, inputs: Tensor) -> None:
        """Write the trained network as an ONNX file whose outputs are named after the tasks.

        Args:
            path: File to write.
            inputs: Example input; its first dimension becomes the free batch dimension.

        Raises:
            ModuleNotFoundError: If the extra ``export`` is not installed.
        """
        try:
            import onnxscript  # noqa: F401
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("export_onnx needs `pip install lightning-mtl[export]`.") from error
        training = self.training
        self.eval()
        try:
            torch.onnx.export(
                _Plain(self).eval(),
                (inputs,),
                str(path),
                input_names=["inputs"],
                output_names=list(self.tasks),
                dynamic_shapes=({0: torch.export.Dim.AUTO},),
                dynamo=True,
                verbose=False,
            )
        finally:
            self.train(training)


class _Plain(nn.Module):
    """The network alone, without what belongs to training."""

    def __init__(self, module: MultiTaskModule) -> None:
        super().__init__()
        self.encoder = module.encoder
        self.tasks = module.tasks

    def forward(self, inputs: Tensor) -> dict[str, Any]:
        features, size = self.encoder(inputs), _image_size(inputs)
        return {name: task(_head_features(features, name), size) for name, task in self.tasks.items()}


def _head_features(features: Any, name: str) -> Any:
    """Return what the head of a task reads."""
    own = features[name] if isinstance(features, Mapping) else features
    return own.maps if isinstance(own, SupervisedFeatures) else own


class _Touch(torch.autograd.Function):
    """A zero that depends on parameters, with zero gradients."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


def touch(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return a zero that gives these parameters a gradient of zero."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return cast(Tensor, _Touch.apply(*trained)) if trained else torch.zeros(())


def all_finite(losses: list[Tensor], zero: Tensor) -> Tensor:
    """Return 1 if all of these scalars are finite, else 0, without the host reading them."""
    return torch.stack([loss.detach().float() for loss in losses]).isfinite().all() if losses else zero + 1


def _sources(batch: Any) -> Iterator[tuple[str, Any, Mapping[str, Any]]]:
    """Yield ``(name, inputs, targets)`` for every data set in a batch."""
    if isinstance(batch, tuple | list) and len(batch) == 2 and isinstance(batch[1], Mapping):
        yield "batch", batch[0], batch[1]
        return
    if isinstance(batch, Mapping):
        for name, part in batch.items():
            if part is None:  # CombinedLoader("max_size") fills exhausted loaders with None
                continue
            if not isinstance(part, tuple | list) or len(part) != 2:
                break
            inputs, target = part
            yield name, inputs, target if isinstance(target, Mapping) else {name: target}
        else:
            return
    raise ValueError(
        "MultiTaskModule: a batch must be (inputs, {task: target}) or {name: (inputs, target)}, "
        f"got {_describe_batch(batch)}."
    )


def _is_of_several(batch: Any) -> bool:
    """Return whether a batch is ``{name: (inputs, target)}``."""
    return (
        isinstance(batch, Mapping)
        and bool(batch)
        and all(part is None or (isinstance(part, tuple | list) and len(part) == 2) for part in batch.values())
    )


def _describe_batch(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return "a mapping of " + ", ".join(f"{key!r}: {type(value).__name__}" for key, value in batch.items())
    if isinstance(batch, tuple | list):
        return f"a {type(batch).__name__} of " + ", ".join(type(value).__name__ for value in batch)
    return type(batch).__name__


def _image_size(inputs: Any) -> tuple[int, int] | None:
    return (inputs.shape[-2], inputs.shape[-1]) if isinstance(inputs, Tensor) and inputs.ndim == 4 else None


def _spec_for(encoder: nn.Module, task: str) -> FeatureSpec | None:
    spec = getattr(encoder, "feature_spec", None)
    if isinstance(spec, Mapping):
        if task not in spec:
            raise ValueError(f"{type(encoder).__name__}: has features for the tasks {list(spec)}, not for {task!r}.")
        return cast(FeatureSpec, spec[task])
    return cast("FeatureSpec | None", spec)


def _check_names(argument: str, tasks: Mapping[str, Task]) -> None:
    if not tasks:
        raise ValueError(f"MultiTaskModule: {argument} must hold at least one task, got none.")
    taken = nn.ModuleDict()
    for name, task in tasks.items():
        if not isinstance(task, Task):
            raise TypeError(f"MultiTaskModule: {argument}[{name!r}] must be a Task, got {type(task).__name__}.")
        if not name or not set(name).isdisjoint("./>") or hasattr(taken, name):
            raise ValueError(
                f"MultiTaskModule: {name!r} cannot name a task: a name must not be empty, hold '.', '/' or '>', nor be "
                "an attribute of torch.nn.ModuleDict such as 'type' or 'keys'; choose another, for example "
                f"'{name.strip('./>') or 'task'}_task'."
            )


def _check_known(argument: str, given: Iterable[str], known: Iterable[str]) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"MultiTaskModule: {argument} has the unknown names {unknown}; known are {list(known)}.")


def _random_state() -> dict[str, Any]:
    """Return the state of all global generators, of types that a weights-only load accepts."""
    state = _collect_rng_states()
    kind, keys, *rest = state["numpy"]
    state["numpy"] = [kind, torch.from_numpy(keys.astype("int64")), *rest]
    return state


def _set_random_state(state: Mapping[str, Any]) -> None:
    kind, keys, *rest = state["numpy"]
    _set_rng_states(
        {**state, "torch": state["torch"].cpu(), "numpy": (kind, keys.cpu().numpy().astype("uint32"), *rest)}
    )
