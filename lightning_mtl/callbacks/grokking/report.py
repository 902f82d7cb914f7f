"""What is known about a task, in numbers and in a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from lightning_mtl.callbacks.grokking.curves import Curves
from lightning_mtl.callbacks.grokking.detection import STATES, GrokkingTimes


@dataclass(frozen=True)
class GrokkingReport(GrokkingTimes):
    """What the detector knows about one task.

    Args:
        state: ``"fitting"``, ``"memorised"``, ``"generalised"`` or ``"grokked"``.
        memorised_at: Step at which the training curve had fallen, or None.
        generalised_at: Step at which the validation curve had fallen, or None.
        lag: Steps between the two; None unless both are known.
        ratio: ``generalised_at / memorised_at``; None unless both are known.
        still_lazy: Whether the task is memorised but not generalised while the kernel has hardly moved: expect delayed
            generalization. None where no kernel was measured.
        evidence: The numbers behind it, one sentence.
        kernel: Last measures of the kernel; empty where there are none.
        initial_kernel: First measures of the kernel.
        non_finite: How many monitored values were NaN or infinite.
    """

    still_lazy: bool | None = None
    evidence: str = ""
    kernel: Mapping[str, float] = field(default_factory=dict)
    initial_kernel: Mapping[str, float] = field(default_factory=dict)
    non_finite: int = 0


def make_report(times: GrokkingTimes, curves: Curves, lazy_distance: float) -> GrokkingReport:
    """Return what is known about a task.

    Args:
        times: When it was memorised and generalised.
        curves: What is remembered of it.
        lazy_distance: A kernel that has moved less than this is lazy.
    """
    last = curves.latest()
    distance = last.get("kernel_distance")
    return GrokkingReport(
        **asdict(times),
        still_lazy=None if distance is None else times.state == "memorised" and distance < lazy_distance,
        evidence=_evidence(curves),
        kernel=last,
        initial_kernel={name: values[0] for name, values in curves.measures.items()},
        non_finite=curves.non_finite,
    )


def _evidence(curves: Curves) -> str:
    if not curves.steps:
        return "no check yet"
    parts = []
    for kind, values, first in (
        ("training", curves.train, curves.train_reference),
        ("validation", curves.val, curves.val_reference),
    ):
        parts.append(f"{kind} metric {first:.3g} -> {values[-1]:.3g}")
    if "kernel_distance" in curves.measures:
        parts.append(f"kernel {curves.measures['kernel_distance'][-1]:.3g} from initialization (1 - cosine)")
    if "alignment" in curves.measures:
        first, last = curves.measures["alignment"][0], curves.measures["alignment"][-1]
        parts.append(f"its alignment with the targets {first:.3g} -> {last:.3g}")
    return f"at step {curves.steps[-1]}: " + ", ".join(parts)


def values_to_log(report: GrokkingReport, curves: Curves, as_ratio: bool) -> dict[str, float]:
    """Return name -> value of what is logged for a task.

    Args:
        report: What is known about it.
        curves: What is remembered of it; at least one check.
        as_ratio: Whether the gap is the ratio of validation to training, rather than training minus validation.
    """
    values: dict[str, float] = {"state": float(STATES.index(report.state))}
    train, val = curves.train[-1], curves.val[-1]
    gap = train - val if not as_ratio else val / train if train else math.inf
    if math.isfinite(gap):
        values["gap"] = gap
    for name in ("memorised_at", "generalised_at", "lag"):
        value = getattr(report, name)
        if value is not None:
            values[name] = float(value)
    values |= report.kernel
    if report.still_lazy is not None:
        values["lazy"] = float(report.still_lazy)
    return values
