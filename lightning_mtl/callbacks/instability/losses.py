"""Judge the losses of a run, and find where one that is not finite comes from."""

from __future__ import annotations

import functools
import math
import statistics
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_mtl.callbacks.instability.alarms import Alarm, LossSpikes
from lightning_mtl.callbacks.instability.history import AlarmLog, History
from lightning_mtl.callbacks.instability.probe import ForwardProbe
from lightning_mtl.callbacks.instability.readings import Readings


class LossWatch:
    """Collects the losses on the device, and raises alarms about spikes and losses that are not finite.

    Args:
        history: Holds the counts, and whether the last loss was finite.
        spikes: Finds the spikes.
        alarms: Takes the alarms.
    """

    def __init__(self, history: History, spikes: LossSpikes, alarms: AlarmLog) -> None:
        self.history = history
        self.spikes = spikes
        self.alarms = alarms
        self.prompt = False
        """Whether every loss is looked at before its backward pass, so that only spikes are left for a check."""
        self.clear()

    def clear(self) -> None:
        """Forget what was collected."""
        self.losses: list[tuple[int, Tensor]] = []
        self.finite: list[tuple[int, list[str], Tensor]] = []

    def add(self, step: int, loss: Tensor | None, outputs: list[tuple[str, Tensor]]) -> None:
        """Keep the loss of a batch and, unless losses are looked at at once, whether its blocks' outputs are finite."""
        if loss is not None:
            self.losses.append((step, loss))
        if not self.prompt and outputs:
            flags = torch.stack([value.isfinite() for _, value in outputs])
            self.finite.append((step, [name for name, _ in outputs], flags))

    def judge(self, readings: Readings) -> list[Alarm]:
        """Return the alarms that the losses since the last check raise."""
        alarms = []
        for step, loss in readings.losses:
            if math.isfinite(loss):
                self.history.nonfinite_before = False
                if self.spikes.update(loss):
                    self.history.loss_spikes += 1
                    typical = statistics.median(self.spikes.losses)
                    message = f"the loss rose to {loss:.4g} at step {step}, from a median of {typical:.4g}."
                    alarms.append(self.alarms.record(Alarm("loss_spike", step, "loss", loss, True, message)))
            elif not self.prompt:
                first = readings.first_nonfinite.get(step, "loss")
                found = self.nonfinite(step, loss, functools.partial(_first_output, first))
                alarms += [] if found is None else [found]
        return alarms

    def nonfinite(self, step: int, loss: float, diagnose: Callable[[], tuple[str, str]]) -> Alarm | None:
        """Count a step whose loss is not finite; the first of several in a row raises the alarm."""
        self.history.nonfinite_steps += 1
        again, self.history.nonfinite_before = self.history.nonfinite_before, True
        if again:
            return None
        where, why = diagnose()
        message = f"the loss is {loss} at step {step}: {why}. Lower the learning rate or look at this module's inputs."
        return self.alarms.record(Alarm("nonfinite", step, where, loss, True, message))


def diagnose(probe: ForwardProbe) -> tuple[str, str]:
    """Return the first module whose output is not finite in this batch, and a sentence about it."""
    first = next((name for name, value in probe.outputs if not bool(value.isfinite())), None)
    for name, parameter in probe.root.named_parameters():
        if not bool(parameter.isfinite().all()):
            owner = name.rpartition(".")[0] or name
            return owner, f"the parameter {name} is not finite since an earlier update"
    if first is None:
        return "loss", "all blocks gave finite outputs, so it comes from what follows them"
    if not probe.inputs_are_finite(first):
        return first, f"{first} is the first block and was given inputs that are not finite"
    return _first_output(probe.locate(first))


def _first_output(name: str) -> tuple[str, str]:
    return name, f"the first output that is not finite is that of {name}"
