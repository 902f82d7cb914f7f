"""Evaluate the losses of a batch as training would, without a trace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from lightning_mtl.callbacks.affinity.measures import same_on_all_processes
from lightning_mtl.callbacks.grokking.undisturbed import undisturbed

TaskLosses = Callable[[Any, Any], Mapping[str, Tensor]]


class Rehearsal:
    """Evaluates task losses in the modes of training; afterwards the module and all generators are what they were.

    Args:
        trainer: The Trainer that trains the module.
        module: The module.
        losses: Callable ``(module, batch) -> {task: loss}``; None takes the module's ``task_losses``.
        mixed_precision: Whether the Trainer's autocast is on.
    """

    def __init__(
        self, trainer: pl.Trainer, module: pl.LightningModule, losses: TaskLosses | None, mixed_precision: bool
    ) -> None:
        self.module = module
        self.precision = trainer.precision_plugin
        self.function = losses
        self.mixed_precision = mixed_precision

    @contextmanager
    def begin(self, seed: int) -> Iterator[None]:
        """Open one rehearsal, whose random numbers are those of a seed; differentiate what it gives inside of it."""
        # undisturbed switches autocast off: what the precision plugin sets outside, but for that, stays
        with (
            nullcontext() if self.mixed_precision else self.precision.forward_context(),
            undisturbed(self.module, training=True),
            self.precision.forward_context() if self.mixed_precision else nullcontext(),
        ):
            seed_everything(seed)
            torch.clear_autocast_cache()  # parameters may have changed since
            try:
                yield
            finally:
                torch.clear_autocast_cache()

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of a batch, with their graph where autograd is on.

        Raises:
            TypeError: If they are no mapping from tasks to scalars.
            ValueError: If one has no gradient.
            RuntimeError: If the processes have losses of different tasks.
        """
        given = self.function(self.module, batch) if self.function else cast(Any, self.module).task_losses(batch)
        if not isinstance(given, Mapping):
            raise TypeError(f"TaskAffinity: losses must return {{task: scalar tensor}}, got {type(given).__name__}.")
        for task, loss in given.items():
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                shown = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
                raise TypeError(f"TaskAffinity: losses must return {{task: scalar tensor}}, got {shown} for {task!r}.")
            if torch.is_grad_enabled() and not loss.requires_grad:
                raise ValueError(
                    f"TaskAffinity: losses must return losses with their graph, got one without for {task!r}; do not "
                    "detach it."
                )
        if torch.is_grad_enabled():
            same_on_all_processes("TaskAffinity", list(given))
        return {str(task): loss.squeeze() for task, loss in given.items()}


def seed_everything(seed: int) -> None:
    """Seed the global generators that a loss may draw from."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  that is the global generator
