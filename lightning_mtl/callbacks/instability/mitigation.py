"""What the monitor can do to a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from torch.optim import Optimizer

from lightning_mtl.balancers.base import is_distributed
from lightning_mtl.callbacks.instability.alarms import Alarm, InstabilityError

Action = Literal["warn", "raise", "stop", "skip", "lower_lr"]
ACTIONS: tuple[Action, ...] = ("warn", "raise", "stop", "skip", "lower_lr")

_RATES = ("lr", "initial_lr", "max_lr", "min_lr")


def react(trainer: pl.Trainer, alarms: Sequence[Alarm], action: Action, lr_factor: float) -> None:
    """Do what was asked for if one of the alarms is critical.

    Args:
        trainer: The Trainer.
        alarms: New alarms.
        action: What to do; ``"warn"`` was done when they were recorded, ``"skip"`` is :func:`drop_gradients`.
        lr_factor: Factor on the learning rates for ``"lower_lr"``.

    Raises:
        InstabilityError: If that is what was asked for.
    """
    severe = [alarm for alarm in alarms if alarm.critical]
    if not severe:
        return
    if action == "raise":
        raise InstabilityError(f"InstabilityMonitor: {severe[0].message}")
    if action == "stop":
        trainer.should_stop = True
    if action == "lower_lr":
        scale_learning_rates(trainer, lr_factor)


def drop_gradients(optimizer: Optimizer, skip: bool, gradients: bool) -> bool:
    """Take the gradients from an optimizer, so that its step changes nothing, if any process wants that.

    Args:
        optimizer: The optimizer that is about to step.
        skip: Whether this process wants to skip the step.
        gradients: Whether gradients that are not finite are a reason too.

    Returns:
        Whether the gradients were taken.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if gradients and not skip and parameters:
        totals = [torch.linalg.vector_norm(p.grad.detach(), dtype=torch.float32) for p in parameters]
        skip = not bool(torch.stack([getattr(total, "_local_tensor", total) for total in totals]).isfinite().all())
    if is_distributed():
        device = parameters[0].device if parameters else torch.device("cpu")
        wanted = torch.tensor(float(skip), device=device)
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        skip = bool(wanted)
    if skip:
        for parameter in parameters:
            parameter.grad = None
    return skip


def scale_learning_rates(trainer: pl.Trainer, factor: float) -> None:
    """Multiply all learning rates, those that schedulers start from included, so that schedules go on from there."""
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            for name in _RATES:
                if name in group:
                    group[name] = group[name] * factor
    pending = [config.scheduler for config in trainer.lr_scheduler_configs]
    while pending:
        scheduler = pending.pop()
        for name in ("base_lrs", "_last_lr", "min_lrs"):
            values = getattr(scheduler, name, None)
            if isinstance(values, list):
                setattr(scheduler, name, [value * factor for value in values])
        pending.extend(getattr(scheduler, "_schedulers", []))
