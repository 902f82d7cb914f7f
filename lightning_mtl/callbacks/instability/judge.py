"""Turn measurements into alarms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_mtl.callbacks.instability.alarms import Alarm
from lightning_mtl.callbacks.instability.history import History
from lightning_mtl.callbacks.instability.readings import Readings
from lightning_mtl.scaling.attention_forecast import AttentionPrediction


@dataclass(frozen=True)
class Limits:
    """When measurements raise an alarm.

    Args:
        attention_warn: Attention logit from which on to warn.
        attention_critical: Attention logit from which on the alarm is critical.
        log_z_warn: Absolute mean log Z from which on to warn, None for never.
        epsilon_ratio: Gradient RMS over Adam's epsilon below which to warn.
    """

    attention_warn: float
    attention_critical: float
    log_z_warn: float | None
    epsilon_ratio: float

    def judge(self, step: int, readings: Readings, history: History, gradients: bool) -> Iterator[Alarm]:
        """Yield the alarms that the measurements of a step raise.

        Args:
            step: The step.
            readings: Its measurements.
            history: The history up to and with this step.
            gradients: Whether gradients that are not finite are an alarm.
        """
        for name, (logit, _) in readings.attention.items():
            if logit >= self.attention_warn or math.isnan(logit):
                yield Alarm(
                    "attention",
                    step,
                    name,
                    logit,
                    not logit < self.attention_critical,
                    f"the attention logits of {name} reached {logit:.4g} at step {step}; normalise queries and keys "
                    "(lightning_mtl.nn.add_qk_norm) or lower the learning rate.",
                )
        predicted, largest = history.predicted_attention_logit, history.latest("max_attention_logit")
        if largest < self.attention_critical <= predicted:
            yield Alarm(
                "forecast",
                step,
                "attention",
                predicted,
                True,
                f"the largest attention logit, {largest:.4g} at step {step}, is on its way to {predicted:.4g} at step "
                f"{2 * step}; normalise queries and keys (lightning_mtl.nn.add_qk_norm) or lower the learning rate.",
            )
        for name, log_z in readings.log_z.items():
            if self.log_z_warn is not None and not abs(log_z) < self.log_z_warn:
                yield Alarm(
                    "log_z",
                    step,
                    name,
                    log_z,
                    True,
                    f"the mean log Z of {name} is {log_z:.4g} at step {step}; add a log-partition penalty "
                    "(lightning_mtl.losses.LogPartitionPenalty) or weight decay.",
                )
        sizes = readings.sizes.get("gradients", {})
        broken = [name for name, size in sizes.items() if not math.isfinite(size)] if gradients else []
        if broken:  # the backward pass comes to the last block first
            message = f"the gradient of {broken[-1]} is not finite at step {step}, although the loss is."
            yield Alarm("nonfinite", step, broken[-1], sizes[broken[-1]], True, message)
        for name, epsilon in readings.epsilons.items():
            size = sizes.get(name, math.nan)
            if 0 < size < self.epsilon_ratio * epsilon:
                yield Alarm(
                    "epsilon",
                    step,
                    name,
                    size,
                    True,
                    f"the gradient RMS of {name} is {size:.3g} at step {step}, close to Adam's eps of {epsilon:.3g}: "
                    "its updates shrink; lower eps.",
                )


def judge_forecast(prediction: AttentionPrediction) -> Alarm | None:
    """Return the alarm that a prediction from smaller runs raises, critical if both fits agree."""
    if prediction.verdict == "stable":
        return None
    message = (
        f"from smaller runs, the attention logits of this model ({prediction.num_params:.3g} parameters, learning rate "
        f"{prediction.learning_rate:.3g}) are expected to reach {prediction.quadratic:.3g} (quadratic) or "
        f"{prediction.line:.3g} (line), which looks {prediction.verdict}; normalise queries and keys "
        "(lightning_mtl.nn.add_qk_norm) or lower the learning rate."
    )
    return Alarm("forecast", 0, "attention", prediction.quadratic, prediction.verdict == "unstable", message)
