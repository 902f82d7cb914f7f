"""When kernels and parameters are measured, and what happens where they cannot be."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from lightning_mtl.callbacks.grokking.probe import KernelProbe, ProbeError, ShardedError, check_supported
from lightning_mtl.callbacks.grokking.readings import weight_norm

_SHARE = 0.02  # of the training time that measuring may take by default

T = TypeVar("T")
Measures = dict[str, dict[str, float]]


class KernelTracker:
    """Measure kernels and parameters on the first process, now and then, and tell the others.

    Args:
        probe: What is measured.
        kernel: Whether kernels are wanted; None where they can be had.
        every_n_checks: How often; None lets the measurements take 2 % of the time.
    """

    def __init__(self, probe: KernelProbe, kernel: bool | None, every_n_checks: int | None) -> None:
        self.probe = probe
        self.kernel = kernel
        self.every_n_checks = every_n_checks
        self.active = kernel is not False
        self.sharded = False
        self._begun = False
        self._spent = 0.0
        self._elapsed = 0.0
        self._resumed_at = time.monotonic()

    def prepare(self, module: pl.LightningModule, wrapped: Any) -> None:
        """Look whether the module, and what the strategy made of it, can be measured."""
        self._resumed_at = time.monotonic()
        try:
            check_supported(module, module if wrapped is None else wrapped)
        except ProbeError as error:
            self.sharded = isinstance(error, ShardedError)
            self._give_up(error)

    def begin(self, trainer: pl.Trainer, module: pl.LightningModule, batch: Any, step: int) -> Measures:
        """Record where parameters and kernels are, unless that is known; return the measures of new kernels."""
        if self._begun or self.sharded:
            return {}
        self._begun = True
        found: Measures = {}
        if trainer.is_global_zero:
            started = time.monotonic()
            if not self.probe.started:
                self.probe.start_parameters(module, step)
            if self.active and not self.probe.has_kernels:
                try:
                    self.probe.start_kernels(module, batch)
                    found = self.probe.initial_measures()
                except Exception as error:  # whatever somebody's forward raises on a batch of one
                    self._give_up(error)
            self._spent += time.monotonic() - started
        return _from_first_process(trainer, found)

    def due(self, checks: int) -> bool:
        """Whether a measurement is due at this check; the first process decides."""
        if self.every_n_checks is not None:
            return checks % self.every_n_checks == 0
        return self._spent <= _SHARE * self._seconds()

    def measure(self, trainer: pl.Trainer, module: pl.LightningModule, due: bool) -> tuple[dict[str, float], Measures]:
        """Return the norms of the parameters, and the measures of the kernels if they are due."""
        if self.sharded:
            return {}, {}
        numbers = {"weight_norm": weight_norm(module)}
        found: Measures = {}
        if due and self.probe.started and trainer.is_global_zero:
            started = time.monotonic()
            numbers["parameter_distance"] = self.probe.parameter_distance(module)
            if self.active and self.probe.has_kernels:
                try:
                    found = self.probe.measure(module)
                except torch.OutOfMemoryError as error:
                    self._give_up(error)
            self._spent += time.monotonic() - started
        return _from_first_process(trainer, (numbers, found))

    def _give_up(self, error: Exception) -> None:
        self.active = False
        if self.kernel is False:
            return
        reason = str(error) if isinstance(error, ProbeError) else f"{type(error).__name__}: {error}"
        message = (
            f"GrokkingDetector: the tangent kernel cannot be measured: {reason}. Pass kernel_forward=, a callable from "
            "module and batch to outputs and targets, and kernel_batch= if the first batch does not serve; or set "
            "kernel=False."
        )
        if self.kernel:
            raise MisconfigurationException(message) from error
        rank_zero_warn(message)

    def _seconds(self) -> float:
        return self._elapsed + time.monotonic() - self._resumed_at

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {
            "probe": self.probe.state_dict() if self.probe.started else None,
            "active": self.active,
            "spent": self._spent,
            "elapsed": self._seconds(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        if state["probe"] is not None:
            self.probe.load_state_dict(state["probe"])
        self.active = self.active and state["active"]
        self._spent, self._elapsed = state["spent"], state["elapsed"]


def _from_first_process(trainer: pl.Trainer, value: T) -> T:
    if trainer.world_size == 1:
        return value
    broadcast: Callable[[T], T] = trainer.strategy.broadcast
    return broadcast(value)
