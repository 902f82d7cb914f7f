"""The callback."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn

from lightning_mtl.balancers.base import is_distributed
from lightning_mtl.callbacks.affinity.heat_map import draw_affinities, draw_layers
from lightning_mtl.callbacks.affinity.measures import Spans, arrange, cosines, learning_rates, lookahead
from lightning_mtl.callbacks.affinity.probe import validation_probe
from lightning_mtl.callbacks.affinity.rehearsal import Rehearsal, TaskLosses, seed_everything
from lightning_mtl.callbacks.affinity.table import FILE_NAME, MEASURES, Measure, PairMeans, write_affinity
from lightning_mtl.callbacks.continual.stream import refuse_sharded
from lightning_mtl.callbacks.figures import publish_figure
from lightning_mtl.callbacks.instability.blocks import find_blocks, group_parameters
from lightning_mtl.data.samplers import mix_seed
from lightning_mtl.functional.gradients import gradient_rows
from lightning_mtl.module import NonFiniteLossError

SharedParameters = Callable[[Any], Iterable[nn.Parameter]]

_NAMES = {
    "lookahead": "affinity/{}->{}",
    "cosine": "affinity/cosine/{}-{}",
    "mean_cosine": "affinity/mean_cosine/{}-{}",
}


class TaskAffinity(Callback):
    r"""Measure in a run how much every task helps every other one, for choosing which to train together.

    Before every ``every_n_steps``-th optimizer step it takes the task gradients :math:`g_i` of the batch at the shared
    parameters :math:`\theta` and measures, as the mean over the run,

    - ``cosine``: :math:`\cos(g_i, g_j)`, with ``per_layer`` also for every block of the shared network;
    - ``lookahead``: :math:`Z_{i \to j} = 1 - L_j(\theta - \eta g_i) / L_j(\theta)`, the share of its loss that task j
      loses by a step of gradient descent on task i alone, on the same batch (TAG);
    - ``mean_cosine``: the cosine of the task gradients averaged over a fixed set of batches, the ``probe``, which is
      free of the noise of single batches (the affinity that ANT groups diffusion timesteps by).

    The single looks go to the loggers as ``affinity/<a>-><b>`` (lookahead), ``affinity/cosine/<a>-<b>`` and
    ``affinity/mean_cosine/<a>-<b>``. In the log folder ``affinity.csv`` holds the means, renewed after every epoch, and
    ``affinity.png`` the heat maps, which also go to the loggers. ``lightning-mtl affinity`` makes groups of them.

    It works in any LightningModule, in ``lightning.pytorch`` and ``pytorch_lightning`` Trainers, with automatic and
    manual optimization, accumulation (it takes the first batch of a step), mixed precision, ``ddp`` (the gradients and
    losses are the means over the processes) and ``torch.compile``. Weights, buffers and random states are bit for bit
    those of a run without it.

    Args:
        every_n_steps: Optimizer steps between two looks; the authors' Taskonomy code takes 10. A look costs a forward
            pass, K backward passes and, for ``lookahead``, K further forward passes.
        measures: What to measure.
        per_layer: Measure the cosines for every block of the shared network too.
        losses: Callable ``(module, batch) -> {task: scalar loss}`` for modules without ``task_losses``.
        shared: Callable ``module -> parameters`` for modules without ``shared_parameters``.
        lookahead_lr: Learning rate :math:`\eta` of the lookahead step; None takes the present one of each parameter
            from the optimizers.
        probe: Batches for ``mean_cosine``: a ``DataLoader`` or list that can be gone through again and again, or
            ``"val"`` for the first ``probe_batches`` batches of the validation data.
        probe_batches: Number of batches of the validation data, on each process.
        probe_every_n_steps: Optimizer steps between two looks at the probe; None takes ``every_n_steps``.
        mixed_precision: Look with the Trainer's autocast. By default looks are in the precision of the parameters,
            because bf16 cannot resolve the change of a loss by one small step.
        max_pairs: Looks at single pairs are logged as long as there are no more (ordered) pairs than this.
        seed: Seed of the random numbers of a look, such as dropout masks, which all of its evaluations share. The
            numbers are a function of this, the step and the process, so that a resumed run sees the same.

    Raises:
        ValueError: If an argument is out of range or ``measures`` is empty or unknown.
        MisconfigurationException: If the module has neither ``task_losses`` and ``shared_parameters`` nor the callables
            are given, there is one task only, the parameters are sharded, no shared parameter is in an optimizer, or
            there is no usable validation data for the probe.

    Note:
        The lookahead step is plain gradient descent on the shared parameters with the optimizer's learning rate, as in
        the paper's equation, whatever the optimizer is; neither momentum nor preconditioning nor weight decay take
        part. The authors' Taskonomy code adds weight decay to the gradient and divides :math:`Z` by the learning rate,
        which the equation of their paper does not. To first order :math:`Z_{i \to j} \approx \eta\, g_i \cdot g_j /
        L_j`, so a constant learning rate scales all affinities alike and hardly matters for the groups, unless it is so
        small that the changes drown in rounding: then give ``lookahead_lr``, which also weighs all looks of a run with
        a schedule alike. Parameters in half precision swallow small steps.

        Looks are taken in the modes of training, with batch statistics where training has them, and with dropout masks
        of their own. A look at which a loss is not positive or not finite, or a task has no label, leaves out the pairs
        concerned; the column ``looks`` of the file counts those behind a mean.

        A probe that a user passes must have as many batches on every process.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> watcher = TaskAffinity(every_n_steps=10)
        >>> trainer = Trainer(callbacks=[watcher], accelerator="cpu", logger=False)

    References:
        Fifty, Amid, Zhao, Yu, Anil, Finn. *Efficiently Identifying Task Groupings for Multi-Task Learning*. NeurIPS
        2021, Sec. 3. https://arxiv.org/abs/2109.04617. Authors' code:
        https://github.com/google-research/google-research/tree/master/tag, Apache-2.0.

        Go, Kim, Lee, Lee, Oh, Moon, Choi. *Addressing Negative Transfer in Diffusion Models*. NeurIPS 2023.
        https://arxiv.org/abs/2306.00354. Authors' code: https://github.com/gohyojun15/ANT_diffusion, MIT.
    """

    def __init__(
        self,
        every_n_steps: int = 10,
        measures: Sequence[Measure] = ("cosine", "lookahead"),
        per_layer: bool = False,
        losses: TaskLosses | None = None,
        shared: SharedParameters | None = None,
        lookahead_lr: float | None = None,
        probe: Literal["val"] | Iterable[Any] = "val",
        probe_batches: int = 8,
        probe_every_n_steps: int | None = None,
        mixed_precision: bool = False,
        max_pairs: int = 30,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for argument, number in (
            ("every_n_steps", every_n_steps),
            ("probe_batches", probe_batches),
            ("probe_every_n_steps", 1 if probe_every_n_steps is None else probe_every_n_steps),
        ):
            if number < 1:
                raise ValueError(f"TaskAffinity: {argument} must be at least 1, got {number}.")
        if not measures or not set(measures) <= set(MEASURES):
            raise ValueError(f"TaskAffinity: measures must be some of {list(MEASURES)}, got {list(measures)}.")
        if lookahead_lr is not None and not lookahead_lr > 0:
            raise ValueError(f"TaskAffinity: lookahead_lr must be positive, got {lookahead_lr}.")
        if isinstance(probe, Iterator) or (isinstance(probe, str) and probe != "val"):
            raise ValueError(
                "TaskAffinity: probe must be 'val' or batches that can be gone through again and again, such as a "
                f"DataLoader or a list, got {probe!r}."
            )
        self.every_n_steps = every_n_steps
        self.measures = tuple(measure for measure in MEASURES if measure in measures)
        self.per_layer = per_layer
        self.losses = losses
        self.shared = shared
        self.lookahead_lr = lookahead_lr
        self.probe = probe
        self.probe_batches = probe_batches
        self.probe_every_n_steps = probe_every_n_steps or every_n_steps
        self.mixed_precision = mixed_precision
        self.max_pairs = max_pairs
        self.seed = seed
        self.tasks: list[str] = []
        """Names of the tasks, in the order of the module or in which they were met."""
        self.looks = 0
        """Number of looks at a batch."""
        self.probe_looks = 0
        """Number of looks at the probe."""
        self._means: dict[tuple[str, str], PairMeans] = {}
        self._last = {"batch": 0, "probe": 0}  # step, counted from 1, before which the last look was taken
        self._probe: Iterable[Any] = ()
        self._parameters: list[nn.Parameter] = []
        self._spans: Spans = {}

    def affinity(self, measure: Measure = "lookahead", layer: str = "") -> Tensor:
        """Return the means so far, ``(K, K)`` in the order of ``tasks``, rows are sources; NaN where nothing was seen.

        Args:
            measure: One of those that are measured.
            layer: A block of the shared network, with ``per_layer``; empty for all shared parameters.

        Raises:
            KeyError: If that was not measured.
        """
        if (measure, layer) not in self._means:
            raise KeyError(f"TaskAffinity: no {measure!r} of layer {layer!r}; there are {list(self._means)}.")
        return self._means[measure, layer].matrix(self.tasks)

    # ------------------------------------------------------------------ hooks
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check that there is something to look at."""
        for argument, given, ability in (
            ("losses", self.losses, "task_losses"),
            ("shared", self.shared, "shared_parameters"),
        ):
            if given is None and not callable(getattr(pl_module, ability, None)):
                raise MisconfigurationException(
                    f"TaskAffinity: {type(pl_module).__name__} has no {ability}(); pass {argument}= to the callback, "
                    "for example TaskAffinity(losses=lambda module, batch: {...}, "
                    "shared=lambda module: module.encoder.parameters())."
                )
        names = getattr(pl_module, "tasks", None)
        if self.losses is None and isinstance(names, Mapping | nn.ModuleDict):
            self.tasks = [*names, *(task for task in self.tasks if task not in names)]
            if len(self.tasks) < 2:
                raise MisconfigurationException(_one_task(self.tasks))
        refuse_sharded("TaskAffinity", pl_module, trainer.strategy.model)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the shared parameters, their learning rates and the probe."""
        shared = self.shared(pl_module) if self.shared else cast(Any, pl_module).shared_parameters()
        layers = group_parameters(pl_module, find_blocks(pl_module)) if self.per_layer else None
        self._parameters, self._spans = arrange(shared, layers)
        if not self._parameters:
            raise MisconfigurationException(
                f"TaskAffinity: {type(pl_module).__name__} has no shared parameter that is trained; pass shared=."
            )
        if "lookahead" in self.measures:
            self._rates(trainer)
        if "mean_cosine" in self.measures:
            self._probe = validation_probe(trainer, self.probe_batches) if isinstance(self.probe, str) else self.probe

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Take a look before a step that is due."""
        step = trainer.global_step + 1
        batch_is_due = set(self.measures) != {"mean_cosine"} and self._is_due("batch", step, self.every_n_steps)
        probe_is_due = "mean_cosine" in self.measures and self._is_due("probe", step, self.probe_every_n_steps)
        found: dict[Measure, tuple[list[str], dict[str, Tensor]]] = {}
        if batch_is_due:
            found |= self._look_at_batch(trainer, pl_module, batch, step)
        if probe_is_due:
            with isolate_rng():  # which a DataLoader draws from
                found |= self._look_at_probe(trainer, pl_module, step)
        for measure, (tasks, layers) in found.items():
            self.tasks += [task for task in tasks if task not in self.tasks]
            for layer, matrix in layers.items():
                self._means.setdefault((measure, layer), PairMeans()).add(tasks, matrix)
            self._log(trainer, measure, tasks, layers[""])

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the file."""
        if (self.looks or self.probe_looks) and len(self.tasks) < 2:
            raise MisconfigurationException(_one_task(self.tasks))
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # log_dir is exchanged between the processes
        dry = trainer.fast_dev_run  # type: ignore[attr-defined]
        if self._means and trainer.is_global_zero and not dry:
            folder.mkdir(parents=True, exist_ok=True)
            write_affinity(folder / FILE_NAME, self.tasks, self._means)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw the heat maps."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        if not self._means:
            reason = (
                "no batch that was looked at had labels of two tasks; mix the tasks in a batch (CombinedLoader mode "
                "'max_size_cycle' does)"
                if self.looks or self.probe_looks
                else f"lower every_n_steps, now {self.every_n_steps}"
            )
            warnings.warn(f"TaskAffinity: nothing was measured in {trainer.global_step} steps; {reason}.", stacklevel=2)
            return
        publish_figure(trainer, "affinity", self.draw())
        for measure in ("cosine", "mean_cosine"):
            layers = {layer: means.matrix(self.tasks) for (m, layer), means in self._means.items() if m == measure}
            if layers.pop("", None) is not None and layers:
                name = "affinity/layers" if measure == "cosine" else "affinity/mean_cosine_layers"
                publish_figure(trainer, name, draw_layers(self.tasks, layers, measure))

    def state_dict(self) -> dict[str, Any]:
        """Return what was measured so far."""
        return {
            "tasks": list(self.tasks),
            "looks": self.looks,
            "probe_looks": self.probe_looks,
            "last": dict(self._last),
            "means": [[*key, means.state_dict()] for key, means in self._means.items()],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from what a resumed run had measured."""
        self.tasks = list(state_dict["tasks"])
        self.looks, self.probe_looks = state_dict["looks"], state_dict["probe_looks"]
        self._last = dict(state_dict["last"])
        self._means = {}
        for measure, layer, state in state_dict["means"]:
            self._means[measure, layer] = PairMeans()
            self._means[measure, layer].load_state_dict(state)

    def draw(self) -> Any:
        """Return the figure: one heat map for each measure."""
        return draw_affinities(
            self.tasks, {m: self._means[m, ""].matrix(self.tasks) for m in self.measures if (m, "") in self._means}
        )

    # ------------------------------------------------------------------ looks
    def _is_due(self, kind: str, step: int, every: int) -> bool:
        """Say whether a multiple of ``every`` was reached since the last look; a batch may make several steps."""
        if step // every == self._last[kind] // every:
            return False
        self._last[kind] = step
        return True

    def _look_at_batch(
        self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, step: int
    ) -> dict[Measure, tuple[list[str], dict[str, Tensor]]]:
        rehearsal = Rehearsal(trainer, module, self.losses, self.mixed_precision)
        seed = mix_seed(self.seed, 0, step, trainer.global_rank)
        self.looks += 1
        try:
            with rehearsal.begin(seed):
                losses = rehearsal.losses(batch)
                tasks = list(losses)
                if len(tasks) < 2:
                    self.tasks += [task for task in tasks if task not in self.tasks]
                    return {}
                matrix = _mean_of_processes(gradient_rows(list(losses.values()), self._parameters))
                base = _vector(losses, tasks, matrix)
        except NonFiniteLossError:  # the training step is about to say so itself
            return {}
        found: dict[Measure, tuple[list[str], dict[str, Tensor]]] = {}
        if "cosine" in self.measures:
            found["cosine"] = tasks, cosines(matrix, self._spans)
        if "lookahead" in self.measures:

            def again() -> Tensor:
                with rehearsal.begin(seed), torch.no_grad():
                    try:
                        return _vector(rehearsal.losses(batch), tasks, matrix)
                    except NonFiniteLossError:
                        return torch.full_like(base, torch.nan)

            rates = self._rates(trainer)
            found["lookahead"] = tasks, {"": lookahead(base, matrix, self._parameters, rates, again)}
        return found

    def _look_at_probe(
        self, trainer: pl.Trainer, module: pl.LightningModule, step: int
    ) -> dict[Measure, tuple[list[str], dict[str, Tensor]]]:
        rehearsal = Rehearsal(trainer, module, self.losses, self.mixed_precision)
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        self.probe_looks += 1
        seed_everything(mix_seed(self.seed, 1))  # samples that are drawn at random are the same in every look
        for number, batch in enumerate(self._probe):
            seed = mix_seed(self.seed, 2, step, number, trainer.global_rank)
            moved = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            try:
                with rehearsal.begin(seed):
                    losses = rehearsal.losses(moved)
                    rows = gradient_rows(list(losses.values()), self._parameters)
            except NonFiniteLossError:
                return {}
            for task, row in zip(losses, rows, strict=True):
                sums[task] = sums[task] + row if task in sums else row
                counts[task] = counts.get(task, 0) + 1
        tasks = [task for task in self.tasks if task in sums]
        tasks += [task for task in sums if task not in tasks]
        if len(tasks) < 2:
            self.tasks += [task for task in tasks if task not in self.tasks]
            return {}
        matrix = _mean_of_processes(torch.stack([sums[task] / counts[task] for task in tasks]))
        return {"mean_cosine": (tasks, cosines(matrix, self._spans))}

    def _rates(self, trainer: pl.Trainer) -> list[float]:
        if self.lookahead_lr is not None:
            return [self.lookahead_lr] * len(self._parameters)
        return learning_rates(trainer.optimizers, self._parameters)

    def _log(self, trainer: pl.Trainer, measure: Measure, tasks: list[str], matrix: Tensor) -> None:
        pairs = [(i, j) for i in range(len(tasks)) for j in range(len(tasks)) if i != j]
        if len(pairs) > self.max_pairs:
            return
        ordered = measure == "lookahead"
        values = matrix.tolist()
        named = {_NAMES[measure].format(tasks[i], tasks[j]): values[i][j] for i, j in pairs if ordered or i < j}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=trainer.global_step)


def _one_task(tasks: Sequence[str]) -> str:
    return (
        f"TaskAffinity: needs the losses of at least two tasks on one batch, got {list(tasks)}; take the callback out, "
        "or give batches with labels of several tasks (CombinedLoader mode 'max_size_cycle' does, 'sequential' does "
        "not)."
    )


def _vector(losses: Mapping[str, Tensor], tasks: Sequence[str], like: Tensor) -> Tensor:
    """Return the values of the losses, NaN where one is missing."""
    missing = like.new_full((), torch.nan)
    return torch.stack([losses[task].detach().to(like) if task in losses else missing for task in tasks])


def _mean_of_processes(matrix: Tensor) -> Tensor:
    """Average in place over the processes."""
    if is_distributed():
        dist.all_reduce(matrix)
        matrix /= dist.get_world_size()
    return matrix
