"""Forgetting prioritized finetuning: repair what a sequentially trained network forgot, where it forgot it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.apply_func import move_data_to_device
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from lightning_mtl.callbacks.continual.finetuning import (
    broadcast,
    finetuning_steps,
    own_gradients,
    running_statistics,
    scales_gradients,
)
from lightning_mtl.callbacks.continual.memory import PredictFn, ReplayCallback
from lightning_mtl.callbacks.continual.module_side import (
    LossFn,
    by_name,
    matching_loss,
    replay_loss,
    untouched_buffers,
)
from lightning_mtl.callbacks.continual.sensitivity import (
    SelectionRule,
    default_groups,
    gradient_sensitivity,
    match_groups,
    module_change,
    select_groups,
    snapshot,
)
from lightning_mtl.callbacks.continual.stream import (
    CurrentTask,
    datamodule_ability,
    publish_numbers,
    refuse_sharded,
)
from lightning_mtl.data.continual.buffer import ReplayBuffer, take
from lightning_mtl.functional.modes import modes_kept
from lightning_mtl.losses.base import LabelledLoss
from lightning_mtl.losses.distillation.logit_matching import LogitMatching


class ForgettingPrioritizedFinetuning(ReplayCallback):
    r"""Finetune the parts of a network that forget most on a small memory of the stream (Zhao et al., ICML 2023).

    The callback remembers a few hundred samples of the batches that are trained. With ``k=0`` (FPF) it finetunes once
    when training ends; with ``k >= 1`` (k-FPF) it does so at ``k`` equally spaced steps of the run, whatever the tasks'
    boundaries, which replaces replay in every step. Finetuning trains only the chosen groups of parameters, for
    ``steps`` steps of

    .. math:: L = L(f(x), y) + \gamma\, \mathrm{match}(f(x), z)

    on batches from the memory, with the module's own loss :math:`L` and the logits :math:`z` that were stored with the
    sample; :math:`\gamma` is ``kd_weight``. The Trainer's optimizers, schedulers and gradients are not touched.

    The groups are chosen by :func:`module_change` at the first switch of tasks: those whose task-wise change is above
    the mean. Where no switch has been seen, the mean absolute gradient on the memory takes its place.

    It works with any LightningModule whose batches are nests of tensors, in ``lightning`` and ``pytorch_lightning``
    Trainers. The memory, the choice and the count of steps are in the checkpoint. Logged: ``fpf/steps``,
    ``fpf/samples_replayed``, ``fpf/param_fraction``, ``fpf/running_statistics`` (1 where they are updated),
    ``fpf/buffer_loss_before``, ``fpf/buffer_loss_after``, and ``fpf/sensitivity/<group>`` and ``fpf/selected/<group>``
    when the groups are chosen.

    Args:
        buffer: The memory; None shares that of the first replay callback of the Trainer, or makes a
            :class:`~lightning_mtl.data.ReservoirBuffer` of 200 samples.
        groups: ``"auto"``, or the submodules to finetune: names, which stand for all below them, shell patterns of
            names, or ``"norm"`` for all normalization layers. Norm layers and the head is the paper's choice for
            class-incremental streams; norm layers alone recover next to nothing there.
        k: 0 to finetune at the end only, otherwise how many times during a fit.
        steps: Steps of each finetuning.
        lr: Learning rate at its start.
        batch_size: Samples in a step.
        optimizer: Callable from parameters to an optimizer; plain SGD by default. A new one is made for each
            finetuning, and its learning rate is set to ``lr``.
        schedule: ``"cosine"`` from ``lr`` to 0, or ``"constant"``.
        kd_weight: Weight of the stored logits; above 0 is the paper's variant with distillation.
        kd_loss: Loss between logits and stored logits; None takes :class:`~lightning_mtl.losses.LogitMatching`,
            :class:`~lightning_mtl.losses.DistillationKL` is the alternative. Classes that had not come up when a
            sample was stored are left out.
        selection: Rule for ``"auto"``: ``"above_mean"``, ``"top_k"`` or ``"budget"``; see :func:`select_groups`.
        top_k: Number of groups for ``"top_k"``.
        max_param_fraction: Share of the parameters for ``"budget"``.
        merge_norm: For ``"auto"``, put all normalization layers into one group.
        relative: For ``"auto"``, divide changes by the mean absolute value of the group.
        at_task_end: With ``k=0``, finetune when every task ends.
        update_running_stats: Let batch norms update their running statistics while finetuning; otherwise they
            normalise with the present ones.
        loss_fn: Callable from module and batch to the loss on remembered samples; None asks the module, see
            :func:`replay_loss`.
        predict_fn: Callable from module and batch to the logits; None calls the module with the inputs.
        total_steps: Number of training steps, for ``k >= 1`` where the Trainer cannot know it.
        write_every_epoch: Offer a sample to the memory in every epoch instead of in the first one of its task; None
            does so where it is not known where tasks begin.
        current_task: Callable from the Trainer to the task that is trained; None asks the data module, or counts fits.

    Raises:
        ValueError: If an argument is out of range, a group matches nothing, ``k`` is larger than the number of steps,
            or that number is unknown.
        MisconfigurationException: If the buffer is larger than the data or empty, batches are too small for batch
            norms, the parameters are sharded, or the module gives no loss for remembered samples.

    Note:
        The authors published no code. Choices that are not the paper's: the selection rule, 100 steps, learning rate
        0.05, batches of 32 and the cosine schedule.

        Checkpoints that a ``ModelCheckpoint`` wrote hold the weights before the last finetuning of FPF
        (``k=0``), so the callback writes ``fpf.ckpt`` beside them; its path is ``fpf_ckpt_path``. Averaged copies of
        the weights (EMA, SWA) are not finetuned.

        With several processes all finetune on the same samples, and take over the result of the first one.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> fpf = ForgettingPrioritizedFinetuning(groups=["norm", "head"])
        >>> trainer = Trainer(callbacks=[fpf], accelerator="cpu", logger=False)

    References:
        Zhao, Zhou, Long, Jiang, Zhang. *Does Continual Learning Equally Forget All Parameters?* ICML 2023.
        https://arxiv.org/abs/2304.04158.
    """

    tunes_at_end = True

    def __init__(
        self,
        buffer: ReplayBuffer | None = None,
        groups: Literal["auto"] | list[str] = "auto",
        k: int = 0,
        steps: int = 100,
        lr: float = 0.05,
        batch_size: int = 32,
        optimizer: OptimizerCallable = torch.optim.SGD,
        schedule: Literal["cosine", "constant"] = "cosine",
        kd_weight: float = 0.0,
        kd_loss: LabelledLoss | None = None,
        selection: SelectionRule = "above_mean",
        top_k: int | None = None,
        max_param_fraction: float | None = None,
        merge_norm: bool = False,
        relative: bool = False,
        at_task_end: bool = False,
        update_running_stats: bool = True,
        loss_fn: LossFn | None = None,
        predict_fn: PredictFn | None = None,
        total_steps: int | None = None,
        write_every_epoch: bool | None = None,
        current_task: CurrentTask | None = None,
    ) -> None:
        super().__init__(buffer, write_every_epoch, current_task)
        name = type(self).__name__
        for argument, number in (("steps", steps), ("batch_size", batch_size), ("total_steps", total_steps)):
            if number is not None and number < 1:
                raise ValueError(f"{name}: {argument} must be at least 1, got {number}.")
        for argument, value in (("k", k), ("kd_weight", kd_weight)):
            if value < 0:
                raise ValueError(f"{name}: {argument} must not be negative, got {value}.")
        if not lr > 0:
            raise ValueError(f"{name}: lr must be positive, got {lr}.")
        if schedule not in ("cosine", "constant"):
            raise ValueError(f"{name}: schedule must be 'cosine' or 'constant', got {schedule!r}.")
        if k and at_task_end:
            raise ValueError(f"{name}: at_task_end must be False for k >= 1, which ignores tasks; set k=0.")
        if (selection == "top_k" and top_k is None) or (selection == "budget" and max_param_fraction is None):
            needed = "top_k" if selection == "top_k" else "max_param_fraction"
            raise ValueError(f"{name}: {needed} must be given for selection={selection!r}, got None.")
        self.groups = groups
        self.k = k
        self.steps = steps
        self.lr = lr
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.schedule = schedule
        self.kd_weight = kd_weight
        self.kd_loss = LogitMatching() if kd_loss is None else kd_loss
        self.selection: SelectionRule = selection
        self.top_k = top_k
        self.max_param_fraction = max_param_fraction
        self.merge_norm = merge_norm
        self.relative = relative
        self.at_task_end = at_task_end
        self.update_running_stats = update_running_stats
        self.loss_fn = loss_fn
        self.predict_fn = predict_fn
        self.total_steps = total_steps
        self.needs_logits = kd_weight > 0
        self.scores: dict[str, float] = {}
        self.selected: list[str] = []
        self.fpf_ckpt_path: Path | None = None
        self.steps_done = 0
        self.samples_replayed = 0
        self._schedule: list[int] = []
        self._trained_steps = 0
        self._last_global_step = 0
        self._fired = 0
        self._first_task: dict[str, Tensor] = {}
        self._final = False  # the choice has been made on a switch of tasks

    def predict(self, module: pl.LightningModule, batch: Any) -> Any:
        """Return the logits of a batch."""
        return super().predict(module, batch) if self.predict_fn is None else self.predict_fn(module, batch)

    # ------------------------------------------------------------------ set-up
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Find the memory, and look whether the groups are there."""
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._groups(pl_module)

    def _groups(self, module: pl.LightningModule) -> dict[str, list[str]]:
        """Return the groups to choose from, or those that were asked for."""
        if self.groups == "auto":
            found = default_groups(module, self.merge_norm)
            if not found:
                raise ValueError(f"{type(self).__name__}: {type(module).__name__} has no trained parameters.")
            return found
        patterns: Sequence[str] = [self.groups] if isinstance(self.groups, str) else self.groups
        return match_groups(module, patterns, type(self).__name__)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Plan when to finetune."""
        super().on_train_start(trainer, pl_module)
        refuse_sharded(type(self).__name__, pl_module, trainer.strategy.model)
        self._last_global_step = trainer.global_step
        if trainer.global_step == 0:
            self._trained_steps = self._fired = 0
        if self.k:
            total = self._count_steps(trainer)
            times = min(self.k, total) if trainer.fast_dev_run else self.k  # type: ignore[attr-defined]
            self._schedule = finetuning_steps(total, times)

    def _count_steps(self, trainer: pl.Trainer) -> int:
        if self.total_steps is not None:
            return self.total_steps
        count = datamodule_ability(trainer, "num_training_steps")
        total = count() if callable(count) else trainer.estimated_stepping_batches
        if not math.isfinite(total) or total < 0:
            raise ValueError(
                f"{type(self).__name__}: total_steps must be given for k >= 1 where the Trainer does not know the "
                "number of training steps, got None; pass total_steps=, or set the Trainer's max_steps."
            )
        return int(total)

    # ------------------------------------------------------------------ when
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember the batch, and finetune if it is time (k-FPF)."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step != self._last_global_step:
            self._last_global_step = trainer.global_step
            self._trained_steps += 1
        due = sum(step <= self._trained_steps for step in self._schedule)
        if due > self._fired:
            self._fired = due
            self.finetune(trainer, pl_module)

    def on_task_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, task: int) -> None:
        """Compare the first two tasks, and finetune if that is wanted after every task."""
        self._compare_tasks(trainer, pl_module)
        if self.at_task_end:
            self.finetune(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finetune (FPF), and write the checkpoint that holds the result."""
        super().on_train_end(trainer, pl_module)
        if self.k or self._task is None:  # or nothing was trained
            return
        if not self.at_task_end:
            self.finetune(trainer, pl_module)
        self._save(trainer)

    def _compare_tasks(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Score the groups by how they changed from the first task to the second."""
        if self.groups != "auto" or self._final:
            return
        groups = self._groups(module)
        if not self._first_task:
            self._first_task = snapshot(module, groups)
            return
        self.scores = module_change(self._first_task, snapshot(module, groups), groups, self.relative)
        self._first_task = {}
        self._final = True
        self._choose(trainer, module, groups)

    def _choose(self, trainer: pl.Trainer, module: pl.LightningModule, groups: dict[str, list[str]]) -> None:
        sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
        numel = {group: sum(sizes[name] for name in names) for group, names in groups.items()}
        self.selected = select_groups(self.scores, self.selection, self.top_k, self.max_param_fraction, numel)
        rank_zero_info(f"{type(self).__name__}: finetunes {', '.join(self.selected)}.")
        values = {f"fpf/sensitivity/{group}": score for group, score in self.scores.items()}
        values |= {f"fpf/selected/{group}": float(group in self.selected) for group in groups}
        publish_numbers(trainer, values)

    def _save(self, trainer: pl.Trainer) -> None:
        if not trainer.checkpoint_callbacks or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = getattr(trainer.checkpoint_callbacks[0], "dirpath", None) or trainer.default_root_dir
        self.fpf_ckpt_path = Path(folder) / "fpf.ckpt"
        trainer.save_checkpoint(self.fpf_ckpt_path)
        rank_zero_warn(
            f"{type(self).__name__}: checkpoints written before hold the weights from before the finetuning; use "
            f"'{self.fpf_ckpt_path}' (fpf_ckpt_path) instead of ckpt_path='best' or 'last'."
        )

    # ------------------------------------------------------------------ how
    def finetune(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Finetune the chosen groups on the memory, now.

        Args:
            trainer: The Trainer, in a fit.
            module: The LightningModule.

        Raises:
            MisconfigurationException: If the memory is empty, or the loss does not depend on the chosen groups.
        """
        if not len(self.memory):
            raise MisconfigurationException(
                f"{type(self).__name__}: the buffer is empty; train at least one step before finetuning, or pass a "
                "filled buffer=."
            )
        groups = self._groups(module)
        with torch.enable_grad(), own_gradients(module):
            if self.groups == "auto":
                if not self.selected or not self._final:
                    self.scores = self._gradient_scores(trainer, module, groups)
                    self._choose(trainer, module, groups)
                groups = {name: groups[name] for name in self.selected}
            else:
                self.selected = list(groups)
            chosen = {name for names in groups.values() for name in names}
            parameters = [parameter for name, parameter in module.named_parameters() if name in chosen]
            before = self._buffer_loss(trainer, module)
            with running_statistics(module, self.update_running_stats):
                self._descend(trainer, module, parameters)
            broadcast(module, parameters)
            after = self._buffer_loss(trainer, module)
        total = sum(parameter.numel() for parameter in module.parameters())
        publish_numbers(
            trainer,
            {
                "fpf/steps": self.steps_done,
                "fpf/samples_replayed": self.samples_replayed,
                "fpf/param_fraction": sum(parameter.numel() for parameter in parameters) / total,
                "fpf/running_statistics": float(self.update_running_stats),
                "fpf/buffer_loss_before": before,
                "fpf/buffer_loss_after": after,
            },
        )

    def _descend(self, trainer: pl.Trainer, module: pl.LightningModule, parameters: list[nn.Parameter]) -> None:
        optimizer = self.optimizer(parameters)
        scaler = torch.amp.GradScaler(module.device.type, enabled=scales_gradients(trainer))
        for step in range(self.steps):
            decay = 0.5 * (1 + math.cos(math.pi * step / self.steps)) if self.schedule == "cosine" else 1.0
            for group in optimizer.param_groups:
                group["lr"] = self.lr * decay
            samples = self.draw(self.batch_size, module.device)
            loss = self._loss(trainer, module, samples)
            gradients = torch.autograd.grad(scaler.scale(loss), parameters, allow_unused=True)
            if all(gradient is None for gradient in gradients):
                raise MisconfigurationException(
                    f"{type(self).__name__}: the loss does not depend on the groups {self.selected}; choose others."
                )
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            scaler.step(optimizer)
            scaler.update()
            self.steps_done += 1
            self.samples_replayed += len(samples["task"])

    def _loss(self, trainer: pl.Trainer, module: pl.LightningModule, samples: Any) -> Tensor:
        with trainer.precision_plugin.train_step_context():
            try:
                loss = replay_loss(module, samples["batch"], self.loss_fn)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise MisconfigurationException(
                    f"{type(self).__name__}: batch_size and the samples in the buffer must be at least 2 where batch "
                    f"norms are trained, got {self.batch_size} and {len(self.memory)}; raise them, or set "
                    "update_running_stats=False."
                ) from error
            if self.kd_weight:
                outputs = by_name(self.predict(module, samples["batch"]))
                teacher = {  # logits of classes that had not come up yet would pull these down
                    name: logits.masked_fill(~samples["known"][name], -torch.inf)
                    for name, logits in samples["logits"].items()
                }
                loss = loss + self.kd_weight * matching_loss(self.kd_loss, outputs, teacher)
        return loss

    def _chunks(self, module: pl.LightningModule) -> Iterator[Any]:
        stored, count = self.memory.items(), len(self.memory)
        parts = -(-count // self.batch_size)
        for part in range(parts):  # of nearly the same size: batch norms need more than one sample
            chunk = slice(count * part // parts, count * (part + 1) // parts)
            yield move_data_to_device(take(stored, chunk), module.device)

    def _buffer_loss(self, trainer: pl.Trainer, module: pl.LightningModule) -> float:
        """Return the module's loss on the whole memory, in evaluation mode."""
        total = 0.0
        with (
            modes_kept(module),
            torch.no_grad(),
            untouched_buffers(module),
            trainer.precision_plugin.forward_context(),
        ):
            module.eval()
            for samples in self._chunks(module):
                total += float(replay_loss(module, samples["batch"], self.loss_fn)) * len(samples["task"])
        return total / len(self.memory)

    def _gradient_scores(
        self, trainer: pl.Trainer, module: pl.LightningModule, groups: dict[str, list[str]]
    ) -> dict[str, float]:
        """Return the mean absolute gradient of every group on the memory."""
        parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
        sums: dict[str, Tensor | None] = dict.fromkeys(parameters)
        with untouched_buffers(module):
            for samples in self._chunks(module):
                loss = self._loss(trainer, module, samples) * (len(samples["task"]) / len(self.memory))
                gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                for name, gradient in zip(parameters, gradients, strict=True):
                    known = sums[name]
                    if gradient is not None:
                        sums[name] = gradient if known is None else known + gradient
        return gradient_sensitivity(sums, groups)

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Return memory, choice and counters."""
        return {
            **super().state_dict(),
            "scores": self.scores,
            "selected": self.selected,
            "final": self._final,
            "first_task": self._first_task,
            "trained_steps": self._trained_steps,
            "fired": self._fired,
            "steps_done": self.steps_done,
            "samples_replayed": self.samples_replayed,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        super().load_state_dict(state_dict)
        self.scores = dict(state_dict["scores"])
        self.selected = list(state_dict["selected"])
        self._final = state_dict["final"]
        self._first_task = {name: value.cpu() for name, value in state_dict["first_task"].items()}
        self._trained_steps = state_dict["trained_steps"]
        self._fired = state_dict["fired"]
        self.steps_done = state_dict["steps_done"]
        self.samples_replayed = state_dict["samples_replayed"]
