"""What the monitor remembers."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from lightning_mtl.balancers.base import is_distributed
from lightning_mtl.callbacks.instability.alarms import Alarm, AlarmKind, InstabilityWarning, extrapolate_growth
from lightning_mtl.callbacks.instability.readings import Readings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SINGULAR = {"activations": "activation", "gradients": "gradient", "parameters": "parameter", "updates": "update"}
_MOST_POINTS = 2000
_MOST_ALARMS = 1000
_RECENT = 16


class History:
    """Measurements over the steps, first values, and alarms."""

    def __init__(self) -> None:
        self.curves: dict[str, list[tuple[int, float]]] = {}
        """Quantity over all modules -> (step, value)."""
        self.last: dict[str, dict[str, float]] = {}
        """Quantity -> module -> last value."""
        self.first_log_z: dict[str, float] = {}
        self.alarms: list[Alarm] = []
        self.loss_spikes = 0
        self.nonfinite_steps = 0
        self.nonfinite_before = False
        self.predicted_attention_logit = math.nan
        self._known: set[tuple[str, bool, str]] = set()

    def add(self, step: int, readings: Readings) -> None:
        """Take the measurements of a step."""
        self.last = {}
        overall: dict[str, float] = {}
        if readings.attention:
            self.last["attention_logit"] = {name: logit for name, (logit, _) in readings.attention.items()}
            self.last["attention_entropy"] = {name: entropy for name, (_, entropy) in readings.attention.items()}
            overall["max_attention_logit"] = max(self.last["attention_logit"].values())
            overall["min_attention_entropy"] = min(self.last["attention_entropy"].values())
        if readings.log_z:
            self.last["log_z"] = dict(readings.log_z)
            for name, log_z in readings.log_z.items():
                self.first_log_z.setdefault(name, log_z)
            self.last["log_z_drift"] = {name: v - self.first_log_z[name] for name, v in readings.log_z.items()}
            overall["max_abs_log_z"] = max(abs(log_z) for log_z in readings.log_z.values())
        for quantity, values in readings.sizes.items():
            self.last[f"{_SINGULAR[quantity]}_rms"] = dict(values)
            total = [sum(column) for column in zip(*readings.size_sums[quantity].values(), strict=True)]
            if total and total[1]:
                overall[f"{_SINGULAR[quantity]}_rms/all"] = (
                    math.sqrt(total[0] / total[1]) if total[0] >= 0 else math.nan
                )
        for name, value in overall.items():
            curve = self.curves.setdefault(name, [])
            curve.append((step, value))
            if len(curve) > _MOST_POINTS:
                self.curves[name] = curve[::2]
        growth = self.curves.get("max_attention_logit", [])[-_RECENT:]
        self.predicted_attention_logit = extrapolate_growth(growth, 2.0 * max(step, 1))

    def latest(self, name: str) -> float:
        """Return the last value of a curve, NaN where there is none."""
        return self.curves[name][-1][1] if self.curves.get(name) else math.nan

    def at(self, name: str, step: int) -> float:
        """Return the value of a curve at the last measurement up to a step, NaN before the first."""
        values = [value for at, value in self.curves.get(name, []) if at <= step]
        return values[-1] if values else math.nan

    def metrics(self, modules: bool) -> dict[str, float]:
        """Return what is logged after a measurement.

        Args:
            modules: Whether to give a value per module.
        """
        found = {f"instability/{name}": self.latest(name) for name in self.curves}
        if modules:
            for quantity, values in self.last.items():
                found |= {f"instability/{quantity}/{name}": value for name, value in values.items()}
        if not math.isnan(self.predicted_attention_logit):
            found["instability/predicted_attention_logit"] = self.predicted_attention_logit
        found["instability/loss_spikes"] = float(self.loss_spikes)
        found["instability/nonfinite_steps"] = float(self.nonfinite_steps)
        return found

    def record(self, alarm: Alarm) -> bool:
        """Keep an alarm about something new; say whether it is the first of its kind and severity."""
        known = (alarm.kind, alarm.critical, alarm.where)
        first = not any(key[:2] == known[:2] for key in self._known)
        repeated = alarm.kind in ("loss_spike", "nonfinite")
        if (repeated or known not in self._known) and len(self.alarms) < _MOST_ALARMS:
            self.alarms.append(alarm)
        self._known.add(known)
        return first or repeated

    def summary(self) -> dict[str, Any]:
        """Return what is tracked, the alarms and the counts."""
        first: dict[str, int] = {}
        for alarm in self.alarms:
            first.setdefault(alarm.kind, alarm.step)
            if alarm.critical:
                first.setdefault(f"{alarm.kind} (critical)", alarm.step)
        return {
            "tracked": {quantity: sorted(values) for quantity, values in self.last.items()},
            "first_alarm": first,
            "alarms": [alarm.as_dict() for alarm in self.alarms],
            "loss_spikes": self.loss_spikes,
            "nonfinite_steps": self.nonfinite_steps,
        }

    def plot(self, critical: float) -> Figure:
        """Draw all curves, and the alarms as vertical lines.

        Args:
            critical: Attention logit drawn as a horizontal line.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 2.6 * max(1, math.ceil(len(self.curves) / 3))), layout="constrained")
        axes = figure.subplots(max(1, math.ceil(len(self.curves) / 3)), 3, squeeze=False).flat
        for axis, (name, curve) in zip(axes, self.curves.items(), strict=False):
            axis.plot([step for step, _ in curve], [value for _, value in curve])
            axis.set(title=name.removesuffix("/all").replace("_", " "), xlabel="step")
            if name != "min_attention_entropy" and all(value > 0 for _, value in curve):
                axis.set_yscale("log")
            if name == "max_attention_logit":
                axis.axhline(critical, color="tab:red", linestyle=":")
            for alarm in self.alarms[:50]:
                axis.axvline(alarm.step, color="tab:red" if alarm.critical else "tab:orange", alpha=0.3)
        for axis in list(axes)[len(self.curves) :]:
            axis.set_axis_off()
        return figure

    def state_dict(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "curves": {name: [list(point) for point in curve] for name, curve in self.curves.items()},
            "last": {quantity: dict(values) for quantity, values in self.last.items()},
            "first_log_z": dict(self.first_log_z),
            "alarms": [alarm.as_dict() for alarm in self.alarms],
            "known": [list(key) for key in sorted(self._known)],
            "loss_spikes": self.loss_spikes,
            "nonfinite_steps": self.nonfinite_steps,
            "nonfinite_before": self.nonfinite_before,
            "predicted_attention_logit": self.predicted_attention_logit,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take everything back."""
        self.curves = {name: [(int(s), float(v)) for s, v in curve] for name, curve in state["curves"].items()}
        self.last = {quantity: dict(values) for quantity, values in state["last"].items()}
        self.first_log_z = dict(state["first_log_z"])
        self.alarms = [Alarm(**fields) for fields in state["alarms"]]
        self._known = {(kind, critical, where) for kind, critical, where in state["known"]}
        self.loss_spikes = state["loss_spikes"]
        self.nonfinite_steps = state["nonfinite_steps"]
        self.nonfinite_before = state["nonfinite_before"]
        self.predicted_attention_logit = state["predicted_attention_logit"]


class AlarmLog:
    """Keeps alarms in a history, and warns of those that are new.

    Args:
        history: Where they are kept.
        critical: Kinds of alarm that call for action; no other alarm is critical.
    """

    def __init__(self, history: History, critical: Iterable[AlarmKind]) -> None:
        self.history = history
        self.critical = frozenset(critical)

    def record(self, alarm: Alarm) -> Alarm:
        """Keep an alarm, and return it, critical only if its kind is."""
        alarm = dataclasses.replace(alarm, critical=alarm.critical and alarm.kind in self.critical)
        if self.history.record(alarm):
            self.warn(alarm.message)
        return alarm

    def warn(self, message: str) -> None:
        """Warn, on the first process."""
        if not is_distributed() or dist.get_rank() == 0:
            warnings.warn(f"InstabilityMonitor: {message}", InstabilityWarning, stacklevel=2)
