"""The change of a network's parts over epochs and tasks, as curves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import lightning.pytorch as pl
from torch import Tensor

from lightning_mtl.callbacks.continual.sensitivity import default_groups, match_groups, module_change, snapshot
from lightning_mtl.callbacks.continual.stream import CurrentTask, StreamCallback, publish_numbers, refuse_sharded


class ModuleChangeMonitor(StreamCallback):
    r"""Log how much every part of the network changes between epochs and between tasks (Zhao et al., ICML 2023).

    ``fpf/epoch_change/<group>`` compares an epoch with the previous epoch of the same task, after every epoch;
    ``fpf/task_change/<group>`` compares a task with the previous one, at their last epochs, when the next task begins
    and at the end. Both are mean absolute differences (:func:`module_change`). A part is sensitive to the task when the
    second is large although the first has settled. Weights and random states stay as they are.

    Args:
        groups: ``"auto"`` for one group per layer, or names and patterns of submodules; see
            :class:`ForgettingPrioritizedFinetuning`.
        merge_norm: With ``"auto"``, put all normalization layers into one group.
        relative: Divide by the mean absolute value of the group. Norm layers start at 1 and convolutions near 0.05, so
            the ranking then is another one.
        current_task: Callable from the Trainer to the task that is trained; None asks the data module, or counts fits.

    Raises:
        ValueError: If a group matches nothing.
        MisconfigurationException: If the parameters are sharded over processes.

    Note:
        It keeps two copies of the trained parameters, on the CPU and in checkpoints.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[ModuleChangeMonitor()], accelerator="cpu", logger=False)

    References:
        Zhao, Zhou, Long, Jiang, Zhang. *Does Continual Learning Equally Forget All Parameters?* ICML 2023.
        https://arxiv.org/abs/2304.04158, Sec. 3.
    """

    def __init__(
        self,
        groups: Literal["auto"] | list[str] = "auto",
        merge_norm: bool = False,
        relative: bool = False,
        current_task: CurrentTask | None = None,
    ) -> None:
        super().__init__(current_task)
        self.groups = groups
        self.merge_norm = merge_norm
        self.relative = relative
        self.epoch_changes: list[dict[str, float]] = []
        self.task_changes: list[dict[str, float]] = []
        self._last_epoch: dict[str, Tensor] = {}
        self._last_task: dict[str, Tensor] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Look whether the groups are there."""
        if stage == "fit":
            self._groups(pl_module)

    def _groups(self, module: pl.LightningModule) -> dict[str, list[str]]:
        if self.groups == "auto":
            return default_groups(module, self.merge_norm)
        patterns: Sequence[str] = [self.groups] if isinstance(self.groups, str) else self.groups
        return match_groups(module, patterns, type(self).__name__)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look whether the parameters can be read."""
        refuse_sharded(type(self).__name__, pl_module, trainer.strategy.model)

    def on_task_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, task: int) -> None:
        """Compare epochs within a task only."""
        self._last_epoch = {}

    def on_task_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, task: int) -> None:
        """Compare the task with the one before."""
        groups = self._groups(pl_module)
        now = snapshot(pl_module, groups)
        if self._last_task:
            changes = module_change(self._last_task, now, groups, self.relative)
            self.task_changes.append(changes)
            publish_numbers(trainer, {f"fpf/task_change/{group}": value for group, value in changes.items()})
        self._last_task = now

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare the epoch with the one before."""
        groups = self._groups(pl_module)
        now = snapshot(pl_module, groups)
        if self._last_epoch:
            changes = module_change(self._last_epoch, now, groups, self.relative)
            self.epoch_changes.append(changes)
            publish_numbers(trainer, {f"fpf/epoch_change/{group}": value for group, value in changes.items()})
        self._last_epoch = now

    def state_dict(self) -> dict[str, Any]:
        """Return curves and the states to compare with."""
        return {
            **super().state_dict(),
            "epoch_changes": self.epoch_changes,
            "task_changes": self.task_changes,
            "last_epoch": self._last_epoch,
            "last_task": self._last_task,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state."""
        super().load_state_dict(state_dict)
        self.epoch_changes = list(state_dict["epoch_changes"])
        self.task_changes = list(state_dict["task_changes"])
        self._last_epoch = {name: value.cpu() for name, value in state_dict["last_epoch"].items()}
        self._last_task = {name: value.cpu() for name, value in state_dict["last_task"].items()}
