"""Validation losses in the middle of training, for balancers that weight tasks by them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any, cast

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_mtl.balancers.base import Balancer, is_distributed
from lightning_mtl.callbacks.grokking.undisturbed import undisturbed


class ValidationLosses(Callback):
    """Give the balancer a validation loss of every task every few steps, as CoBa and FAMO on validation losses ask.

    After every ``balancer.update_interval`` optimizer steps it evaluates batches of the validation data, each the next
    one, until every task has had labels; the first loss of every task goes to ``balancer.observe_validation``. With
    validation batches that hold all tasks that is one forward pass. The network is in ``eval`` mode and without
    gradients meanwhile; random states, running statistics and the Trainer's own loaders are as if nothing had happened.
    With several processes the losses are those of the joined batch, so that the weights agree everywhere.

    The module must have ``balancer`` and ``task_losses(batch)``, as ``MultiTaskModule`` has. Logs
    ``balancer/<task>/validation_loss``. Its place in the validation data is in checkpoints. With a balancer that needs
    no validation losses it does nothing.

    Raises:
        MisconfigurationException: If the module lacks what is needed, there is no validation data of known length, or
            none of it has labels for some task.

    Note:
        Validation data steer the training then: report results on a test set. The loader is read in this process, with
        no workers of its own.

    Example:
        >>> from lightning_mtl.callbacks import ValidationLosses
        >>> trainer = pl.Trainer(callbacks=[ValidationLosses()], logger=False, enable_checkpointing=False)

    References:
        Gong et al. *CoBa: Convergence Balancer for Multitask Finetuning of Large Language Models*. EMNLP 2024.
        https://arxiv.org/abs/2410.06741
    """

    feeds_validation_losses = True
    """Asked by balancers that need them."""

    def __init__(self) -> None:
        self._last_step = 0
        self._drawn = 0
        self._batches: Iterator[Any] | None = None
        self._most = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the last step with an observation, and the number of batches that were drawn."""
        return {"last_step": self._last_step, "drawn": self._drawn}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take back what :meth:`state_dict` returned."""
        self._last_step, self._drawn = int(state_dict["last_step"]), int(state_dict["drawn"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the validation data, at the place of the checkpoint if there is one."""
        self._batches = None
        if not self._balancer(pl_module).needs_validation_losses:
            return
        if not callable(getattr(pl_module, "task_losses", None)):
            raise MisconfigurationException(
                f"ValidationLosses: {type(pl_module).__name__} must have task_losses(batch); take MultiTaskModule, or "
                "call balancer.observe_validation yourself."
            )
        loaders = _loaders(trainer)
        lengths = [len(loader) for loader in loaders]
        most = torch.tensor(float(sum(lengths)), device=pl_module.device)
        least = most.clone()
        if is_distributed():
            dist.all_reduce(most, dist.ReduceOp.MAX)
            dist.all_reduce(least, dist.ReduceOp.MIN)
        if least < 1:
            raise MisconfigurationException("ValidationLosses: the validation data of a process hold no batch.")
        self._most = int(most)
        endless = itertools.cycle([None])  # one pass after the other; nothing is kept in memory
        self._batches = (batch for _ in endless for loader in loaders for batch in loader)
        with undisturbed(pl_module):
            for _ in range(self._drawn % sum(lengths)):
                next(self._batches)

    @staticmethod
    def _balancer(pl_module: pl.LightningModule) -> Balancer:
        balancer = getattr(pl_module, "balancer", None)
        if not isinstance(balancer, Balancer):
            raise MisconfigurationException(
                f"ValidationLosses: {type(pl_module).__name__} must have a Balancer as its attribute balancer, got "
                f"{type(balancer).__name__}."
            )
        return balancer

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Observe, if an optimizer step was made and it is time."""
        step = trainer.global_step
        if self._batches is None or step == self._last_step:
            return
        balancer = self._balancer(pl_module)
        if step % balancer.update_interval:
            return
        self._last_step = step
        with undisturbed(pl_module), torch.no_grad(), trainer.precision_plugin.forward_context():
            losses = self._losses(trainer, pl_module, balancer.task_names)
        balancer.observe_validation(losses)
        pl_module.log_dict(
            {f"balancer/{name}/validation_loss": loss.float() for name, loss in losses.items()},
            on_step=True,
            on_epoch=False,
            batch_size=1,
        )

    def _losses(self, trainer: pl.Trainer, pl_module: pl.LightningModule, tasks: tuple[str, ...]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for _ in range(self._most):
            batch = next(cast(Iterator[Any], self._batches))
            self._drawn += 1
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            losses: dict[str, Tensor] = cast(Any, pl_module).task_losses(batch)
            found = {**losses, **found}  # the first loss of a task counts
            if all(name in found for name in tasks):
                return {name: found[name] for name in tasks}
        missing = [name for name in tasks if name not in found]
        raise MisconfigurationException(
            f"ValidationLosses: {type(self._balancer(pl_module)).__name__} needs a validation loss of every task, but "
            f"the validation data have no labels, or no finite loss, for {missing}."
        )


def _loaders(trainer: pl.Trainer) -> list[Any]:
    """Return loaders of one's own over the validation data of the Trainer."""
    source = trainer.fit_loop.epoch_loop.val_loop._data_source
    given = source.dataloader() if source.is_defined() else None
    if isinstance(given, CombinedLoader):
        given = given.iterables
    if isinstance(given, dict):
        given = list(given.values())
    loaders = list(given) if isinstance(given, list | tuple) else [given]
    if given is None or not loaders or any(not hasattr(loader, "__len__") for loader in loaders):
        raise MisconfigurationException(
            "ValidationLosses: validation data are needed, from loaders of known length; give the Trainer a data "
            "module with val_dataloader(), or val_dataloaders=."
        )
    return [_own(loader) for loader in loaders]


def _own(loader: Any) -> Any:
    """Return a copy of a loader without workers, whose position and random numbers are its own."""
    if not isinstance(loader, DataLoader):
        return loader
    own = copy.copy(loader)
    own.num_workers = 0
    own.generator = torch.Generator().manual_seed(0)
    own._iterator = None
    return own
